"""Installs the package into an empty folder, as a user would, and imports every module from elsewhere.

Development tools are hidden from the import, since the package must not need nbdev, papermill, jupyter, snakemake or datasets.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

root = Path(__file__).resolve().parent.parent
PROGRAM = """
import importlib, pathlib, sys
for name in ("nbdev", "fastcore", "papermill", "IPython", "jupyterlab", "nbformat", "snakemake", "datasets", "pytest"):
    sys.modules[name] = None
import maga
folder = pathlib.Path(maga.__file__).parent
assert folder == pathlib.Path(sys.argv[1]) / "maga", folder
modules = [".".join(p.relative_to(folder.parent).with_suffix("").parts) for p in folder.rglob("*.py") if p.stem not in ("_modidx", "__main__", "__init__")]
for module in modules:
    importlib.import_module(module)
print(f"maga {maga.__version__}: {len(modules)} modules import without the development tools")
"""

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, str(root)], check=True, cwd=folder)
        environment = os.environ | {"PYTHONPATH": folder}
        subprocess.run([sys.executable, "-c", PROGRAM, folder], check=True, cwd=folder, env=environment)
