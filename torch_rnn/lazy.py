"""Names of a package whose modules are imported when a name is first used."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def loader(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Returns a `__getattr__` for a package (PEP 562).

    Also gives the package a `__dir__` with the public names, so that they can be completed.

    modules gives for each public name the module below the package that defines it. A module whose own name
    is the public one is returned itself.
    """
    sys.modules[package].__dir__ = lambda: sorted({*vars(sys.modules[package]), *modules})

    def load(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f"{package}.{modules[name]}")
        return module if modules[name].endswith(name) else getattr(module, name)

    return load
