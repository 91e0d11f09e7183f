"""The parameters of a notebook: what its cell tagged `parameters` sets, and given texts as values of the same types."""

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nbformat import NotebookNode


def tagged(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]


def defaults(notebook: NotebookNode) -> dict[str, Any]:
    "Name -> default, of plain assignments."
    nodes = (n for cell in tagged(notebook) for n in ast.parse(cell.source).body if isinstance(n, ast.Assign | ast.AnnAssign) and n.value)
    pairs = ((t, n.value) for n in nodes for t in (n.targets if isinstance(n, ast.Assign) else [n.target]))
    return {target.id: ast.literal_eval(value) for target, value in pairs if isinstance(target, ast.Name)}


def typed(name: str, text: str, default: Any) -> Any:
    "The text where the default is one, else the value that it writes; `ValueError` where that has another type."
    if isinstance(default, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        value = text
    if type(value) is int and type(default) is float:
        return float(value)
    if default is not None and type(value) is not type(default):
        raise ValueError(f"The parameter {name} is {default!r} by default; expected another {type(default).__name__}, not {text!r}.")
    return value


def given(path: Path, notebook: NotebookNode, texts: Mapping[str, str]) -> dict[str, Any]:
    "Parameter -> value, if the notebook has all of them in one cell; a `ValueError` says what is wrong."
    known = defaults(notebook)
    if not known:
        raise ValueError(f"{path} has no cell tagged `parameters` that sets any: the given values would be ignored.")
    if len(tagged(notebook)) > 1:
        raise ValueError(f"{path} has {len(tagged(notebook))} cells tagged `parameters`; expected one.")
    unknown = [name for name in texts if name not in known]
    if unknown:
        raise ValueError(f"{path} has no parameter {unknown[0]!r}; it has {', '.join(known)}.")
    return {name: typed(name, text, known[name]) for name, text in texts.items()}
