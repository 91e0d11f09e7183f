"""The audit: closed forms of its bounds, calibration on made-up retrains, verdicts on real ones, and inputs that would make it wrong."""

import json
import math
import sys
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from maga.checks import MagaError
from maga.data import ImageSet, forget_class, forget_random
from maga.measures.evaluation import train_originals, train_retrains
from maga.measures.membership import logit_margin
from maga.measures.metrics import Outputs
from maga.methods.contract import get_method
from maga.models import ModelSpec, save_checkpoint, small_network
from maga.own.audit import CONSISTENT, DISTINGUISHABLE, UNDECIDED, audit, false_alarms, judged, retrains_wanted, share_interval, show_audits
from maga.own.audited import PRETRAINED, audited, keep_audit, retrains_here
from maga.own.networks import open_network
from maga.own.order import check_named, said_of_view, seen_by
from maga.own.retrains import Begun, beginning_of, usual_rates
from maga.own.yardstick import AUDIT_MEASURES, Facts, Spread, facts_of, holm_level, widening
from maga.packaged import PACKAGED, Packaged
from maga.pretrained import save_tensors
from maga.requests import after
from maga.sources import digits
from maga.training import FitConfig

CONFIG = FitConfig(8, 32, lr=0.05, pad=1, flip=False)


def made(rng, n, task="class", **values):
    "Facts of n models that differ by chance alone, around a common output."
    common, found = rng.normal(size=(30, 5)), []
    for i in range(n):
        z = torch.tensor(common + 0.5 * rng.normal(size=5) + 0.3 * rng.normal(size=(30, 5)), dtype=torch.float32)
        own = {"A_r": 97 + rng.normal() / 3, "A_f": 0.0, "MIA": 10 + 2 * rng.normal(), "margin": rng.normal(), "probe": rng.normal()}
        own |= {"relearn": 3.0 * round(10 * math.exp(0.1 * rng.normal())), "recognised": 0.0} | values
        margins = logit_margin(z, torch.zeros(30, dtype=torch.long)) + rng.normal()
        found.append(Facts("", task, z, z[:20], margins, {k: float(v) for k, v in own.items()}, {"A_r": 400, "A_f": 40, "MIA": 30}, f"{i} {own}"))
    return found


KNOWS = {"A_f": 98.0, "MIA": 90.0, "margin": 12.0, "probe": 12.0, "relearn": 0.0, "recognised": 99.0}


def an_original(rng, **values):
    return made(rng, 1, **KNOWS | values)[0]


# The bounds


def test_a_prediction_interval_is_the_closed_form():
    y = [3.0, 4.0, 6.0, 7.0, 10.0]
    half = stats.t.ppf(1 - 0.01 / 2, 4) * np.std(y, ddof=1) * math.sqrt(1 + 1 / 5)
    assert Spread.of(y).limits(0.01) == pytest.approx((6 - half, 6 + half))
    assert Spread.of(y).p(6 + half) == pytest.approx(0.01)
    assert Spread.of(y).p(6 - 2 * half) == pytest.approx(2 * stats.t.sf(2 * half / (np.std(y, ddof=1) * math.sqrt(1.2)), 4))
    assert widening(1, 0.05) == math.inf


def test_one_further_normal_value_is_outside_as_often_as_the_level_says():
    rng = np.random.default_rng(0)
    for n in (3, 5, 10):
        outside = np.mean([Spread.of(y[:n]).p(y[n]) <= 0.05 for y in rng.normal(size=(1500, n + 1))])
        low, high = stats.binom.ppf([0.0005, 0.9995], 1500, 0.05) / 1500
        assert (n > 6 or low <= outside) and outside <= high  # with more, tails are heavier than a normal's


