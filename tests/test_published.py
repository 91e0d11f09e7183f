"Tables drawn from published rows: without data and checkpoints, and equal to those that the notebooks show."

import ast
import contextlib
import io
import json
import math
import os
import re
from dataclasses import replace
from functools import cache, partial
from operator import attrgetter
from pathlib import Path
from unittest.mock import MagicMock

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from maga.data import MagaError, write_whole
from maga.experiments import expected, report, studies, tables
from maga.experiments.__main__ import print_result
from maga.experiments.catalogue import NO_ULIRA
from maga.experiments.claims import cases_of, mia_lower_than_most, paper_case, said_ablation, said_beyond, said_sweep, said_times, standing
from maga.experiments.presets import PRESETS
from maga.experiments.published import (
    ABOUT_FILES,
    ROWS,
    SCORES,
    PublishedSession,
    check_published,
    header_in,
    of_preset,
    publish,
    published_folder,
    read_about,
    read_json,
    read_rows,
    restore,
    retrain_file,
)
from maga.experiments.report import EXPERIMENTS, Result, compute, line_of, open_session, paper_numbers, precision, together
from maga.experiments.scores import floor_of, scores_of_many
from maga.experiments.session import Training, config_of, model_key, resolve
from maga.experiments.settings import Settings
from maga.experiments.store import RETRAIN, Row, Spec, Store
from maga.experiments.studies import forgotten_outputs
from maga.experiments.tables import flow, show_embeddings
from maga.training import RECIPES

NOTEBOOKS = {p.stem: p for p in (Path(__file__).parents[1] / "nbs" / "experiments").rglob("*.ipynb")}
SETTINGS = Settings("laptop", data_root="no data here", results="published")


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    "A session over the published rows, in a folder without data."
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    yield open_session(SETTINGS)
    os.chdir(before)


@cache
def result_of(session: PublishedSession, name: str) -> Result:
    "The experiment, computed once for all tests; its table is written."
    result = compute(name, SETTINGS, session)
    assert len(pd.read_csv(session.store.folder / name / "table.csv")) == len(result.table) > 0
    return result


def shown(output: dict) -> str:
    "What an output says, as HTML where it is a table; empty for a picture."
    data = output.get("data", {})
    return "" if "image/png" in data else "".join(output.get("text", data.get("text/html", data.get("text/plain", "")))).strip()


def kept_cells(name: str) -> list[tuple[str, list[str]]]:
    "Source of the notebook's code cells below its parameters, and what their outputs say."
    cells = json.loads(NOTEBOOKS[name].read_text(encoding="utf-8"))["cells"]
    code = [c for c in cells if c["cell_type"] == "code" and not c["metadata"].get("tags")]
    return [("".join(c["source"]), [s for o in c["outputs"] if (s := shown(o))]) for c in code]


def run_cell(source: str, names: dict) -> list[str]:
    "What a cell says when it runs: printed lines, and the HTML of what it displays."
    said, body = [], ast.parse(source).body
    names["display"] = lambda x: said.append(x._repr_html_())
    last = body.pop() if isinstance(body[-1], ast.Expr) and not source.endswith(";") else None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(ast.Module(body, []), name := "cell", "exec"), names)
        value = None if last is None else eval(compile(ast.Expression(last.value), name, "eval"), names)
    return [s.strip() for s in (printed.getvalue(), *said, value._repr_html_() if isinstance(value, pd.DataFrame) else "") if s.strip()]


@pytest.mark.parametrize("name", [*together(), "expected", "tuning"])
def test_a_notebook_is_drawn_from_published_rows(session, name, monkeypatch):
    "Nothing is trained or loaded, and every table and sentence is what the notebook shows. Pictures are not drawn."
    opened = cache(lambda settings: session if settings.preset == SETTINGS.preset else open_session(settings))
    monkeypatch.setattr(report, "open_session", opened)

    def computed(name, settings, *_, **__):
        return result_of(session, name) if settings == SETTINGS else compute(name, settings, opened(settings))

    monkeypatch.setattr(report, "compute", computed)
    monkeypatch.setattr(expected, "results_of", lambda *_: [result_of(session, n) for n in together()])
    names, compared = dict(SETTINGS.texts()), 0
    with pd.option_context("display.max_colwidth", 50, "display.max_rows", 60):  # which a notebook may change
        for source, kept in kept_cells(name):
            said = run_cell(source, names)
            names |= {n: MagicMock() for n in names if n.startswith("show_")}
            assert said == kept, source
            compared += len(kept)
    assert compared > 1 and isinstance(session, PublishedSession)


