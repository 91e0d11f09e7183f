"Tuning: the same search for every method, resumable, its winners the presets that the package has."

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from maga.data import MagaError
from maga.experiments.presets import PRESETS
from maga.experiments.published import labels_only, published_folder
from maga.experiments.report import EXPERIMENTS, Found, compute, open_session
from maga.experiments.search import HELD_OUT, SPACES, objective, said_trials, trials_of, tuned_presets, tuning_cells, tuning_table, winners
from maga.experiments.settings import Settings
from maga.experiments.store import RETRAIN, TRAINED
from maga.measures.metrics import Measurement
from maga.methods.contract import METHODS, get_method, with_change
from maga.methods.restart import weight_layers
from maga.methods.tuning import TUNED_FILE, gap
from maga.models import BUILT_HERE
from maga.sources import CIFAR20_NAMES, CIFAR100_COARSE, TUNING, load, put_aside

from .forked import ROOT, Forked, executed

STUDIES = ROOT / "nbs" / "experiments" / "studies"


def test_every_method_has_the_same_number_of_trials():
    "Sixteen cells for each method and held-out class, the first the published setting, drawn alike in every process."
    cells = [c for c in tuning_cells(Settings("small")) if c.method not in TRAINED]
    counts = pd.DataFrame([(c.method, c.target) for c in cells]).value_counts()
    assert set(counts) == {16} and len(counts) == 2 * (len(METHODS) - 3)  # without the retrains: whole, short, of the head
    for name in SPACES:
        assert trials_of(name, 16, "cifar10") == trials_of(name, 16, "cifar10") and trials_of(name, 16, "cifar10")[0] == ()
    rates = [{dict(t)[next(iter(s.fields))] for t in trials_of(name, 16, "cifar10")[1:]} for name, s in SPACES.items()]
    assert {len(r) for r in rates} == {15}  # every value of the first range is another one


def test_the_search_refuses_seeds_of_the_users():
    "It has its own, which are those of every method."
    with pytest.raises(MagaError, match="not 5,6: leave --seeds out"):
        tuning_cells(Settings("laptop", seeds=(5, 6)))


def test_a_search_that_starts_elsewhere_names_its_start():
    "The user's changes are a part of every trial's, and of the best one's."
    settings = Settings("laptop", changes=(("maga", "tau", 0.2), ("maga", "noise.lr", 0.5)), results="nowhere")
    cells = [c for c in tuning_cells(settings) if c.method in (*TRAINED, "maga")]
    table = tuning_table(Found(EXPERIMENTS["tuning"], settings, open_session(replace(settings, results="published")), cells, [[]] * len(cells)))
    first, *others = table[table.method == "maga"].changes
    assert first == "maga.tau=0.2,maga.noise.lr=0.5" and all(c.endswith("maga.noise.lr=0.5") and c.count("tau") == 1 for c in others)
    done = table.assign(objective=1.0 + (table.trial == 0), cost=0.1, TV=1.0, A_r=1.0, A_f=1.0, MIA=1.0, seconds=1.0)
    assert any("with starting settings" in s for s in said_trials(done))


@pytest.mark.parametrize("number", ("A_r", "A_f", "MIA"))
def test_a_gap_counts_to_either_side(number):
    "A quarter of each difference, and of the TV."
    retrain = Measurement(90.0, 10.0, 20.0, 0.0, 0.0)
    for by in (-4.0, 4.0):
        assert gap(replace(retrain, **{number: getattr(retrain, number) + by}, TV=8.0), retrain) == 3.0


@pytest.mark.parametrize("data", HELD_OUT)
def test_shares_cover_each_range(data):
    "A drawn number lies in its range, and each fifteenth of the range, in ratio or evenly, has one."
    for space in SPACES.values():
        for place, values in space.within(data).items():
            if hasattr(values, "low"):
                drawn = torch.tensor([dict(t)[place] for t in space.trials(16, data)[1:]], dtype=torch.float64)
                low, high = torch.tensor([values.low, values.high], dtype=torch.float64)
                shares = (drawn - low) / (high - low) if values.even else (drawn / low).log() / (high / low).log()
                begins = torch.arange(15) / 15
                assert ((shares.sort().values > begins - 0.01) & (shares.sort().values < begins + 1 / 15 + 0.01)).all()


