"""Registries of settings classes and optimisers: the names used in config.json and commands."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

Kind = TypeVar("Kind", bound=type)


def register(registry: dict[str, Any], base: type, name: str) -> Callable[[Kind], Kind]:
    """A decorator that registers a class of settings under a name.

    A class may be registered again by the module that registered it, as a reloaded notebook does.

    Args:
      registry: classes by name.
      base: the class that registered classes must inherit from.
      name: the name in config.json, tables and commands.

    Raises:
      TypeError: the decorated object is not a class that inherits from `base`.
      ValueError: the name is empty, or already names another class.
    """
    check_name(base.__name__, name)

    def decorate(kind: Kind) -> Kind:
        if not isinstance(kind, type) or not issubclass(kind, base):
            raise TypeError(f"{kind!r} must be a class that inherits from {base.__name__}")
        enter(registry, name, kind)
        return kind

    return decorate


def check_name(what: str, name: Any) -> None:
    """Raises ValueError if the name of a new entry is no string or empty."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"the name of a {what} must be a string that is not empty, got {name!r}")


def enter(registry: dict[str, Any], name: str, entry: Any) -> None:
    """Puts a class or a function into a registry.

    Raises:
      ValueError: the name is that of another class or function.
    """
    known = registry.get(name)
    if known is not None and _place(known) != _place(entry):
        raise ValueError(
            f"the name {name!r} is taken by {known.__module__}.{known.__name__}; choose another"
        )
    registry[name] = entry


def registered_name(settings: Any, registry: dict[str, Any], decorator: str) -> str:
    """The name under which the class of a settings object is registered.

    Raises:
      ValueError: the class is not registered; the message shows how to register it.
    """
    for name, known in registry.items():
        if type(settings) is known:
            return name
    kind = type(settings).__name__
    raise ValueError(
        f"{kind} is not registered, so a run of it could not be read back: put "
        f'@{decorator}("a name") above the class'
    )


def module_of(settings: Any) -> str | None:
    """Name of the module that registers the class of a settings object when imported.

    None for classes of this package, which are always registered.
    """
    module = _module(type(settings))
    return None if module.split(".")[0] == __name__.split(".")[0] else module


def find(registry: dict[str, Any], what: str, name: Any, module: str | None) -> Any:
    """The class registered under a name.

    Args:
      registry: classes by name.
      what: kind of class, such as "model", for the error.
      name: the name.
      module: name of the module that registered the class, if known.

    Raises:
      ValueError: no class has that name; the message names the module to import.
    """
    if name in registry:
        return registry[name]
    if module is not None:
        raise ValueError(
            f"the {what} {name!r} is not registered: it is defined in the module {module}. Import "
            f"that module first; on the command line: icl --import {module} ..."
        )
    raise ValueError(f"no {what} called {name!r}; there are {', '.join(registry)}")


def _place(kind: Any) -> tuple[str, str]:
    return _module(kind), kind.__qualname__


def _module(kind: Any) -> str:
    """The name by which other modules import the module of a class or a function."""
    if kind.__module__ != "__main__":
        return kind.__module__
    # The module of a script that runs as __main__ is imported by its file name.
    file = getattr(sys.modules["__main__"], "__file__", None)
    return Path(file).stem if file else kind.__module__