def test_a_share_has_the_room_that_counting_leaves():
    spread = Spread.of([0.0] * 5, images=40)  # no hit in 200
    room = stats.betabinom(40, 0.5, 200.5)
    for k in range(41):
        p = min(1, 2 * min(room.cdf(k), room.sf(k - 1)))
        assert spread.p(2.5 * k) == pytest.approx(p if k else 1)
        low, high = spread.limits(0.02)
        assert (low <= 2.5 * k <= high) == (spread.p(2.5 * k) > 0.02)
    assert spread.limits(0.01)[1] > Spread.of([0.0] * 50, images=40).limits(0.01)[1] > 0  # more retrains know more
    assert Spread.of([5.0] * 4).limits(0.01) == (5, 5) and Spread.of([5.0] * 4).p(5.1) == 0  # no share: no room


def test_shares_of_equal_chance_are_seldom_outside():
    rng = np.random.default_rng(1)
    for chance in (0.0, 0.01, 0.5, 0.99):
        hits = rng.binomial(40, chance, size=(250, 6)) * 2.5
        assert np.mean([Spread.of(h[:5], images=40).p(h[5]) <= 0.05 for h in hits]) <= 0.05


def test_holm_never_rejects_less_than_bonferroni_and_never_more_than_single_tests():
    rng = np.random.default_rng(2)
    for _ in range(200):
        p = (rng.random(rng.integers(1, 10)) ** 4).tolist()
        level = holm_level(p, 0.05)
        assert 0.05 / len(p) <= level <= 0.05
        rejected, order = set(), np.argsort(p)
        for i, j in enumerate(order):  # step by step
            if p[j] > 0.05 / (len(p) - i):
                break
            rejected.add(int(j))
        assert rejected == {i for i, x in enumerate(p) if x <= level}
    assert holm_level([0.2, 0.6], 0.05) == 0.025 and math.isnan(holm_level([], 0.05))


# All measures together


@pytest.mark.parametrize("references", [4, 8])
def test_at_most_one_genuine_retrain_in_twenty_is_an_alarm(references):
    rng, rounds, alarms = np.random.default_rng(3), 60, 0
    for _ in range(rounds):
        one, *others = made(rng, references + 1)
        alarms += judged(an_original(rng), one, others).verdict == DISTINGUISHABLE
    assert alarms <= stats.binom.ppf(0.999, rounds, 0.05)


def test_false_alarms_are_counted_one_retrain_at_a_time():
    rng = np.random.default_rng(4)
    models = made(rng, 9)
    table = false_alarms(an_original(rng), models, 5)
    assert table["retrain"].tolist() == list(range(9)) and set(table.references) == {5}
    assert (false_alarms(an_original(np.random.default_rng(4)), models, 5).verdict == table.verdict).all()
    spoilt = [*models[:8], replace(models[8], values=models[8].values | {"margin": 500.0})]
    assert "margin" in false_alarms(an_original(rng), spoilt, 5)["told by"][8]
    with pytest.raises(MagaError, match="references is 9"):
        false_alarms(an_original(rng), models, 9)
    assert share_interval(95, 100) == pytest.approx(tuple(stats.binomtest(95, 100).proportion_ci(method="exact")))


def test_a_retrain_is_scored_against_as_many_as_the_model_is():
    rng = np.random.default_rng(5)
    one, *others = made(rng, 6)
    a = judged(an_original(rng), one, others)
    p = [f.train.double().softmax(1) for f in others]
    tv = lambda x, y: 50 * float((x - y).abs().sum(1).mean())  # noqa: E731
    without = [sum(p[:i] + p[i + 1 :]) / 4 for i in range(5)]
    y, u = [tv(p[i], without[i]) for i in range(5)], np.mean([tv(one.train.double().softmax(1), q) for q in without])
    unit = math.exp(np.mean(np.log(y)))
    assert a["tv_train"].retrains == pytest.approx([v / unit for v in y]) and a["tv_train"].value == pytest.approx(u / unit)
    phi = torch.stack([f.margins for f in others[1:]])  # the first retrain's margins against the other four
    sd = math.sqrt(float((phi - phi.mean(0)).square().sum()) / (3 * phi.shape[1])) * math.sqrt(1 + 1 / 4)
    assert a["lira"].retrains[0] == pytest.approx(float((((others[0].margins - phi.mean(0)) / sd) ** 2).mean().sqrt()))