@pytest.mark.parametrize("preset", PRESETS)
def test_a_search_asks_for_layers_that_the_network_has(preset):
    "No trial resets or negates a layer that is not there, and both fields are searched."
    settings = Settings(preset)
    network = settings.network("resnet18")
    there = len(weight_layers(BUILT_HERE[network.name](10, 8)))
    assert network.layers in (None, there)
    asked = [(place, value) for c in tuning_cells(settings) for place, value in c.changes if place in ("k", "layer")]
    assert {place for place, _ in asked} == {"k", "layer"} and max(value for _, value in asked) <= (network.layers or 12) - 1 < there


def test_no_table_shows_what_tuning_saw():
    "The held-out classes are forgotten by no other experiment, and what replaces the test set is a part of the training images."
    for preset in ("paper", "smoke"):
        shown = {(c.spec.data, c.spec.target) for e in EXPERIMENTS.values() if e.name != "tuning" for c in e.cells(Settings(preset))}
        seen = {(c.spec.data.removesuffix(TUNING), c.spec.target) for c in tuning_cells(Settings(preset))}
        assert preset == "smoke" or not shown & seen  # ten digits stand for more than ten classes
    assert all(c.spec.data.endswith(TUNING) for c in tuning_cells(Settings("paper")))
    superclass = dict(zip(labels_only(published_folder() / "labels" / "cifar100.safetensors")[0].classes, CIFAR100_COARSE, strict=True))
    shown = {c.spec.target for e in EXPERIMENTS.values() if e.name != "tuning" for c in e.cells(Settings("laptop"))}
    touched = {superclass[t] for t in shown & set(superclass)} | {CIFAR20_NAMES.index(t) for t in shown & set(CIFAR20_NAMES)}
    free = sorted(name for name, k in superclass.items() if k not in touched)
    assert HELD_OUT["cifar100"] == (free[0], free[-1]) and len(free) < 100
    train, test = load("digits")
    parts = load("digits" + TUNING)
    rows = [{i.numpy().tobytes() for i in images.images} for images in (*parts, train, test)]
    assert not rows[0] & rows[1] and rows[0] | rows[1] == rows[2] and not (rows[0] | rows[1]) & rows[3]
    shares = torch.bincount(parts[1].labels) / torch.bincount(train.labels)
    assert (shares - 0.2).abs().max() < 0.01 and put_aside(train)[0].digest == parts[0].digest


def test_objective_is_a_sum_of_distances_in_units():
    "In units of the retrains' standard deviations, by hand; a unit is at least a point."
    three = [{"A_r": a, "MIA": b, "A_f": c} for a, b, c in ((70, 1, 0), (73, 5, 0), (76, 9, 0))]  # deviations 3, 4, 0
    assert objective({"A_r": 64, "MIA": 13, "A_f": 2.5, "TV": 30}, three, 20) == pytest.approx(1.5 + 3 + 2 + 2.5)
    assert objective({"A_r": 73, "MIA": 5, "A_f": 0, "TV": 0}, three, 20) == 0
    assert objective({"A_r": 73, "MIA": 5, "A_f": 0, "TV": 0.25}, three, 0.5) == 0.25


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    "Two methods and the retrains on digits: settings and the table's path."
    settings = Settings(device="cpu", results=str(tmp_path_factory.mktemp("tuning")), target=("aquarium_fish",), methods=("retrain", "ssd", "head_distillation"))
    return settings, compute("tuning", settings)


def test_the_search_resumes(searched):
    "A lost row is computed again, alone, and the table is the same."
    settings, result = searched
    rows = {p: p.stat().st_mtime_ns for p in Path(settings.results, "rows").iterdir()}
    lost = next(p for p in rows if json.loads(p.read_text())["spec"]["method"] == "ssd")
    lost.unlink()
    again = compute("tuning", settings, open_session(settings)).table
    changed = [p for p in rows if p.stat().st_mtime_ns != rows[p]]
    assert changed == [lost]
    pd.testing.assert_frame_equal(again.drop(columns="seconds"), result.table.drop(columns="seconds"))


