"""A package outside registers a method or a judge by an entry point; a broken one is named and stops nothing."""

import importlib
import linecache
import math
import os
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch

from maga.experiments import runs, scores
from maga.experiments.report import line_of, paper_numbers
from maga.experiments.session import Session, resolve, transition_keys, transition_of
from maga.experiments.settings import Cell
from maga.experiments.store import Spec, Store, key_of
from maga.judges.contract import LabelJudge
from maga.judges.named import KINDS, JudgeKind
from maga.measures import contract
from maga.methods.contract import METHODS, code_of, method

METHOD = """
from maga.methods.contract import FitOnly, method, plain_fit

@method("shrug", {"digits": FitOnly(plain_fit(1, 32, "sgd", 0.01))}, source="a test")
def shrug(model, split, config, generator, progress=None):
    "The original, unchanged."
    return model
"""
ASKED = """
from maga.experiments.report import EXPERIMENTS
from maga.experiments.session import config_of
from maga.experiments.settings import settings_from
from maga.methods.contract import METHODS, get_method

settings = settings_from(preset="smoke")
cells = [c for c in EXPERIMENTS["methods"].cells(settings) if c.method == "shrug"]
print(get_method("shrug").source, "shrug" in METHODS, len(cells), config_of(cells[0].spec).fit.epochs)
"""


