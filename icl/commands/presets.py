"""What the commands that train a preset share: its settings are the defaults of their options."""

from typing import Any

import tyro

from ..experiments import preset


def resumes(arguments: list[str]) -> bool:
    """Whether a run or sweep is to be continued."""
    return any(argument.split("=")[0] == "--resume" for argument in arguments)


def with_preset(command: str, options: type, arguments: list[str]) -> tuple[str, Any]:
    """A preset's name and the options after it, whose defaults are the preset's settings."""
    name = arguments[0]
    if name.startswith("-"):
        raise ValueError(f"the preset's name comes first: icl {command} NAME [--option value]")
    try:
        config = preset(name)
    except KeyError as error:
        raise ValueError(error.args[0]) from None
    return name, tyro.cli(
        tyro.conf.AvoidSubcommands[options],
        default=options(config=config),
        args=arguments[1:],
        prog=f"icl {command} {name}",
    )