def test_a_drawing_session_holds_the_rows_and_scores_of_its_preset(session, tmp_path):
    drawn, everything = PublishedSession(published_folder(), tmp_path / "published" / "small", "small"), read_rows(published_folder())
    held = {row.key for row in drawn.store.rows()}
    assert held == {key for key, row in everything.items() if of_preset(row.spec, PRESETS["small"])} == everything.keys() - {row.key for row in session.store.rows()}
    scores = [s for file in (drawn.store.folder / "scores").iterdir() for s in json.loads(file.read_text()).values()]
    assert held and scores and all(s["of"].keys() <= held for s in scores)
    assert {file.stem for file in (drawn.store.folder / "outputs").iterdir()} <= held


def test_a_restored_retrain_answers_for_what_is_forgotten(session):
    "It is published with no other outputs: sentences and flows are drawn from them, a picture of all test images leaves it out."
    one = replace(SETTINGS, seeds=(1,))
    result = compute("figure6", one, session)
    assert flow(result, one, session).loc["retrain"].drop("to change").sum() == pytest.approx(100)
    assert show_embeddings(result, one, session).texts[0].get_text() == "No run has kept its outputs on all test images."
    for name in ("methods", "rocket"):
        said = forgotten_outputs(compute(name, replace(SETTINGS, methods=("retrain",), seeds=(0,)), session), session)
        assert said["retrain"].shape == (100, 100)


def with_rows(result: Result, change) -> Result:
    "The result with other rows: `change` gives those of a cell."
    rows = [change(cell, some) for cell, some in zip(result.cells, result.rows, strict=True)]
    lines = [line_of(c, some, paper_numbers(result.experiment.paper)) for c, some in zip(result.cells, rows, strict=True)]
    return replace(result, rows=rows, table=pd.DataFrame(lines).assign(TV_floor=list(result.table.TV_floor)))


def test_pictures_compare_rows_of_one_seed(session, monkeypatch):
    "Where seed 0 of a method is missing, and that of another failed, no method is drawn by seed 0, and none is left out."

    def change(cell, rows):
        first, *others = sorted(rows, key=lambda r: r.spec.training_seed)
        return others if cell.method == "maga" else [replace(first, metrics={}, error="no"), *others] if cell.method == "ssd" else [first, *others]

    asked = []
    for module in (tables, studies):
        monkeypatch.setattr(module, "kept_outputs", lambda session, key: asked.append(key))
    result = with_rows(result_of(session, "figure6"), change)
    for seen in (lambda: flow(result, SETTINGS, session), lambda: show_embeddings(result, SETTINGS, session), lambda: forgotten_outputs(result, session)):
        asked.clear()
        seen()
        drawn = [row.spec for some in result.rows for row in some if row.key in asked]
        assert [s.method for s in drawn] == [c.method for c in result.cells] and {s.training_seed for s in drawn} == {1}


def test_failed_runs_do_not_say_which_seeds_are_compared(session):
    "A method with all its seeds, of which two failed, leaves the other methods theirs."

    def change(cell, rows):
        failed = [replace(r, metrics={}, error="no memory") if r.spec.training_seed < 2 else r for r in rows]
        return failed if cell.method == "ssd" else [r for r in rows if r.spec.training_seed < 2]

    cut = tables.like_for_like(with_rows(result_of(session, "table6"), change)).table
    assert set(cut[cut.method != "ssd"].seeds) == {2} and set(cut[cut.method == "ssd"].seeds) == {0}


def test_a_sweep_is_said_of_the_values_that_are_known(session):
    def change(cell, rows):
        lost = ("TV", "A_f") if dict(cell.changes)[cell.varied] > 0.2 else ("TV",)
        return [replace(r, metrics={m: math.nan if m in lost else v for m, v in r.metrics.items()}) for r in rows]

    for sentence in said_sweep(with_rows(result_of(session, "figure7"), change)):
        assert "nan" not in sentence and "A_f (known at 0.1) stays at" in sentence and sentence.endswith("TV is not known."), sentence