def asked(folder: Path, program: str, **modules: str) -> subprocess.CompletedProcess[str]:
    "What Python says where packages with these modules are installed in the folder."
    for name, body in modules.items():
        (folder / f"{name}.py").write_text(body)
        about = folder / f"{name}-1.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (about / "entry_points.txt").write_text(f"[maga.methods]\n{name} = {name}\n")
    paths = os.pathsep.join(p for p in (str(folder), os.environ.get("PYTHONPATH", "")) if p)
    return subprocess.run([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)


JUDGE = """
import torch
from maga.judges.contract import LabelJudge
from maga.judges.named import KINDS, JudgeKind

KINDS["mirror"] = JudgeKind("mirror", "none", lambda model, exemplars, *_: LabelJudge(torch.eye(len(exemplars.classes)), exemplars, "mirror", "1"))
"""


def test_packages_outside_add_a_method_to_registry_and_tables_and_a_judge_to_the_command(tmp_path):
    out = tmp_path / "T.safetensors"
    judged = f"from maga.judges.__main__ import main; main(['--data', 'digits', '--judge', 'mirror', '--out', {str(out)!r}])"
    done = asked(tmp_path, ASKED + judged, shrugging=METHOD, mirroring=JUDGE)
    method, *judge = done.stdout.splitlines() or [""]
    assert method.split() == ["a", "test", "True", "1", "1"], done.stderr
    assert "10 classes" in "".join(judge) and out.exists(), done.stderr


def test_a_broken_package_is_named_and_one_with_a_method_of_ours_does_not_replace_it(tmp_path):
    "It keeps its other methods."
    both = METHOD + METHOD.replace('"shrug"', '"maga"')
    program = "from maga.methods.contract import get_method; print(get_method('maga').source, get_method('shrug').source); get_method('broken')"
    done = asked(tmp_path, program, broken_methods="import nothing_of_that_name", taking=both)
    assert "broken_methods" in done.stderr and "could not be loaded" in done.stderr
    assert "There is no method 'broken'" in done.stderr
    assert "taking has methods of our names (maga); ours are kept" in done.stderr, done.stderr
    assert done.stdout.split() == ["MaGA,", "eq.", "5–10,", "Algorithm", "1,", "Table", "5", "a", "test"]


def test_a_method_of_another_package_that_was_edited_is_run_again(tmp_path, monkeypatch):
    "Its code is part of the key of its runs, and of no other."
    monkeypatch.syspath_prepend(tmp_path)
    session, keys = Session(Store(tmp_path / "r"), "cpu"), dict[str, list[str]]()
    monkeypatch.setitem(METHODS, "shrug", None)  # as it was afterwards
    for module in (METHOD, METHOD, METHOD + "# edited\n"):
        (tmp_path / "shrugging.py").write_text(module)
        linecache.clearcache()
        importlib.invalidate_caches()
        sys.modules.pop("shrugging", None)
        importlib.import_module("shrugging")
        for name in ("shrug", "ssd"):
            spec = Spec("digits", "class", "nine", "small_cnn", name, "digits", recipe="smoke")
            keys[name] = [*keys.get(name, []), resolve(session, spec).key]
    assert keys["shrug"][0] == keys["shrug"][1] != keys["shrug"][2] and len({*keys["ssd"]}) == 1
    monkeypatch.delitem(sys.modules, "shrugging")


@dataclass(frozen=True)
class Choices:
    "Settings that a JSON text does not show."

    loss: Callable = torch.nn.functional.cross_entropy
    clip: float | None = None
    weights: torch.Tensor | None = None


def test_settings_of_a_foreign_method_that_are_no_text_have_keys_of_their_own(tmp_path, monkeypatch):
    "Functions, infinities and long tensors."
    monkeypatch.setitem(METHODS, "chosen", None)
    middle = torch.cat([torch.zeros(900), torch.ones(200), torch.zeros(900)])
    presets = {"a": Choices(), "b": Choices(torch.nn.functional.mse_loss), "c": Choices(clip=math.inf)}
    presets |= {"d": Choices(weights=torch.zeros(2000)), "e": Choices(weights=middle), "f": Choices(weights=middle.clone())}
    method("chosen", presets, source="a test")(lambda model, split, config, generator, progress=None: model)
    session, spec = Session(Store(tmp_path), "cpu"), Spec("digits", "class", "nine", "small_cnn", "chosen", "a", recipe="smoke")
    keys = [resolve(session, replace(spec, preset=p)).key for p in presets]
    assert len({*keys}) == 5 and keys[-1] == keys[-2]


class Typed:
    "A module without a file, as the one that a notebook's cells are typed into."

    def __init__(self, monkeypatch):
        self.module, self.cells = types.ModuleType("typed"), 0
        monkeypatch.setitem(sys.modules, "typed", self.module)

    def __call__(self, cell: str) -> dict:
        "Run a cell; what the module then holds."
        self.cells += 1
        name = f"<cell {self.cells}>"
        linecache.cache[name] = (len(cell), None, cell.splitlines(keepends=True), name)
        exec(compile(cell, name, "exec"), vars(self.module))
        return vars(self.module)


OUTER = """
def outer(model):
    return [Part(bias).apply(x) for x in model]
"""
PART = """
class Part:
    sign = 1
    def __init__(self, by):
        self.by = by
    def apply(self, x):
        return self.sign * shifted(x, self.by)
"""
SHIFTED = """
def shifted(x, by):
    return x + by
"""


def test_the_code_of_a_notebooks_function_is_also_that_of_what_it_names(monkeypatch):
    "Functions, classes and numbers, in turn; not what has the name of an attribute alone, and the same however often it is asked."
    typed = Typed(monkeypatch)
    typed("bias = 1\nsign = 5"), typed(SHIFTED), typed(PART)
    run = typed(OUTER)["outer"]
    codes = [code_of(run)]
    for edit in (SHIFTED.replace("+", "-"), "bias = 2", PART.replace("sign = 1", "sign = 2"), PART.replace("self.sign", "3")):
        typed(edit)
        codes.append(code_of(run))
    assert len({*codes}) == len(codes)
    typed("sign = 6\ndef other(): pass")
    assert code_of(run) == codes[-1]
    for cell in ("bias = 1", SHIFTED, PART, OUTER):
        typed(cell)
    assert code_of(typed.module.outer) == codes[0]


def like_the_next(shift):
    "A kind of judge to which each class is like the one that comes so much later."

    def make(model, exemplars, options, classifier):
        table = torch.eye(len(exemplars.classes))
        return LabelJudge(table + 0.5 * table.roll(shift, 1), exemplars, "next", "this test")

    return JudgeKind("next", "none", make)


def test_a_judge_of_ones_own_that_was_edited_is_asked_again(tmp_path, monkeypatch):
    "T and the rows of its methods have other keys; a judge that is built in has the same."
    session = Session(Store(tmp_path), "cpu")
    spec = Spec("digits", "class", "nine", "small_cnn", "no_noise", "digits", recipe="smoke", judge="next")
    keys, told = [], []
    for shift in (1, 4, 1):
        monkeypatch.setitem(KINDS, "next", like_the_next(shift))
        keys.append((resolve(session, spec).key, *transition_keys(session, spec)))
        told.append(transition_of(session, spec).S[0, :6].tolist())
    assert keys[0] == keys[2] and not {*keys[0]} & {*keys[1]}
    assert told == [[1, 0.5, 0, 0, 0, 0], [1, 0, 0, 0, 0.5, 0], [1, 0.5, 0, 0, 0, 0]]
    superclasses = [transition_keys(session, replace(spec, judge="superclasses"))]
    monkeypatch.setitem(KINDS, "superclasses", JudgeKind("superclasses", "none", partial(KINDS["superclasses"].make)))
    assert transition_keys(session, replace(spec, judge="superclasses")) != superclasses[0]
    assert key_of("transition", "superclasses", 10, ("digits", 0)) == superclasses[0][0]


OWN = """
from maga.measures.contract import model_metric, population_metric
@model_metric("own", ideal="0", unit="u")
def own(evidence, subject): return 5.0
@population_metric("owns", ideal="0", unit="u")
def owns(evidence): return 5.0, 0.0
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    "A session with a run and its retrain, measured by every metric there is, which is none."
    with pytest.MonkeyPatch.context() as patched:
        for module in (contract, runs, scores):
            patched.setattr(module, "METRICS", {})
        session = Session(Store(tmp_path_factory.mktemp("measured")), "cpu")
        spec = Spec("digits", "class", "nine", "small_cnn", "random_label", "digits", recipe="smoke", measures="all")
        return session, spec, runs.run_batch([spec, replace(spec, method="retrain", measures="table")], session)


@pytest.fixture
def only_own(measured, monkeypatch):
    "What types a cell, where no metric is registered but by cells."
    registered = {}
    for module in (contract, runs, scores):
        monkeypatch.setattr(module, "METRICS", registered)
    return Typed(monkeypatch)


def test_a_notebook_that_defines_a_metric_of_ours_makes_it_no_users(monkeypatch):
    "Its cells register the metric anew, and rows from before still have its values."
    monkeypatch.setitem(contract.METRICS, "MIA", replace(contract.METRICS["MIA"]))
    assert runs.own_metrics() == {}


def test_a_row_says_which_metrics_of_ones_own_it_lacks(measured, only_own):
    "And those that it was measured with by other code, in the table's note, too; nothing is run again."
    session, spec, (row, _) = measured
    assert "own" not in row.metrics and runs.run_batch([spec], session) == [row]
    only_own(OWN)
    (later,) = runs.run_batch([spec], session)
    assert math.isnan(later.metrics["own"]) and later.missing["own"] == runs.OTHERWISE_MEASURED and session.store.get(row.key) == row
    line = line_of(Cell("resnet18", "class", "nine", "random_label", spec), [later], paper_numbers(None))
    assert line["note"] == f"own: {runs.OTHERWISE_MEASURED}"
    session.store.row_path(row.key).unlink()
    (anew,) = runs.run_batch([spec], session)
    assert (anew.key, anew.metrics["own"], anew.missing) == (row.key, 5.0, {})
    assert runs.as_registered(anew) is anew
    only_own(OWN.replace("5.0", "6.0"))
    assert math.isnan(runs.as_registered(anew).metrics["own"])


def test_a_score_of_an_edited_metric_of_ones_own_is_computed_anew(measured, only_own):
    "And is kept as long as its code is."
    session, _, rows = measured
    values = []
    for cell in (OWN, OWN.replace("5.0", "6.0"), ""):
        only_own(cell)
        values.append(scores.scores_of_many(session, rows[:1], rows[1:])["owns"].values)
    (path,) = (session.store.folder / "scores").glob("*.json")
    before = path.stat().st_mtime_ns
    scores.scores_of_many(session, rows[:1], rows[1:])
    assert values == [(5.0,), (6.0,), (6.0,)] and path.stat().st_mtime_ns == before
