"""Packs a copy of what git knows as a source archive, installs that into an empty folder, as a user would, and tries it from elsewhere.

Every file of the package is there and no other, every module is imported, the console script answers, and the paper's numbers are read.
Development tools are hidden from the import, since the package must not need nbdev, papermill, jupyter, snakemake or datasets.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from check import copied

root = Path(__file__).resolve().parent.parent
PROGRAM = """
import contextlib, importlib, io, pathlib, runpy, sys
for name in ("nbdev", "fastcore", "papermill", "IPython", "jupyterlab", "nbformat", "snakemake", "datasets", "pytest"):
    sys.modules[name] = None
import maga
folder = pathlib.Path(maga.__file__).parent
assert folder == pathlib.Path(sys.argv[1]) / "maga", folder
modules = [".".join(p.relative_to(folder.parent).with_suffix("").parts) for p in folder.rglob("*.py") if p.stem not in ("_modidx", "__main__", "__init__")]
for module in modules:
    importlib.import_module(module)
from maga.experiments.report import paper_numbers
assert all(len(paper_numbers(table)) for table in range(1, 9))
script, sys.argv = folder.parent / "bin" / "maga", ["maga", "--help"]
with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
    runpy.run_path(str(script), run_name="__main__")
assert "forget" in said.getvalue(), said.getvalue()
print(f"maga {maga.__version__}: {len(modules)} modules import without the development tools")
"""


def files_of(package: Path) -> set[str]:
    return {p.relative_to(package).as_posix() for p in package.rglob("*") if p.is_file() and p.suffix != ".pyc"}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        source, installed = copied(root, Path(folder, "source")), Path(folder, "installed")
        subprocess.run([sys.executable, "setup.py", "--quiet", "sdist"], check=True, cwd=source)
        (archive,) = (source / "dist").iterdir()
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", installed, archive], check=True, cwd=folder)
        if odd := files_of(source / "maga") ^ files_of(installed / "maga"):
            sys.exit(f"The package and what is installed differ in {', '.join(sorted(odd))}: see package_data in setup.py.")
        subprocess.run([sys.executable, "-c", PROGRAM, installed], check=True, cwd=folder, env=os.environ | {"PYTHONPATH": str(installed)})
