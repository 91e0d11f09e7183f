"Processes for tests that start in milliseconds: they are forked from a server that has imported torch and the package once."

import importlib.util
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import torch
from execnb.shell import CaptureShell
from papermill.engines import Engine, papermill_engines

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "JUPYTER_PLATFORM_DIRS": "1"}  # of every process that a test starts
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["papermill", "sklearn.datasets", "sklearn.linear_model", "timm", "torch._dynamo", "maga.experiments.__main__", "maga.judges.__main__", "maga.own.command"]
)


def _child(function: Callable[..., int | None], arguments: Sequence[Any], folder: Path, environment: Mapping[str, str], written: Sequence[str]) -> None:
    for number, path in enumerate(written, 1):
        handle = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(handle, number)
        os.close(handle)
    os.chdir(folder)
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.exit(function(*arguments))


class Forked:
    "A function of a module in a process of its own, in the test's environment; what it returns is the process's exit code."

    def __init__(self, function: Callable[..., int | None], *arguments: Any, folder: Path = ROOT, **environment: str) -> None:
        self.arguments, self.written = arguments, tempfile.TemporaryDirectory()
        paths = [str(Path(self.written.name, name)) for name in ("out", "err")]
        for path in paths:
            Path(path).touch()
        environment = os.environ | ENVIRONMENT | environment
        self.process = SERVER.Process(target=_child, args=(function, arguments, folder, environment, paths))
        self.process.start()

    def alive(self) -> bool:
        return self.process.is_alive()

    def kill(self) -> None:
        "SIGKILL, and wait for the end."
        self.process.kill()
        self.process.join()

    def ended(self, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        "Wait for the end: exit code and what was written."
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.kill()
            raise TimeoutError(f"{self.arguments} ran for more than {timeout} seconds")
        out, err = (Path(self.written.name, name).read_text() for name in ("out", "err"))
        return subprocess.CompletedProcess(self.arguments, self.process.exitcode, out, err)


def script(name: str) -> ModuleType:
    "A script of `tools` as a module."
    if str(ROOT / "tools") not in sys.path:
        sys.path.append(str(ROOT / "tools"))  # scripts import each other
    described = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert described is not None and described.loader is not None
    module = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    return module


def tool(name: str, *arguments: str) -> int:
    "Run a script of `tools` with arguments: its exit code."
    return script(name).main(arguments)


class Here(Engine):
    "Cells run in this process, which has imported torch: a kernel would begin with seconds of imports."

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **_: Any) -> None:
        shell = CaptureShell()
        for index, cell in enumerate(nb_man.nb.cells):
            if cell.cell_type == "code":
                nb_man.cell_start(cell, index)
                cell.outputs = nbformat.from_dict(shell.run(cell.source))
                if shell.exc:
                    nb_man.cell_exception(cell, index, exception=shell.exc)
                    return
                nb_man.cell_complete(cell, index)


def executed(*arguments: str) -> int:
    "The script `execute` without a kernel."
    papermill_engines.register(None, Here)  # in the place of papermill's usual engine
    return tool("execute", *arguments)
