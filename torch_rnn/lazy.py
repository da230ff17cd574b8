"""Names of a package whose modules are imported when a name is first used."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def loader(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Returns a `__getattr__` for a package (PEP 562).

    modules gives for each public name the module below the package that defines it. A module whose own name
    is the public one is returned itself.
    """

    def load(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f"{package}.{modules[name]}")
        return module if modules[name].endswith(name) else getattr(module, name)

    return load