def test_savings_are_of_seeds_whose_seconds_are_known(session):
    "A retrain that another device trained has none: its seed counts for no method, and the noise is named with its price."
    result = with_rows(
        result_of(session, "figure4"),
        lambda cell, rows: [replace(r, seconds=r.seconds | {"unlearning": math.nan}) if cell.method == "retrain" and r.spec.training_seed == 0 else r for r in rows],
    )
    of = {c.method: {r.spec.training_seed: r.seconds.get("unlearning") for r in some} for c, some in zip(result.cells, result.rows, strict=True)}
    seeds = set(of["retrain"]) - {0}
    saved = {m: 100 * (1 - sum(of[m][s] for s in seeds) / sum(of["retrain"][s] for s in seeds)) for m in of if m not in ("original", "retrain")}
    passes, seconds, claim = said_times(result)
    assert seeds and seconds.endswith(", ".join(f"{m} {s:.0f} %" for m, s in saved.items()) + ".")
    many = [r.metrics["cost"] for r in session.store.rows() if ("noise.size", 256) in r.spec.changes]
    assert f"here, with 64 noise images, it saves {re.search('maga ([0-9]+ %)', passes)[1]} of the passes" in claim
    assert claim.endswith(f"; with 256, the paper's number for a ResNet-18, it costs {100 * sum(many) / len(many):.0f} % of the retrain's passes.") and len(many) == 3
    elsewhere = replace(result, path=result.path.parent / "none" / "none" / "table.csv")
    assert said_times(elsewhere)[-1] == claim.rsplit(";", 1)[0] + "."


def test_the_paper_is_judged_on_our_cases(session):
    "A case that we lack is left out of the paper's side, too."
    whole = result_of(session, "table6")
    result = with_rows(whole, lambda cell, rows: [] if (cell.target, cell.method) == ("mushroom", "no_noise") else rows)
    (sentence,) = said_ablation(result)
    assert said_ablation(whole)[0].count(" and ") == 7 and sentence.count(" and ") == 1 and "(paper -56.51)" in sentence


def test_a_mean_without_the_seeds_that_never_came_back_has_no_rank(session):
    result = result_of(session, "beyond")
    nearest = said_beyond(result, [("relearn_ratio", 1.0)])[0].split(": ")[1].split(" is ")[0]
    back = replace(result, table=result.table.assign(relearn_more_than=[3.0 if m == nearest else math.nan for m in result.table.method]))
    (sentence,) = said_beyond(back, [("relearn_ratio", 1.0)])
    assert "nearest of 23 with" in sentence and f": {nearest} " not in sentence
    ratio = result.table.set_index("method").relearn_ratio[nearest]
    assert sentence.endswith(f"only a bound is known for {nearest}: > {ratio:.2f}.")
    shown = tables.headline_table(back)
    assert math.isnan(shown.relearn_ratio[nearest]) and shown.relearn_ratio.notna().sum() > 20


@pytest.mark.parametrize(("name", "seeds"), [("frontier", "5"), ("figure6", "5"), ("sensitivity", "5"), ("judge_helps", "0"), ("judging", "0")])
def test_what_was_not_published_is_refused(session, name, seeds):
    asked = f"{name} --preset laptop --seeds {seeds}"
    with pytest.raises(MagaError, match=f"No published run fits {asked}: leave settings out, or compute it in a results folder, --results R."):
        compute(name, replace(SETTINGS, seeds=(int(seeds),)), session)


def test_the_front_page_says_what_is_published(session):
    "The number of runs, and the experiments of which none was run."
    page, rows = (Path(__file__).parents[1] / "README.md").read_text(), read_rows(published_folder())
    laptop, small = (sum(of_preset(r.spec, PRESETS[name]) for r in rows.values()) for name in ("laptop", "small"))
    assert f"{laptop} runs of the preset `laptop` and {small} of the preset `small` are published" in page and laptop + small == len(rows)
    said = "\n".join(line for line in page.splitlines() if line.endswith("| not run |"))
    with precision(SETTINGS, session):
        asked = {n: [resolve(session, s).key for c in EXPERIMENTS[n].cells(SETTINGS) for s in c.specs(SETTINGS.all_seeds)] for n in together()}
    without = {n for n, keys in asked.items() if keys and not rows.keys() & keys}
    assert without == set(re.findall(r"/(\w+)\.ipynb", said))


def test_the_front_page_counts_the_cases_in_which_maga_keeps_most(session):
    "Ours and, in the same cases, the paper's."
    cases = [case for n in (1, 2, 3, 4, 7, 8) for case in cases_of(result_of(session, f"table{n}")).values() if standing(case)]
    ours, theirs = (sum(standing(c)["rank"] == 1 for c in some) for some in (cases, [paper_case(c) for c in cases]))
    page = (Path(__file__).parents[1] / "README.md").read_text()
    said = f"the most $A_r$ of all methods in {ours or 'none'} of the {len(cases)} cases of these tables; with the paper's own numbers, in {theirs} of them."
    assert said in page
    ours, theirs = (mia_lower_than_most(standing(c) for c in some) for some in (cases, [paper_case(c) for c in cases]))
    gaps = sorted(-standing(c)["mia_gap"] for c in cases)
    assert f"In {ours} of these {len(cases)} cases it is lower than with most other methods; with the paper's own numbers, in {theirs} of them." in page
    assert gaps[0] > 0 and f"in all {len(cases)} it is below the retrain's, by {gaps[0]:.2f} to {gaps[-1]:.2f} points." in page