def test_the_table_judges_by_three_retrains(searched):
    "J of a trial again, from the table's own lines of the retrains."
    table = searched[1].table
    for target, some in table[table.note == ""].groupby("target"):
        gold = some[some.method == RETRAIN][["A_r", "MIA", "A_f"]].to_dict("records")
        between = some[some.method == RETRAIN].TV.mean()
        tried = some[~some.method.isin(TRAINED)]
        assert target in HELD_OUT["cifar100"] and len(gold) == 3 and len(tried) == 4
        for line in tried.to_dict("records"):
            assert line["objective"] == pytest.approx(objective(line, gold, between))
    best = winners(table)
    assert set(best.index) == {"ssd", "head_distillation"}
    for method, line in best.iterrows():
        means = {trial: some.objective.mean() for trial, some in table[table.method == method].groupby("trial")}
        assert line.trial == min(means, key=means.get) and line.objective == pytest.approx(min(means.values())), method


def test_the_table_needs_no_logits_once_it_was_drawn(searched):
    "So that rows of a search can be published: the distances are kept beside them."
    settings, result = searched
    rows = {p: p.stat().st_mtime_ns for p in Path(settings.results, "rows").iterdir()}
    for file in Path(settings.results, "outputs").iterdir():
        file.unlink()
    again = compute("tuning", settings, open_session(settings)).table
    assert {p: p.stat().st_mtime_ns for p in rows} == rows
    columns = [c for c in again if c != "seconds"]
    pd.testing.assert_frame_equal(again[columns], result.table[columns])


def searches():
    "Name of presets -> the published table that they come from, of the class that was forgotten."
    tables = {n: compute("tuning", Settings(preset, data_root="no data here", results="published", bfloat16=True)).table for n, preset in (("small_tuned", "small"), ("haar_tuned", "laptop"))}
    return {name: table[table.target == forgotten] for (name, table), forgotten in zip(tables.items(), ("deer", "aquarium_fish"), strict=True)}


def test_winners_follow_from_the_tables():
    "The presets that were tuned are the best trials of the two searches, each among its method's trials."
    known, tables = json.loads(TUNED_FILE.read_text()), searches()
    assert set(known) == set(tables)
    for (name, table), trials in zip(tables.items(), (16, 8), strict=True):
        assert known[name] == tuned_presets(table)
        for method, about in known[name].items():
            config = get_method(method).preset(about["preset"])
            for place, value in about["changes"].items():
                config = with_change(config, place, value)
            assert get_method(method).preset(name) == config
        tried = table[~table.method.isin(TRAINED)]
        counts = tried.groupby(["method", "target"]).trial.nunique()
        assert set(counts) == {trials} and set(counts.index.get_level_values("method")) == set(SPACES)
    assert not tables["haar_tuned"].note.any()
    small = tables["small_tuned"]
    assert [(r.method, r.trial) for r in small[small.note != ""].itertuples()] == [("scrub", 1)]  # its loss is not a number
    assert small[~small.method.isin(TRAINED)].cost.max() < 1 / 3  # of a retrain of forty epochs


def test_a_method_without_a_space_says_so():
    with pytest.raises(MagaError, match="no search space"):
        trials_of("retrain_head", 16, "cifar10")


def test_the_notebook_runs(searched, tmp_path):
    "The study beside the rows that are there: spaces, trials, picture and sentences."
    settings = searched[0]
    parameters = ["preset=smoke", "device=cpu", f"results={settings.results}", "target=aquarium_fish", f"methods={','.join(settings.methods)}"]
    ended = Forked(executed, str(STUDIES / "tuning.ipynb"), str(tmp_path / "tuning.ipynb"), *parameters).ended()
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert Path(settings.results, "tuning", "tuning.png").stat().st_size > 5000
