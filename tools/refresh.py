"""Run notebooks from top to bottom in place and keep their outputs tidy: printed lines in one piece, no progress bars, no execution times.

    python tools/refresh.py nbs/304_maga.ipynb [more notebooks …]
    python tools/refresh.py --set preset=laptop --set results=published --at-once 2 nbs/experiments/paper/table1.ipynb nbs/experiments/paper/table2.ipynb

`--set` gives an experiment's parameters for this run. The cell tagged `parameters` is written back as it was, so a reader's own run has the defaults.
`--at-once` is for notebooks that take no times, such as those that draw from published rows.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from parameters import given, tagged


def tidy(cell: nbformat.NotebookNode) -> None:
    "Join what was printed in pieces, leave out standard error, forget when the cell ran."
    joined: list[nbformat.NotebookNode] = []
    for output in cell.get("outputs", []):
        if output.output_type == "stream":
            if output.name == "stderr":
                continue
            if joined and joined[-1].output_type == "stream":
                joined[-1].text += output.text
                continue
        joined.append(output)
    cell.outputs = joined
    cell.metadata.pop("execution", None)


def with_values(cell: nbformat.NotebookNode, values: Mapping[str, Any]) -> str:
    "The source of the cell tagged `parameters`, followed by assignments of the given ones."
    return "\n".join([cell.source, *(f"{name} = {value!r}" for name, value in values.items())])


def refresh(path: Path, texts: Mapping[str, str]) -> None:
    "Run one notebook and write it back; a cell that fails leaves the file as it was and raises, and so does a parameter that it cannot take."
    notebook = nbformat.read(path, as_version=4)
    values, cells = given(path, notebook, texts) if texts else {}, tagged(notebook)
    sources = [cell.source for cell in cells]
    for cell in cells if values else []:
        cell.source = with_values(cell, values)
    client = NotebookClient(notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}})
    client.execute()
    for cell, source in zip(cells, sources, strict=True):
        cell.source = source
    for cell in notebook.cells:
        if cell.cell_type == "code":
            tidy(cell)
    nbformat.write(notebook, path)


def why_not(path: Path, texts: Mapping[str, str]) -> str:
    "Run one notebook; why it stopped, or nothing where it ran to its end."
    try:
        refresh(path, texts)
    except CellExecutionError as e:
        return f"{path} stopped in a cell: {e.ename}: {e.evalue}"
    except ValueError as e:
        return str(e)
    return ""


def main(arguments: Sequence[str]) -> None:
    p = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    p.add_argument("notebooks", nargs="+", type=Path)
    p.add_argument("--at-once", type=int, default=1, metavar="N", help="notebooks that run side by side; one: nothing disturbs the times they take")
    p.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of an experiment, for this run")
    a = p.parse_args(arguments)
    wrong = [text for text in a.set if "=" not in text]
    if wrong:
        p.error(f"--set takes NAME=VALUE, not {wrong[0]}")
    if a.at_once < 1:
        p.error(f"--at-once takes 1 or more notebooks, not {a.at_once}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as in the tests: equal bits on every machine
    texts = dict(text.split("=", 1) for text in a.set)
    with ThreadPoolExecutor(a.at_once) as pool:
        for path, why in zip(a.notebooks, pool.map(lambda path: why_not(path, texts), a.notebooks), strict=True):
            if why:
                pool.shutdown(cancel_futures=True)
                sys.exit(why)
            print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