def test_a_metric_over_populations_that_is_missing_names_its_methods(session):
    "And the original, which unlearns nothing, takes no share of a retrain's time."
    result = result_of(session, "beyond")
    known, reasons = tables.population_table(result, session)
    ran = {c.method for c, some in zip(result.cells, result.rows, strict=True) if some and c.method != RETRAIN}
    (said,) = [s for s in reasons if s.endswith(f": {tables.NO_POPULATION}.")]
    assert set(said.split(": ")[0].split(", ")) == ran - set(known.index) and len(known)
    ratio = tables.beyond_table(result).time_ratio
    assert math.isnan(ratio["original"]) and ratio["retrain"] > 0


def test_a_retrain_is_a_true_retrain_everywhere(session):
    "Its model is that of training on what stays, with no original behind it; a method is compared with that of its own request and seed."
    rows = read_rows(published_folder()).values()
    retrains = [row for row in rows if row.spec.method == RETRAIN]
    with precision(SETTINGS, session):
        for row in rows:
            s = row.spec
            whole = Training(s.data, s.backbone, s.recipe, s.training_seed)
            without = replace(whole, task=s.task, target=s.target, draw=s.draw)
            keys = {"original": model_key(session, whole), "retrain": model_key(session, without)}
            assert s.task and keys["original"] != keys["retrain"] and {k: row.dependencies[k] for k in keys} == keys, s
    assert retrains and all(row.metrics["cost"] == 1 and not row.spec.original for row in retrains)
    request = attrgetter("spec.data", "spec.backbone", "spec.task", "spec.target", "spec.draw")
    for row in sorted(rows, key=request):  # costs are in passes of a training on what stays: in whole images, thirds where only forward
        split = session.split(row.spec)
        stays = len(split.train) - len(split.forget_train)
        passes = row.metrics["cost"] * RECIPES[row.spec.recipe].epochs * stays
        assert 3 * passes == pytest.approx(round(3 * passes), abs=1e-2), row.spec
        if row.spec.method == "finetune":
            assert round(passes) == config_of(row.spec).fit.epochs * stays
    assert not any("the original model" in trace for row in retrains for trace in row.made_from_forgotten)
    assert all(row.metrics["A_f"] == 0 for row in retrains if row.spec.task == "class")


FRESH_HEAD = {"checkpoint": "", "retrains": "", "data_root": "no data here", "target": "rocket", "runs": "", "folder": "results/fresh_head"}


def test_a_fresh_head_of_another_class_shows_no_rocket():
    names = FRESH_HEAD | {"target": "mushroom"}
    said = [line for source, _ in kept_cells("fresh_head") for line in run_cell(source, names)]
    assert said[0] == "No run is kept yet." and "Retrains" not in "".join(said) and "<td>" not in "".join(said)


def test_a_part_of_the_fresh_heads_is_not_kept(tmp_path, monkeypatch):
    "One run of a clone without the others' rows does not replace the table of all; the last of all is kept."
    monkeypatch.setenv("MAGA_KEPT", str(tmp_path))
    names = FRESH_HEAD | {"checkpoint": "given", "runs": "neither:0"}
    run, *_ = (source for source, _ in kept_cells("fresh_head") if source.startswith("if checkpoint:"))
    run_cell(next(source for source, _ in kept_cells("fresh_head")), names)
    rows = pd.DataFrame(names["RUNS"], columns=["variant", "seed"])
    for n in (1, len(rows)):
        run_cell(run, names | {"run_all": lambda wanted, n=n: iter([rows[:n]])})
        assert (tmp_path / "fresh_head.csv").exists() == (n == len(rows))


HERE = Settings(device="cpu")  # digits
NINE = Spec("digits", "class", "nine", "small_cnn", "ssd", "digits", recipe="smoke")


def store_with(folder: Path, **dates: str) -> Store:
    "A store with a row of each name and date; its A_r is the day."
    store = Store(folder)
    for name, date in dates.items():
        store.put(Row(name, NINE, {"A_r": float(date[-2:])}, provenance={"date": date}))
    return store


