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
    "forget_files": "requests",
    "after": "requests",
    "MagaError": "checks",
    "ModelSpec": "models",
    "Classifier": "models",
    "save_checkpoint": "models",
    "load_checkpoint": "models",
    "purge_cache": "cache",
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
        globals()[name] = found = _with_notes(getattr(import_module(f"maga.{_MODULES[name]}"), name))
        return found
    from difflib import get_close_matches

    near = ", ".join(get_close_matches(name, _MODULES)) or ", ".join(_MODULES)
    raise AttributeError(f"maga has no {name!r}; the nearest names are {near}.", name=name)


def __dir__() -> list[str]:
    return sorted([*_MODULES, "__version__"])


def _with_notes(thing: Any) -> Any:
    "The function or class, its docstring followed by the comments beside its parameters or fields, for `help`."
    import inspect
    import re

    lines = inspect.getsource(thing).splitlines()
    ends = [n for n, line in enumerate(lines) if line.startswith(")")] if inspect.isfunction(thing) else []
    notes = (re.match(r"    (\w+): [^#]*  # (.+)", line) for line in lines[: ends[0] if ends else None])
    said = [f"    {m[1]}: {m[2]}" for m in notes if m]
    if said:
        thing.__doc__ = "\n".join([inspect.getdoc(thing) or "", "", *said])
    return thing