# Verdicts


def test_without_enough_retrains_nothing_is_decided():
    rng = np.random.default_rng(6)
    original, one, *others = an_original(rng), *made(rng, 4)
    for some in ([], others[:1], others[:2]):
        a = judged(original, one, some)
        assert a.verdict == UNDECIDED and {f.verdict for f in a.findings} == {UNDECIDED}
        assert f"train {retrains_wanted()} networks" in a.says and all("needs 3 of them" in f.says for f in a.findings)
        assert widening(retrains_wanted(), 0.05 / len(AUDIT_MEASURES)) <= 6 < widening(retrains_wanted() - 1, 0.05 / len(AUDIT_MEASURES))
    assert len(judged(original, one, others).findings) == len(AUDIT_MEASURES)


def test_a_measure_without_images_decides_nothing():
    "Test images of the forgotten class alone: nobody's accuracy on retained ones is known, and a genuine retrain is no model found out."
    rng = np.random.default_rng(0)
    one, *others = (made(rng, 1, A_r=math.nan)[0] for _ in range(6))
    found = judged(an_original(rng), one, others)
    assert found["A_r"].verdict == UNDECIDED and "there is no image to measure it on" in found["A_r"].says
    assert found.verdict != DISTINGUISHABLE


def test_a_class_without_test_images_is_measured_once_on_training_images(real):
    "The distance on training images alone is among the measures that share the level, and the reasons name no other task."
    whole, original, retrains, fresh = real
    split = forget_class(whole.train, whole.test.subset(whole.retain_test), "nine")
    a = audit(original.model, fresh.model, split, [r.model for r in retrains])
    assert math.isnan(a["tv"].p) and a["tv_train"].p > 0 and a.verdict == UNDECIDED
    for name in ("tv", "probe"):
        assert "test images of what was forgotten" in a[name].says and "random" not in a[name].says


def test_a_measure_without_power_says_how_many_retrains_it_takes():
    rng = np.random.default_rng(7)
    gold = made(rng, 5)
    for i, r in enumerate(gold):
        r.values["probe"] = float(i)  # mean 2, standard deviation 1.58
    original = an_original(rng, probe=2 + 5 * 1.58)
    (one,) = made(rng, 1, probe=2.0)
    found = judged(original, one, gold)["probe"]
    assert found.verdict == UNDECIDED and f"about {found.needed} retrains" in found.says
    level = holm_level([f.p for f in judged(original, one, gold).findings], 0.05)
    assert widening(found.needed, level) * np.std(range(5), ddof=1) < 5 * 1.58 <= widening(found.needed - 1, level) * np.std(range(5), ddof=1)
    never = judged(an_original(rng, probe=3.0), one, gold)["probe"]
    assert never.needed is None and "hundred retrains would not" in never.says


def test_outputs_alone_are_not_consistent_and_a_class_that_never_returns_is_above():
    rng = np.random.default_rng(8)
    one, *gold = made(rng, 9)
    original = an_original(rng)
    assert judged(original, one, gold).verdict == CONSISTENT
    blind = lambda f: replace(f, missing={"probe": "it needs the network", "relearn": "it needs the network"})  # noqa: E731
    a = judged(blind(original), blind(one), [blind(r) for r in gold])
    assert a.verdict == UNDECIDED and "last layer alone" in a.says
    slow = replace(one, values=one.values | {"relearn": math.inf})
    found = judged(original, slow, gold)["relearn"]
    assert found.verdict == DISTINGUISHABLE and found.says.startswith("∞ is above")
    gold[0].values["relearn"] = math.inf  # a retrain that is slow, too
    assert math.isinf(judged(original, slow, gold)["relearn"].high)


