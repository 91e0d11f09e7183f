"""Checks that need no test runner: what is exported is fresh, notebooks are clean, and none is missing from the tests.

nbdev's own commands return 0 when they find nothing, so the notebooks are counted here.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent


def state() -> dict[str, str]:
    "A hash of every file that git knows or would add."
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=root, capture_output=True, text=True, check=True).stdout.split("\n")
    return {n: hashlib.sha256((root / n).read_bytes()).hexdigest() for n in names if n and (root / n).is_file()}


def exports_are_fresh() -> str | None:
    "Exporting and cleaning must change nothing."
    before = state()
    for command in ("nbdev_export", "nbdev_clean"):
        subprocess.run([command], cwd=root, check=True)
    after = state()
    changed = sorted(n for n in before.keys() | after.keys() if before.get(n) != after.get(n))
    return f"`nbdev_export; nbdev_clean` changed {', '.join(changed)}: commit the result." if changed else None


def notebooks_are_whole() -> str | None:
    "Every exported module has its notebook, every experiment its parameters, and no output is an error."
    chapters = sorted((root / "nbs").glob("*.ipynb"))
    experiments = sorted((root / "nbs/experiments").rglob("*.ipynb"))
    modules = {p for p in (root / "maga").rglob("*.py") if p.name not in ("__init__.py", "_modidx.py")}
    exported = set()
    for path in chapters + experiments:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        if any(o["output_type"] == "error" for c in cells for o in c.get("outputs", [])):
            return f"{path.name} holds a cell that ended in an error: run it again."
        for cell in cells:
            first = "".join(cell["source"]).split("\n")[0]
            if first.startswith("#| default_exp "):
                exported.add(root / "maga" / (first.split()[-1].replace(".", "/") + ".py"))
        if path in experiments and not any("parameters" in c["metadata"].get("tags", []) for c in cells):
            return f"experiments/{path.name} has no cell tagged `parameters`: papermill would ignore what it is given."
    if modules != exported:
        odd = ", ".join(sorted(p.name for p in modules ^ exported))
        return f"Modules and notebooks do not match: {odd}."
    print(f"{len(chapters)} notebooks for nbdev_test, {len(experiments)} experiments, {len(modules)} modules.")
    return None if len(chapters) >= 10 else f"Only {len(chapters)} notebooks were found in nbs/."


if __name__ == "__main__":
    for check in (exports_are_fresh, notebooks_are_whole):
        if problem := check():
            sys.exit(problem)