def published_by(store: Store, folder: Path) -> dict[str, float]:
    "A_r of each published row, after the store has published its own."
    publish(open_session(replace(HERE, results=str(store.folder))), HERE, (), folder)
    return {key: row.metrics["A_r"] for key, row in read_rows(folder).items()}


def test_an_older_row_does_not_replace_a_published_one(tmp_path):
    "A row of a later date, or of the same, does; one that was only restored does not, though it is of the same day."
    folder, first, second = tmp_path / "rows", store_with(tmp_path / "first", a="2026-01-02", b="2026-01-02"), Store(tmp_path / "second")
    assert published_by(first, folder) == {"a": 2, "b": 2}
    restore(second, folder)
    assert published_by(store_with(tmp_path / "first", a="2026-01-03", b="2026-01-01"), folder) == {"a": 3, "b": 2}
    today = replace(second.get("b"), metrics={"A_r": 7.0})  # made again on the day
    first.put(today)
    assert published_by(first, folder) == {"a": 3, "b": 7}
    assert published_by(second, folder) == {"a": 3, "b": 7}
    second.put(replace(today, metrics={"A_r": 8.0}))
    assert published_by(second, folder) == {"a": 3, "b": 8}


def test_a_row_of_ones_own_costs_no_published_score(tmp_path):
    "It stays; scores say whose rows they are of, so those of the other rows are restored."
    rows, store = read_rows(published_folder()), Store(tmp_path)
    mine = replace(next(iter(rows.values())), provenance={"date": "2000-01-01"})
    store.put(mine)
    assert restore(store) == len(rows) and store.get(mine.key) == mine
    assert {p.stem for p in (tmp_path / "scores").iterdir()} == read_json(published_folder() / SCORES).keys()


def test_a_run_that_several_lines_show_counts_once(session):
    "A sweep's usual value is one run of several lines; two rows that measure one retrain have one training."
    result = result_of(session, "sensitivity")
    lines = [r for some in result.rows for r in some]
    assert len(result.good) == len({r.key for r in lines}) == result.wanted < len(lines)
    assert f" {len(result.good)} runs " in tables.made_with(result)
    assert expected.costs([result]).runs.item() == f"{result.wanted} of {result.wanted}"
    gold = Row("a", replace(NINE, method=RETRAIN), {}, {"unlearning": 60.0, "evaluation": 6.0}, dependencies={"retrain": "m"})
    assert report.minutes_of([gold, replace(gold, key="b")]) == pytest.approx(1.2)


def test_the_printed_lines_are_those_that_were_asked_for(session, capsys):
    "A long table says how many more lines there are; a target that no line has is an error, also where nothing is run."
    result = compute("frontier", replace(SETTINGS, target=("mushroom",), methods=("restart",)), session)
    print_result(result)
    said = capsys.readouterr().out
    assert "mushroom" in said and "restart, fresh head" in said and not any(name in said for name in ("rocket", "delete", "more lines"))
    left = pd.concat([result.table, pd.DataFrame([{"note": report.NOT_RUN + "a command"}])], ignore_index=True)  # a line without a seed
    print_result(replace(result, table=left))
    assert capsys.readouterr().out.split("->")[0].startswith(said.split("->")[0])
    print_result(result_of(session, "frontier"))
    assert f"… and {len(result_of(session, 'frontier').table) - 60} more lines" in capsys.readouterr().out
    with pytest.raises(MagaError, match="the target 'rokcet'; there are"):
        compute("table1", replace(SETTINGS, target=("rokcet",)), session)


def test_the_frontier_says_what_was_changed_and_why_it_has_no_u_lira(session):
    "U-LiRA is of the preset's seeds, whatever seeds a line has more; asked of others whose logits are gone, it is missing with the reason."
    asked = replace(SETTINGS, target=("rocket",), methods=("maga", "retrain"))
    usual, more = (compute("frontier", replace(asked, seeds=seeds), session).table for seeds in ((), (0, 1, 2, 3)))
    maga = usual[usual.method == "maga"]
    assert set(maga.seed) > {0, 1, 2} == {*SETTINGS.all_seeds} and maga.ulira_auc.notna().all() and (usual.note == "").all()
    lost = more[(more.method == "maga") & (more.budget == "published")]
    assert lost.ulira_auc.isna().all() and (lost.note == NO_ULIRA).all()
    assert (more[more.method == "retrain"].note == "").all()
    changed = compute("frontier", replace(asked, changes=(("maga", "tau", 0.9),)), session).table
    assert set(changed[changed.method == "maga"].budget) == {"published tau=0.9", "tuned tau=0.9"}