def test_what_is_beyond_the_steps_that_were_tried_is_not_told_apart():
    "Where no retrain comes back, a step short of the end says nothing, half of the steps do; nothing to draw at a finite place is no error."
    rng = np.random.default_rng(3)
    most = AUDIT_MEASURES["relearn"].most
    one, *gold = made(rng, 6, relearn=math.inf)
    original, p = an_original(rng), {}
    for steps in (most - 3, most / 2, most / 5, math.inf):
        a = judged(original, replace(one, values=one.values | {"relearn": steps}), gold)
        p[steps] = a["relearn"].p
    assert p[math.inf] == 1 and 0.02 < p[most - 3] < 1 and p[most / 5] < p[most / 2] < 0.01
    plt.close(show_audits({"never back": a}))


def test_scales_go_there_and_back():
    for m in AUDIT_MEASURES.values():
        for x in (5.0, 30.0, 99.0):
            assert m.back(m.on_scale(x)) == pytest.approx(x)
            assert m.on_scale(x) < m.on_scale(x + 1)
            assert m.rounding(m.on_scale(x)) == pytest.approx(m.step * (m.on_scale(x + 1e-4) - m.on_scale(x)) / 1e-4, rel=1e-3)
    speed = AUDIT_MEASURES["relearn"]
    assert speed.on_scale(math.inf) == 0 and speed.back(0.0) == speed.back(0.1) == math.inf


@pytest.fixture(scope="module")
def real():
    "Split, original, seven retrains and a fresh one on a part of the digits."
    train, test = digits()
    split = forget_class(train.subset(torch.arange(700)), test, "nine")
    (original,) = train_originals(split, small_network, CONFIG, [0])
    fresh, *retrains = train_retrains(split, small_network, CONFIG, range(8))
    return split, original, retrains, fresh


def test_verdicts_on_digits(real):
    split, original, retrains, fresh = real
    distil = get_method("head_distillation")
    hidden = distil(original.model, split, distil.preset("digits"), torch.Generator().manual_seed(0))
    gold = [facts_of(r, split) for r in retrains]
    assert audit(original, fresh, split, gold, attacks=False).verdict != DISTINGUISHABLE
    knowing = audit(original, original.model, split, gold)
    assert {"A_f", "tv", "margin"} <= {f.measure for f in knowing.findings if f.verdict == DISTINGUISHABLE} and knowing.verdict == DISTINGUISHABLE
    forged = audit(original, hidden, split, gold)
    assert forged.verdict == DISTINGUISHABLE and forged["A_f"].verdict == CONSISTENT  # accuracy alone would not tell
    outputs = audit(original.outputs, fresh.outputs, split, [r.outputs for r in retrains])
    assert outputs.verdict == UNDECIDED and outputs["probe"].verdict == UNDECIDED
    attacked = audit(original, fresh, split, retrains[:3], attacks=True)
    assert attacked["relearn"].original == 0 < attacked["relearn"].value


def test_an_audit_is_shown_in_four_ways(real, tmp_path):
    split, original, retrains, fresh = real
    a = audit(original, fresh, split, retrains)
    made = json.loads(json.dumps(a.as_dict(), allow_nan=False))
    assert made["verdict"] == a.verdict and len(made["findings"]) == len(a.to_frame()) == len(AUDIT_MEASURES)
    assert all(f.measure in str(a) and f.says in str(a) for f in a.findings) and str(a).startswith(a.verdict.upper())
    page = a.html()
    assert page.count("<tr>") == page.count("</tr>") == 1 + len(AUDIT_MEASURES) and "http" not in page and "<script" not in page
    assert all(word not in (page + str(a)).lower() for word in ("certif", "nan", "guarantee"))
    assert len(show_audits({"fresh": a}).axes) == sum(not math.isnan(f.low) for f in a.findings)
    kept = Facts.load(facts_of(fresh, split).save(tmp_path / "facts.safetensors"))
    assert audit(original, kept, split, retrains).as_dict() == a.as_dict()


# What would make an audit wrong


