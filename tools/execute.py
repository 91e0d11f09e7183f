"""Run a notebook with papermill, but only with parameters that it has.

papermill itself continues when no cell is tagged `parameters` (the notebook then runs with its own values)
and only warns of a parameter that the notebook does not have. Here both end with one sentence and exit code 1, and so does a value
of another type than the notebook's own.

    python tools/execute.py nbs/experiments/paper/table1.ipynb results/table1/table1.ipynb preset=smoke device=cpu
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
import papermill
from parameters import given


def main(arguments: Sequence[str]) -> int:
    "0 when the notebook ran to its end; 1 and one sentence otherwise."
    if len(arguments) < 2 or not all("=" in a for a in arguments[2:]):
        print("Usage: python tools/execute.py NOTEBOOK OUTPUT [name=value …]", file=sys.stderr)
        return 1
    notebook, output = map(Path, arguments[:2])
    try:
        if not notebook.exists():
            raise ValueError(f"There is no notebook {notebook}.")
        parameters = given(notebook, nbformat.read(notebook, as_version=4), dict(a.split("=", 1) for a in arguments[2:]))
        output.parent.mkdir(parents=True, exist_ok=True)
        papermill.execute_notebook(str(notebook), str(output), parameters, kernel_name="python3", progress_bar=False)
    except ValueError as e:
        print(e, file=sys.stderr)
        return 1
    except papermill.PapermillExecutionError as e:
        print(f"{notebook} stopped in a cell: {e.ename}: {e.evalue} (see {output}).", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
