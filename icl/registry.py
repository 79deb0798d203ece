"""Registries: classes of settings by the name that config.json and commands give them."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T", bound=type)


def register(registry: dict[str, Any], base: type, name: str) -> Callable[[T], T]:
    """A decorator that registers a class of settings under a name.

    A class may be registered again by the module that registered it, as a reloaded notebook does.

    Args:
      registry: classes by name.
      base: the class that each of them inherits from.
      name: in config.json, tables and commands.

    Raises:
      TypeError: the decorated object is no class that inherits from `base`.
      ValueError: the name is empty, or taken by another class.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"register a {base.__name__} under a name, got {name!r}")

    def decorate(kind: T) -> T:
        if not isinstance(kind, type) or not issubclass(kind, base):
            raise TypeError(f"{kind!r} must be a class that inherits from {base.__name__}")
        known = registry.get(name)
        if known is not None and _place(known) != _place(kind):
            raise ValueError(
                f"the name {name!r} is taken by {known.__module__}.{known.__name__}; choose another"
            )
        registry[name] = kind
        return kind

    return decorate


def registered_name(settings: Any, registry: dict[str, Any], decorator: str) -> str:
    """The name under which the class of some settings is registered.

    Raises:
      ValueError: the class is not registered; the message shows how to.
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
    """The module to import so that the class of some settings is registered.

    None for the classes of this package, which are always registered.
    """
    module = _module(type(settings))
    return None if module.split(".")[0] == __name__.split(".")[0] else module


def find(registry: dict[str, Any], what: str, name: Any, module: str | None) -> Any:
    """The class of a name.

    Args:
      registry: classes by name.
      what: name of the kind of classes, for the error.
      name: the name.
      module: the module that registered it, if it is known.

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


def _place(kind: type) -> tuple[str, str]:
    return _module(kind), kind.__qualname__


def _module(kind: type) -> str:
    """The name by which others import the module of a class."""
    if kind.__module__ != "__main__":
        return kind.__module__
    # A script that is run by itself is imported by the name of its file.
    file = getattr(sys.modules["__main__"], "__file__", None)
    return Path(file).stem if file else kind.__module__
