"""`make simcuda`: the package on a pretended GPU, in a process of its own. Arguments go to pytest, for example `-k second_device`."""

import os
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

if __name__ == "__main__":
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        sys.exit("There is no C++ compiler, so nothing was tested on the pretended GPU.")
    sys.path[:0] = [str(HERE), str(ROOT)]
    import device  # noqa: F401  (before anything asks torch for a GPU)
    import pytest

    given = sys.argv[1:]
    where = [] if any(Path(a.split("::")[0]).exists() for a in given) else [str(HERE), str(ROOT / "tests")]
    not_imitated = "tests/test_fast.py::test_the_vit_fits_12_gb_of_a_gpu"  # memory
    status = pytest.main(["-m", "cuda", "--rootdir", str(ROOT), "--deselect", not_imitated, *given, *where])
    sys.stdout.flush()
    os._exit(status)  # the threads of the pretended devices do not end by themselves