def two_retrains(store: Store, day: str) -> list[Row]:
    "Rows and logits of two retrains, made on a day that decides how far apart they are."
    gold = [replace(NINE, method=RETRAIN, training_seed=s) for s in (0, 1)]
    rows = [Row(f"seed{s.training_seed}", s, {"A_r": 1.0}, {"unlearning": 1.0}, {"date": day}, {"retrain": f"model{s.training_seed}"}) for s in gold]
    split = open_session(replace(HERE, results=str(store.folder))).split(NINE)
    for row in rows:
        logits = row.spec.training_seed * int(day[-1]) * torch.eye(10)[0].repeat(len(split.test), 1)
        tensors = {"test": logits.half(), "forget_train": logits[: len(split.forget_train)].half()}
        store.put(row)
        write_whole(store.outputs(row.key), partial(save_file, tensors))
    return rows


def test_a_retrain_that_two_rows_show_keeps_its_file(tmp_path):
    "A second row of the same training has other logits: its model was trained anew. The first row's file stays until that row itself is replaced."
    folder, store = tmp_path / "rows", Store(tmp_path / "store")
    session = open_session(replace(HERE, results=str(store.folder)))
    _, first = two_retrains(store, "2026-01-02")
    publish(session, HERE, (), folder)
    (file,) = (folder / "retrains").glob("*seed1*")
    before = file.read_bytes()
    for key in ("aaa", "zzz"):  # before and after the first in order
        store.put(replace(first, key=key))
        write_whole(store.outputs(key), partial(save_file, {k: v + 1 for k, v in load_file(store.outputs(first.key)).items()}))
        publish(session, HERE, (), folder)
        assert file.read_bytes() == before, key
    two_retrains(store, "2026-01-04")
    publish(session, HERE, (), folder)
    assert file.read_bytes() != before


def test_logits_of_a_replaced_run_are_published_no_more(tmp_path):
    "Those of the new one take their place, also where no figure asks for them, or nothing does where the store has none."
    folder, store = tmp_path / "rows", Store(tmp_path / "store")
    session = open_session(replace(HERE, results=str(store.folder)))
    row = store.put(Row(resolve(session, NINE).key, NINE, {"A_r": 1.0}, provenance={"date": "2026-01-02"}))
    kept, shown = store.outputs(row.key), folder / "pictured" / "outputs" / f"{row.key}.safetensors"
    write_whole(kept, partial(save_file, {"test": torch.zeros(2)}))
    publish(session, HERE, (NINE,), folder)
    for day, logits in (("2026-01-03", torch.ones(2)), ("2026-01-04", None)):
        store.put(replace(row, provenance={"date": day}))
        kept.unlink()
        if logits is not None:
            write_whole(kept, partial(save_file, {"test": logits}))
        publish(session, HERE, (), folder)
        assert logits is None if not shown.exists() else torch.equal(load_file(shown)["test"], logits)


def test_a_restored_row_has_published_logits_or_none(tmp_path):
    "What lies in its place without a row is of another run; what was only restored is not published again."
    folder, store, other = tmp_path / "rows", Store(tmp_path / "store"), Store(tmp_path / "other")
    session, there = (open_session(replace(HERE, results=str(s.folder))) for s in (store, other))
    rows = [*two_retrains(store, "2026-01-02"), store.put(Row("alone", NINE, {"A_r": 1.0}, provenance={"date": "2026-01-02"}))]
    publish(session, HERE, (), folder)
    two_retrains(other, "2026-01-04")
    write_whole(other.outputs("alone"), partial(save_file, {"test": torch.zeros(2)}))
    for row in rows:
        other.row_path(row.key).unlink(missing_ok=True)
    restore(other, folder)
    assert not other.outputs("alone").exists() and other.rows() == store.rows()
    for row in rows[:2]:
        assert torch.equal(*(load_file(s.outputs(row.key))["forget_train"] for s in (store, other)))
        write_whole(other.outputs(row.key), partial(save_file, {name: torch.zeros(2) for name in ("forget_train", "forget_test")}))
    before = read_about(folder)
    publish(there, HERE, (), folder)
    assert read_about(folder) == before


def test_rows_are_not_published_as_another_presets(tmp_path):
    store = store_with(tmp_path / "store", a="2026-01-02")
    for preset, networks in (("small", "resnet10"), ("laptop", "resnet6_haar")):
        settings = Settings(preset, device="cpu", results=str(store.folder))
        with pytest.raises(MagaError, match=rf"no row of the preset {preset} \({networks}.*--preset"):
            publish(open_session(settings), settings, (), tmp_path / "rows")
    assert not (tmp_path / "rows").exists()


