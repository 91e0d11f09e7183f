"""Comments beside parameters and fields, as lines of a docstring. The package documents its parameters where they are defined."""

import dataclasses
import inspect
import re

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


def escaped(line: str) -> str:
    "The line with `name_` and `|` as text outside of backticks, where reStructuredText would read references."
    parts = re.split("(``.+?``|`[^`]*`)", line)
    return "".join(part if n % 2 else re.sub(r"(\w)_(?!\w)", r"\1\\_", part).replace("|", r"\|") for n, part in enumerate(parts))