def test_steps_that_were_counted_up_to_unlike_targets_are_not_compared():
    "An original that is above every target says none."
    rng = np.random.default_rng(9)
    original, (one, *gold) = an_original(rng), [replace(f, target=90.0) for f in made(rng, 5)]
    assert judged(original, one, gold)["relearn"].verdict == CONSISTENT
    lower = replace(one, target=50.0)
    for call in (
        lambda: judged(original, lower, gold),
        lambda: judged(original, one, [*gold[:3], replace(gold[3], target=50.0)]),
        lambda: judged(replace(original, target=50.0), one, gold),
        lambda: false_alarms(original, [lower, *gold], 3),
    ):
        with pytest.raises(MagaError, match="relearned up to 50 % and 90 %"):
            call()
    unasked = replace(lower, values={k: v for k, v in lower.values.items() if k != "relearn"}, missing={"relearn": "it was not asked for"})
    assert judged(original, unasked, gold)["relearn"].verdict == UNDECIDED


def test_retrains_know_no_class_of_another_request(real, tmp_path):
    "Eight was forgotten before nine: networks that were trained on eight are no retrains of both, whichever network is the original."
    split, original, retrains, fresh = real
    later = after(split, forget_class(split.train, split.test, "eight"))
    for first in (original, fresh):
        with pytest.raises(MagaError, match=r"Retrain 1 recognises .* of the training images of eight, .* pass models trained without eight, too"):
            audit(first.model, fresh.model, later, [r.model for r in retrains[:3]])
    kept = Facts.load(facts_of(fresh.model, later).save(tmp_path / "facts.safetensors"))
    assert kept.others["eight"] > 90 and not facts_of(fresh, split).others


def test_each_wrong_input_ends_in_one_sentence(real, tmp_path):
    split, original, retrains, fresh = real
    few = split.train.subset(torch.arange(400)), split.test
    (tmp_path / "none.safetensors").write_bytes(b"none")
    broken = Outputs(original.outputs.train, original.outputs.test.clone().fill_(math.nan))
    for call, says in {
        lambda: audit(original, fresh, split, [*retrains, retrains[0]]): "Retrains 1 and 8 give the same outputs",
        lambda: audit(original, retrains[2], split, retrains): "gives the outputs of retrain 3",
        lambda: audit(original, fresh, split, [*retrains[:2], original]): "Retrain 3 gives the outputs of the original",
        lambda: audit(original, fresh, split, [*retrains[:2], *train_originals(split, small_network, CONFIG, [5])]): "Retrain 3 recognises",
        lambda: audit(original, small_network(torch.Generator(), 7), split): r"gives \[2, 7\]; expected logits \[2, 10\]",
        lambda: audit(original, "unlearned.safetensors", split): "The audited model is 'unlearned.safetensors'; expected",
        lambda: audit(original, fresh, split, fresh): "expected a list of models",
        lambda: audit(original, fresh, few): "split is .*; expected a ForgetSplit",
        lambda: audit(original, fresh, forget_class(*few, "nine")): "made for another split",
        lambda: audit(original, Outputs(fresh.outputs.train[:9], fresh.outputs.test), split): "the split has 700",
        lambda: audit(original, broken, split): "not finite",
        lambda: audit(original, fresh, split, retrains, level=5.0): "level is 5.0; expected a number between 0 and 1",
        lambda: judged(facts_of(original, split), facts_of(fresh, forget_random(*few, 20))): "made for another split",
        lambda: audit(original, facts_of(fresh, split, target=50.0), split, attacks=True): "relearned up to",
        lambda: Facts.load(tmp_path / "none.safetensors"): "holds no facts of an audit",
        lambda: show_audits({"fresh": audit(original, fresh, split)}): "nothing to draw",
    }.items():
        with pytest.raises(MagaError, match=says) as e:
            call()
        assert "\n" not in str(e.value)


# networks and orders


FACTORIES = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

def loading(file, head=None):
    net = Net()
    net.load_state_dict(torch.load(FOLDER + file))
    net[5] = head or net[5]
    return net

def original():
    return loading("/net.pth")

def other():
    return loading("/other.pth")