def test_logits_are_restored_for_the_training_that_they_are_of(session, tmp_path):
    "A retrain that was trained on two machines has two rows and one key of its model: the file belongs to the row with its accuracy."
    folder, store = tmp_path / "rows", Store(tmp_path / "store")
    own = open_session(replace(HERE, results=str(store.folder)))
    first, _ = two_retrains(store, "2026-01-02")
    for key, A_r in (("again", 1.0), ("elsewhere", 1.02)):
        store.put(replace(first, key=key, metrics={"A_r": A_r}))
    publish(own, HERE, (), folder)
    restore(there := Store(tmp_path / "there"), folder)
    assert {key: there.outputs(key).exists() for key in (first.key, "again", "elsewhere")} == {first.key: True, "again": True, "elsewhere": False}
    retrains, whole = published_folder() / "retrains", published_folder() / "pictured" / "outputs"
    gold = [r for r in session.store.rows() if r.spec.method == RETRAIN and session.store.outputs(r.key).exists() and not (whole / f"{r.key}.safetensors").exists()]
    assert len(gold) > 40 and all(header_in(retrains / retrain_file(r.spec))["A_r"] == f"{r.metrics['A_r']:.2f}" for r in gold)


def test_seeds_that_share_an_original_have_no_metric_over_populations(session):
    "An attacker who knows the original recognises it in every model: U-LiRA would call a perfect method found out."
    result = result_of(session, "beyond")
    by = {c.method: some for c, some in zip(result.cells, result.rows, strict=True)}
    given = [replace(r, spec=replace(r.spec, original="a file")) for r in by["ssd"]]
    said = scores_of_many(session, given, by[RETRAIN])
    assert said and all(math.isnan(s.mean) and "an original for each training seed" in s.missing for s in said.values())


def test_methods_are_compared_over_the_seeds_that_they_share(session):
    "Also where a batch was interrupted: a method with one seed more is not averaged over it."
    result = result_of(session, "beyond")
    cut = with_rows(result, lambda cell, some: some if cell.method == "maga" else [r for r in some if r.spec.training_seed == 0])
    alone = with_rows(result, lambda cell, some: [r for r in some if r.spec.training_seed == 0])
    pd.testing.assert_frame_equal(tables.beyond_table(cut), tables.beyond_table(alone))
    assert said_beyond(cut, [("probe_gap", 0.0)]) == said_beyond(alone, [("probe_gap", 0.0)])


def test_a_kept_score_is_of_the_rows_that_are_there(tmp_path):
    "A run that was computed again has its own floor; a file that is cut off, or lacks a score, is no answer; one from before is, until a row changes."
    store = Store(tmp_path)
    session = open_session(replace(HERE, results=str(tmp_path)))
    first = floor_of(session, two_retrains(store, "2026-01-02")).mean
    again = two_retrains(store, "2026-01-04")
    second = floor_of(session, again).mean
    assert 0 < first < second
    (kept,) = (tmp_path / "scores").iterdir()
    for text in ('{"TV_floor": {"val', "{}"):
        kept.write_text(text)
        assert floor_of(session, again).mean == second
    old = {"TV_floor": {"values": [7.0], "missing": "", "half": None}}
    kept.write_text(json.dumps(old))
    os.utime(kept, ns=(0, 2**62))
    assert floor_of(session, again).mean == 7
    kept.write_text(json.dumps(old))
    os.utime(kept, ns=(0, 0))
    assert floor_of(session, again).mean == second


def test_scores_of_replaced_rows_are_not_published(tmp_path):
    "Those of rows that stay are, also without a word on their rows."
    folder, store = tmp_path / "rows", Store(tmp_path / "store")
    session = open_session(replace(HERE, results=str(store.folder)))
    floor_of(session, two_retrains(store, "2026-01-02"))
    publish(session, HERE, (), folder)
    (kept,) = read_json(folder / SCORES).values()
    old = {"old": {"TV_floor": {k: v for k, v in kept["TV_floor"].items() if k != "of"}}}
    (folder / SCORES).write_text(json.dumps(old))
    store.put(Row("another", NINE, {"A_r": 1.0}, provenance={"date": "2026-01-03"}))
    assert "left out" not in publish(session, HERE, (), folder) and len(read_json(folder / SCORES)) == 2
    again = two_retrains(store, "2026-01-04")
    assert "2 scores of rows that were replaced are left out" in publish(session, HERE, (), folder) and read_json(folder / SCORES) == {}
    floor_of(session, again)
    publish(session, HERE, (), folder)
    assert len(read_json(folder / SCORES)) == 1
    drawn = PublishedSession(folder, tmp_path / "published", "smoke")
    assert floor_of(drawn, again).mean == floor_of(session, again).mean


