"""`make gpu`: what its log says is left. The whole of it runs on a pretended GPU (tools/simcuda)."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from maga.checks import MagaError
from maga.experiments.settings import Settings

from .conftest import raising
from .forked import ROOT, script

gpu = script("gpu")


@pytest.mark.parametrize("left, failed, said", [(2, 0, ["2 of 9 rows left"]), (0, 3, ["3 of 9 rows failed; --retry"]), (0, 0, [])])
def test_failed_rows_are_named(left, failed, said, monkeypatch, tmp_path):
    "A row that failed with the present code is not run again without being asked for, but it is not finished either."
    for name in ("specs_of", "cells_of", "experiment", "for_stage"):
        monkeypatch.setattr(gpu, name, lambda *given: None)
    monkeypatch.setattr(gpu, "open_session", lambda settings: SimpleNamespace(store=SimpleNamespace(tidy=lambda: None)))
    monkeypatch.setattr(gpu, "missing_of", lambda specs, session, retry=False: (left + failed * retry, 9))
    lines = gpu.what_is_left(["table6"], None, tmp_path)
    assert len(lines) == len(said) and all(f"table6: {text}" in line for text, line in zip(said, lines, strict=True))


def test_without_pytest_the_rest_goes_on_and_the_log_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(gpu.ONCE, "benchmark", lambda folder, settings: True)
    assert all(gpu.passed(name, Settings(), tmp_path) for name in ("tests", "benchmark"))
    assert [p.name for p in tmp_path.iterdir()] == ["benchmark.done"]
    monkeypatch.setattr(gpu, "open_session", lambda settings: SimpleNamespace(store=SimpleNamespace(tidy=lambda: None)))
    assert gpu.what_is_left(["tests", "benchmark"], None, tmp_path) == ["tests: not passed yet, pytest is not installed"]


def test_a_pretended_gpu_needs_a_compiler():
    "Without one nothing is tested, which is no success."
    ended = subprocess.run(
        [sys.executable, "tools/simcuda/run.py"], cwd=ROOT, env=os.environ | {"CXX": "no-compiler"}, capture_output=True, text=True
    )
    assert ended.returncode == 1 and "no C++ compiler" in ended.stderr


@pytest.fixture
def stages(monkeypatch, tmp_path):
    "Runs `make gpu` with what each stage does, a call; gives the stages that were begun, the status and the log."

    def run(does):
        begun = []

        def stage(given):
            name = given[0] if isinstance(given, list) else "benchmark"
            begun.append(name)
            return does.get(name, lambda: 0)()

        monkeypatch.setattr(gpu.command, "main", stage)
        monkeypatch.setitem(gpu.ONCE, "benchmark", lambda folder, settings: stage(folder) == 0)
        status = gpu.main(["--stages", "benchmark,table1,table6", "--results", str(tmp_path)])
        return begun, status, (tmp_path / "gpu.log").read_text()

    for name, stand_in in {
        "is_available": lambda: True,
        "get_device_name": lambda device: "A GPU",
        "synchronize": lambda d: None,
        "empty_cache": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(gpu, "what_is_left", lambda *given: [])
    return run


def test_a_stage_has_only_what_it_knows(monkeypatch):
    "A class that is not in a table leaves the table out; what has no runs takes no class."
    rocket = Settings("paper", device="cuda", target=("rocket",), backbone=("resnet18",), methods=("maga",))
    assert gpu.with_runs(["tests", "table1", "table2", "figure4", "figure5", "benchmark"], rocket) == ["tests", "table1", "figure5", "benchmark"]
    asked = []
    monkeypatch.setattr(gpu.command, "main", lambda line: asked.append(line) or 0)
    assert all(gpu.passed(name, rocket, ROOT, ["--processes=2"]) for name in ("table1", "figure5"))
    assert asked[0][-1] == "--processes=2" and "rocket" in asked[0] and not {"rocket", "maga"} & {*asked[1]}


def test_a_stage_that_fails_does_not_stop_the_others(stages):
    "Whether it says so or raises; the log names it."
    for wrong in (lambda: 1, raising(torch.OutOfMemoryError("CUDA out of memory."))):
        begun, status, log = stages({"benchmark": wrong, "table1": lambda: 1})
        assert (begun, status) == (["benchmark", "table1", "table6"], 1)
        assert log.endswith("benchmark: ended with an error\ntable1: ended with an error\n")
    assert stages({})[1] == 0 and stages({})[2].endswith("nothing is left\n")


def test_an_interrupted_stage_ends_the_command(stages):
    "By a signal or the clock: the experiments' command says so with its status."
    for stopped in (lambda: 130, raising(KeyboardInterrupt())):
        begun, status, log = stages({"table1": stopped})
        assert (begun[-1], status) == ("table1", 1) and log.endswith("interrupted\n")


def test_a_broken_gpu_ends_the_command(stages, monkeypatch):
    "Rows that come after would fail too, and be kept."
    begun, status, log = stages({"table1": raising(SystemExit("A GPU does not work any more."))})
    assert (begun[-1], status) == ("table1", 1) and log.endswith("A GPU does not work any more.\n")
    monkeypatch.setattr(torch.cuda, "synchronize", raising(torch.AcceleratorError("CUDA error: an illegal memory access was encountered")))
    begun, status, log = stages({"table1": raising(RuntimeError("illegal memory access"))})
    assert (begun[-1], status) == ("table1", 1) and "table1 broke the GPU" in log


def test_a_stage_without_data_is_named_in_the_log(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "open_session", lambda settings: SimpleNamespace(store=SimpleNamespace(tidy=lambda: None)))
    monkeypatch.setattr(gpu, "rows_left", raising(MagaError("cifar100 was not found.")))
    assert gpu.what_is_left(["table6"], None, tmp_path) == ["table6: cifar100 was not found."]