def itself():
    torch.manual_seed(0)
    return Net()

def tuned():
    return loading("/other.pth", nn.Linear(4, 3))

def zero_head():
    net = tuned()
    nn.init.zeros_(net[5].weight)
    return net

def constant():
    net = Net()
    for p in net.parameters():
        nn.init.constant_(p, 0.1)
    return net

class Embedded(Net):
    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.linspace(0, 1, 8).sin())

def broken():
    raise RuntimeError("no such layer\\nand a long trace")
"""


@pytest.fixture
def factories(tmp_path):
    "A function that opens a network of the file above; and a request on a few noisy images."
    (tmp_path / "nets.py").write_text(f"FOLDER = {str(tmp_path)!r}\n{FACTORIES}")
    exec(FACTORIES, found := {})
    for name in ("net", "other"):
        net = found["Net"]()
        nn.init.normal_(net[1].weight)  # as trained
        torch.save(net.state_dict(), tmp_path / f"{name}.pth")
    torch.save(found["Embedded"]().state_dict(), tmp_path / "embedded.pth")
    pixels = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = ImageSet(pixels, torch.arange(12) % 3, tuple("abc"), mean=(0.5,) * 3, std=(0.5,) * 3)
    return lambda name, file="net.pth": open_network(f"{tmp_path}/nets.py:{name}", str(tmp_path / file)), forget_class(images, images, "a")


def test_a_factory_that_fills_in_weights_is_no_untrained_network(factories, tmp_path, monkeypatch):
    "With a new last layer it begins with pretrained weights, at smaller rates, and the page says so."
    opened, split = factories
    for check in ("check_useful", "check_original"):
        monkeypatch.setattr(f"maga.own.audited.{check}", lambda *a: None)
    for name, begun in (("Net", False), ("constant", False), ("tuned", True), ("zero_head", True)):
        network = opened(name)
        make, file = beginning_of(network, "", "", "restart", split)
        assert isinstance(make, Begun) == begun and file == ""
        recipe = retrains_here(network, split, 1, 1, tmp_path / name, make)[2]
        assert recipe["lr"] == usual_rates("sgd", begun)[1]
        about = audited("a", split, network, network, [], make) | {"recipe": recipe, "trained_here": 1}
        assert (PRETRAINED in about["networks"]) == begun
        keep_audit(tmp_path / name, {"audited": about}, "")
        assert ("They begin with untrained weights" in (tmp_path / name / "audit.html").read_text()) != begun
        if begun:
            assert about["networks"][PRETRAINED] == {"source": network.source, "file": str(tmp_path / "nets.py"), "sha256": network.code_sha256}
    assert not isinstance(beginning_of(opened("Embedded", "embedded.pth"), "", "", "restart", split)[0], Begun)


@pytest.mark.parametrize("name", ["original", "other", "itself"])
def test_a_factory_that_makes_one_network_alone_is_refused(name, factories):
    "It may load what must go, which a restart would bring back; methods that make no network take it."
    opened, split = factories
    with pytest.raises(MagaError, match=f"nets.py:{name} makes the same network every time.*leave loading and seeding out"):
        beginning_of(opened(name), "", "", "auto", split)
    assert beginning_of(opened(name), "", "", "ssd", split)[1] == ""


def test_an_optimiser_alone_brings_its_usual_rate(factories, tmp_path, monkeypatch):
    opened, split = factories
    for check in ("check_useful", "check_original"):
        monkeypatch.setattr(f"maga.own.audited.{check}", lambda *a: None)
    network = opened("Net")
    for changes, lr in (({}, usual_rates("sgd")[1]), ({"optimizer": "adamw"}, usual_rates("adamw")[1]), ({"optimizer": "adamw", "lr": 0.5}, 0.5)):
        assert retrains_here(network, split, 1, 1, tmp_path / "kept", network.make, changes)[2]["lr"] == lr


def test_a_checkpoint_that_was_fine_tuned_begins_where_its_file_says(factories, tmp_path):
    "Where these weights are gone, a restart is warned about, and retrains are refused."
    _, split = factories
    start = save_tensors(tmp_path / "start.safetensors", small_network(torch.Generator().manual_seed(0)))
    for weights, said in ((str(start), str(start)), ("gone.safetensors", "gone.safetensors"), ("", "timm's hub")):
        spec = ModelSpec("small_cnn", tuple("abc"), 8, pretrained=True, weights=weights)
        model = replace(spec, pretrained=False).make(torch.Generator().manual_seed(1))
        network = open_network(str(save_checkpoint(tmp_path / "tuned.safetensors", model, spec)))
        assert network.pretrained == said
        if weights == str(start):
            make, file = beginning_of(network, "", "", "retrain", split)
            assert isinstance(make, Begun) and make.weights == file == str(start)
            continue
        with pytest.raises(MagaError, match=r"began with pretrained weights \(.*which are not here: name them \(--pretrained\)"):
            beginning_of(network, "", "", "retrain", split)
        with pytest.warns(UserWarning, match="restart begins with untrained ones"):
            assert beginning_of(network, "", "", "auto", split) == (network.make, "")
        assert beginning_of(network, str(start), "", "retrain", split)[1] == str(start)


def test_weights_in_a_folder_or_of_a_package_are_written_as_their_file(factories, tmp_path, monkeypatch):
    state = torch.load(tmp_path / "net.pth")
    (tmp_path / "pack_of_nets").mkdir()
    (tmp_path / "pack_of_nets/__init__.py").touch()
    torch.save(state, tmp_path / "pack_of_nets/net.bin")
    (tmp_path / "folder").mkdir()
    torch.save(state, tmp_path / "folder/pytorch_model.bin")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(PACKAGED, "mine", Packaged("pack-of-nets", "pack_of_nets", "net.bin", "nets"))
    for weights, file in (("folder", "folder/pytorch_model.bin"), ("mine", "pack_of_nets/net.bin")):
        network = open_network(f"{tmp_path}/nets.py:Net", weights if weights == "mine" else str(tmp_path / weights))
        assert network.weights == tmp_path / file and network.sha256
        again = torch.load(network.write(network.model, tmp_path / "out"))
        assert list(again) == list(state) and all(torch.equal(v, state[k]) for k, v in again.items())


def test_half_of_a_normalisation_is_refused_and_its_source_is_told(factories):
    "A mean of the user's is not completed with a deviation that the network's description has."
    opened, split = factories
    network = replace(opened("Net"), mean=(0.1,) * 3, std=(0.2,) * 3)
    for half, says in (({"mean": (0.5,) * 3}, "mean is given without std"), ({"std": (0.5,) * 3}, "std is given without mean")):
        for source in ("timm:resnet18", "hf:somebody/net", "model.safetensors", "net.py:Net"):
            with pytest.raises(MagaError, match=says):
                check_named(source, **half)
        with pytest.raises(MagaError, match=says):
            seen_by(network, split.train, **half)
    said = said_of_view(seen_by(network, split.train), False)
    assert said.endswith("mean 0.1, 0.1, 0.1 and standard deviation 0.2, 0.2, 0.2, as the network says itself.")
    assert said_of_view(seen_by(network, split.train, mean=(0.5,) * 3, std=(0.5,) * 3), True).endswith("0.5, as you say.")


def test_an_opened_network_leaves_the_process_as_it_was(factories, tmp_path, monkeypatch):
    "Its random state and where modules are looked for; an error of its code is told in one line."
    opened, _ = factories
    (tmp_path / "module_of_nets.py").write_text((tmp_path / "nets.py").read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    places, before = [*sys.path], torch.get_rng_state()
    opened("Net")
    open_network("module_of_nets:itself", "net.pth")
    assert torch.equal(torch.get_rng_state(), before) and sys.path == places
    with pytest.raises(MagaError, match="RuntimeError: no such layer") as found:
        opened("broken")
    assert "\n" not in str(found.value)
