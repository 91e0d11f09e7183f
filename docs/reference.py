"""Comments beside parameters and fields, as lines of a docstring. The package documents its parameters where they are defined."""

import dataclasses
import inspect

from fastcore.docments import docments


def described(thing: object) -> list[str]:
    "One `:param name:` line for each parameter or field with a comment; [] where there is none."
    try:
        notes = docments(thing, full=True, returns=False)
    except (TypeError, OSError, ValueError, SyntaxError):  # no source, or nothing to call
        return []
    told = {name: note.docment for name, note in notes.items() if name != "self" and note.docment}
    if dataclasses.is_dataclass(thing):
        told = {n: t for n, t in told.items() if n in inspect.signature(thing).parameters}
    return ["", *(f":param {name}: {text}" for name, text in told.items())] if told else []