def test_what_a_merge_left_is_named(tmp_path):
    published_by(store_with(tmp_path / "first", a="2026-01-02"), tmp_path / "rows")
    (tmp_path / "rows" / ABOUT_FILES).write_text('{\n<<<<<<< HEAD\n "presets": []\n=======\n')
    with pytest.raises(MagaError, match=r"published\.json cannot be read .*settle a merge"):
        read_about(tmp_path / "rows")


def test_rows_of_another_version_are_named(tmp_path):
    published_by(store_with(tmp_path / "first", a="2026-01-02"), tmp_path / "rows")
    pd.read_parquet(file := tmp_path / "rows" / ROWS).assign(newer="field").to_parquet(file)
    with pytest.raises(MagaError, match=r"rows\.parquet cannot be read .*no row of a store.*update the clone"):
        read_rows(tmp_path / "rows")


def test_a_damaged_file_is_not_published_again(tmp_path):
    "It is named before anything is written, also where the row that is added has nothing to do with it; one that is missing can be written anew."
    folder, store = tmp_path / "rows", Store(tmp_path / "store")
    session = open_session(replace(HERE, results=str(store.folder)))
    two_retrains(store, "2026-01-02")
    publish(session, HERE, (), folder)
    (file,) = (folder / "retrains").glob("*seed1*")
    before = read_about(folder)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(MagaError, match=r"seed1\.safetensors cannot be read .*git checkout"):
        header_in(file)
    with pytest.raises(MagaError, match=r"seed1\.safetensors differs from its hash"):
        published_by(store_with(tmp_path / "another", a="2026-01-03"), folder)
    assert read_about(folder) == before and "a" not in read_rows(folder)
    file.unlink()
    publish(session, HERE, (), folder)
    assert torch.equal(*(load_file(f)["forget_train"] for f in (file, store.outputs("seed1"))))
    assert check_published(folder)["files"].keys() == before["files"].keys()


def test_what_a_killed_publish_leaves_is_not_published(tmp_path):
    folder, store = tmp_path / "rows", store_with(tmp_path / "store", a="2026-01-02")
    published_by(store, folder)
    (left := folder / ".rows.parquet.0123abcd.half").touch()
    published_by(store, folder)
    left.unlink()
    assert restore(Store(tmp_path / "there"), folder) == 1


@pytest.mark.parametrize("computed", ["locks", "claims"])
def test_rows_that_are_published_no_more_are_not_drawn(computed, tmp_path):
    "They are deleted where tables are drawn from, and in no folder where something was computed; hidden files are those that another process is writing."
    for name, rows in (("more", {"a": "2026-01-02", "b": "2026-01-02"}), ("fewer", {"a": "2026-01-02"})):
        published_by(store_with(tmp_path / f"store of {name}", **rows), tmp_path / name)
    drawn, own = tmp_path / "published" / "smoke", tmp_path / "published" / "own"
    assert PublishedSession(tmp_path / "more", drawn, "smoke").store.get("b")
    for part in ("outputs", "scores"):
        (drawn / part).mkdir()
        (drawn / part / "b.json").write_text("{}")
        (drawn / part / ".b.json.x1").write_text("{")
    left = PublishedSession(tmp_path / "fewer", drawn, "smoke").store
    assert [row.key for row in left.rows()] == ["a"] and not list(drawn.glob("*/b.json")) and len(list(drawn.glob("*/.b.json.x1"))) == 2
    (own / computed).mkdir(parents=True)
    kept = PublishedSession(tmp_path / "fewer", store_with(own, mine="2026-01-02").folder, "smoke").store
    assert [row.key for row in kept.rows()] == ["a", "mine"]


def test_published_files_are_small_and_whole():
    folder = published_folder()
    check_published(folder)
    assert (folder / "rows.parquet").stat().st_size < 3e6
    assert sum(p.stat().st_size for p in folder.rglob("*.safetensors")) < 12e6


def test_published_rows_speak_of_no_machine():
    text = json.dumps([row.to_json() for row in read_rows(published_folder()).values()])
    assert "/home" not in text and "/work" not in text and "/root" not in text
