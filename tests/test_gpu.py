"""`make gpu`: what its log says is left. The whole of it runs on a pretended GPU (tools/simcuda)."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import gpu

from .forked import ROOT


@pytest.mark.parametrize("left, failed, said", [(2, 0, ["2 of 9 rows left"]), (0, 3, ["3 of 9 rows failed; --retry"]), (0, 0, [])])
def test_failed_rows_are_named(left, failed, said, monkeypatch, tmp_path):
    "A row that failed with the present code is not run again without being asked for, but it is not finished either."
    for name in ("specs_of", "cells_of", "experiment"):
        monkeypatch.setattr(gpu, name, lambda *given: None)
    monkeypatch.setattr(gpu, "open_session", lambda settings: SimpleNamespace(store=SimpleNamespace(tidy=lambda: None)))
    monkeypatch.setattr(gpu, "missing_of", lambda specs, session, retry=False: (left + failed * retry, 9))
    lines = gpu.what_is_left(["table6"], None, tmp_path)
    assert len(lines) == len(said) and all(f"table6: {text}" in line for text, line in zip(said, lines, strict=True))


def test_without_pytest_the_rest_goes_on_and_the_log_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(gpu.ONCE, "benchmark", lambda folder: True)
    assert gpu.run_stages(["tests", "benchmark"], [], tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["benchmark.done"]
    monkeypatch.setattr(gpu, "open_session", lambda settings: SimpleNamespace(store=SimpleNamespace(tidy=lambda: None)))
    assert gpu.what_is_left(["tests", "benchmark"], None, tmp_path) == ["tests: not passed yet, pytest is not installed"]


def test_a_pretended_gpu_needs_a_compiler():
    "Without one nothing is tested, which is no success."
    ended = subprocess.run([sys.executable, "tools/simcuda/run.py"], cwd=ROOT, env=os.environ | {"CXX": "no-compiler"}, capture_output=True, text=True)
    assert ended.returncode == 1 and "no C++ compiler" in ended.stderr
