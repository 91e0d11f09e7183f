"""Run notebooks from top to bottom in place and keep their outputs tidy: printed lines in one piece, no progress bars, no execution times.

    python tools/refresh.py nbs/304_maga.ipynb [more notebooks …]
"""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError


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


def refresh(path: Path) -> None:
    "Run one notebook and write it back; a cell that fails leaves the file as it was and raises."
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}})
    client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            tidy(cell)
    nbformat.write(notebook, path)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("Usage: python tools/refresh.py NOTEBOOK [NOTEBOOK …]")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as in the tests: equal bits on every machine
    for name in sys.argv[1:]:
        try:
            refresh(Path(name))
        except CellExecutionError as e:
            sys.exit(f"{name} stopped in a cell: {e.ename}: {e.evalue}")
        print(name)
