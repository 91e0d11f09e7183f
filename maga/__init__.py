"""Machine unlearning of image classifiers.

The names that a user types first can be imported from here; each is loaded from its module when it is first used.
"""

from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "load": "sources",
    "digits": "sources",
    "forget_class": "data",
    "forget_subclass": "data",
    "forget_random": "data",
    "MagaError": "data",
    "ModelSpec": "models",
    "Examples": "training",
    "FitConfig": "training",
    "fit": "training",
    "get_method": "methods.contract",
    "measure": "measures.metrics",
    "Evidence": "measures.contract",
    "evaluate": "measures.evaluation",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _MODULES:
        return getattr(import_module(f"maga.{_MODULES[name]}"), name)
    from difflib import get_close_matches

    near = ", ".join(get_close_matches(name, _MODULES)) or ", ".join(_MODULES)
    raise AttributeError(f"maga has no {name!r}; the nearest names are {near}.", name=name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
