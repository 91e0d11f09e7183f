"""Bad inputs end in one sentence, and those that have a right answer get it. Every case is a line; none of them trains."""

import copy
import json
import math
import warnings
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from maga.data import ForgetSplit, ImageSet, MagaError, class_id, forget_class, forget_random, forget_subclass, random_views
from maga.device import pick_device
from maga.experiments.settings import seeds_of
from maga.experiments.store import Row, Spec, Store
from maga.judges.__main__ import main
from maga.judges.contract import FeatureJudge, draw_exemplars
from maga.judges.controls import random_judge
from maga.judges.named import JudgeOptions
from maga.judges.transition import TransitionMatrix
from maga.measures.metrics import Outputs, entropy_mia, measure, predict, total_variation
from maga.methods.contract import METHODS, get_method, with_change
from maga.methods.labels import class_overlap, perturbing_labels, random_labels, rank_of, soft_targets
from maga.methods.noise import NoiseConfig, combine_noise, make_noise
from maga.methods.retraining import RetrainConfig
from maga.models import Classifier, ModelSpec, load_checkpoint, save_checkpoint, small_network
from maga.own import forgetting
from maga.own.doubts import found_useless
from maga.own.forgetting import Plan, Wanted, forget, planned
from maga.own.networks import write_weights
from maga.own.retrains import usual_rates
from maga.pretrained import save_tensors
from maga.sources import from_folder, from_parquet, load
from maga.training import Examples, FitConfig, fit

from .conftest import generator, raising
from .forked import Forked

K7, K12 = small_network(generator(), classes=7), small_network(generator(), classes=12)
NET = small_network(generator())
NAN = float("nan")
FIVE = torch.zeros(5, 10)
YES = torch.ones(2, 10, dtype=torch.bool)


def images(n=4, labels=None, classes=("a", "b"), **more):
    pixels = torch.zeros(n, 3, 8, 8, dtype=torch.uint8)
    return ImageSet(pixels, torch.zeros(n, dtype=torch.int64) if labels is None else labels, classes, **more)


def spoilt():
    net = small_network(generator())
    next(net.parameters()).data.fill_(NAN)
    return net


@pytest.fixture(scope="module")
def w(tmp_path_factory, digit_sets, split):
    "A folder with bad files, and small good things beside it."
    w = type("World", (), {})()
    w.folder, (w.train, w.test), w.split = tmp_path_factory.mktemp("bad"), digit_sets, split
    w.short = FitConfig(1, 32, pad=0, flip=False)
    w.examples = Examples.of(w.train, torch.arange(64))
    w.spec = ModelSpec.of("small_cnn", w.train)
    w.T = TransitionMatrix.from_similarity(torch.ones(10, 10), w.train.classes)
    for name, header in (("badmeta", "{no"), ("badspec", '{"foo": 1}'), ("badspec2", "[1]")):
        save_file({k: v.contiguous() for k, v in NET.state_dict().items()}, w.folder / f"{name}.safetensors", {"maga": header})
    save_file({"S": torch.ones(2, 2), "T": torch.ones(2, 2) / 2}, w.folder / "T.safetensors", {"classes": "{", "about": "{"})
    save_checkpoint(w.folder / "nan.safetensors", spoilt(), w.spec)
    (w.folder / "file.txt").write_text("a file")
    for name, cells in (("nolabel", [(b"x", None)]), ("noimage", [(None, 0)]), ("norows", [])):
        features = {"img": {"_type": "Image"}, "label": {"names": ["a", "b"], "_type": "ClassLabel"}}
        (w.folder / name).mkdir()
        table = pa.table({"img": pa.array([c[0] for c in cells], pa.binary()), "label": pa.array([c[1] for c in cells], pa.int64())})
        for part in ("train", "test"):
            meta = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
            pq.write_table(table.replace_schema_metadata(meta), w.folder / name / f"{part}-0.parquet")
    return w


def maga(w, **changes):
    return get_method("maga").preset("digits", **{"transition": w.T} | changes)


def run(w, name, model=NET, config=None, g=None):
    return get_method(name)(model, w.split, config or get_method(name).preset("digits"), g or generator())


REFUSED = {
    # images
    "labels a list": lambda w: images(labels=[0, 0, 0, 0]),
    "classes a string": lambda w: images(classes="ab"),
    "class names twice": lambda w: images(classes=("a", "a")),
    "mean of one": lambda w: images(mean=(0.5,)),
    "std zero": lambda w: images(std=(0.0, 0.0, 0.0)),
    "mean NaN": lambda w: images(mean=(NAN,) * 3),
    "mean up to 255": lambda w: images(mean=(128.0,) * 3),
    "size 0": lambda w: images(size=0),
    "size a text": lambda w: images(size="32"),
    "size 2.5": lambda w: images().resized(2.5),
    "no such argument": lambda w: replace(images(), sise=3),
    "load: device gpu": lambda w: load("digits", device="gpu"),
    "load: no cuda": lambda w: load("digits", device=f"cuda:{torch.cuda.device_count()}"),
    "load: a number": lambda w: load(5),
    "load: mean of two": lambda w: load("digits", mean=(0.5, 0.5), std=(0.2,) * 3),
    "load: std zero": lambda w: load("digits", std=(0, 0, 0)),
    "load: size 0": lambda w: load("digits", size=0),
    "device None": lambda w: pick_device(None),
    "device meta": lambda w: pick_device("meta"),
    "parquet: label null": lambda w: from_parquet(w.folder / "nolabel"),
    "parquet: image null": lambda w: from_parquet(w.folder / "noimage"),
    "parquet: no rows": lambda w: from_parquet(w.folder / "norows"),
    "folder: a file": lambda w: from_folder(w.folder / "file.txt"),
    # requests
    "class 3.0": lambda w: forget_class(w.train, w.test, 3.0),
    "class None": lambda w: forget_class(w.train, w.test, None),
    "class a tensor": lambda w: forget_class(w.train, w.test, torch.tensor(3)),
    "class True": lambda w: class_id(("a", "b"), True),
    "train and test of other data": lambda w: forget_class(w.train, images(classes=("three", "four")), "three"),
    "test in another order": lambda w: forget_class(w.train, replace(w.test, classes=w.test.classes[::-1]), "three"),
    "train a tensor": lambda w: forget_class(w.train.images, w.test, "three"),
    "subclass of a tensor": lambda w: forget_subclass(w.train.images, w.test, "three"),
    "random 2.5": lambda w: forget_random(w.train, w.test, 2.5),
    "random seed a": lambda w: forget_random(w.train, w.test, 2, seed="a"),
    "random seed 1.5": lambda w: forget_random(w.train, w.test, 2, seed=1.5),
    "random seed of twenty digits": lambda w: forget_random(w.train, w.test, 2, seed=10**20),
    "forgotten 77": lambda w: replace(w.split, forgotten=(77,)),
    "forgotten of another class": lambda w: replace(w.split, forgotten=(5,)),
    "task of no kind": lambda w: ForgetSplit(w.train, w.test, torch.arange(3), torch.arange(0), "some", "x"),
    # models and files
    "arch None": lambda w: ModelSpec(None, ("a", "b")),
    "size 7 for a ViT": lambda w: ModelSpec("vit_tiny", ("a", "b"), 7).make(generator()),
    "make without generator": lambda w: w.spec.make(None),
    "file: bad header": lambda w: load_checkpoint(w.folder / "badmeta.safetensors"),
    "file: unknown field": lambda w: load_checkpoint(w.folder / "badspec.safetensors"),
    "file: header a list": lambda w: load_checkpoint(w.folder / "badspec2.safetensors"),
    "file: NaN": lambda w: load_checkpoint(w.folder / "nan.safetensors"),
    "file: device gpu": lambda w: load_checkpoint(w.folder / "nan.safetensors", device="gpu"),
    "save without description": lambda w: save_checkpoint(w.folder / "x.safetensors", NET, None),
    "save with other classes": lambda w: save_checkpoint(w.folder / "x.safetensors", NET, ModelSpec("small_cnn", ("a", "b", "c"), 8)),
    "head of no layer": lambda w: Classifier(NET, "fc"),
    # training
    **{f"fit: {c}": lambda w, c=c: FitConfig(**c) for c in (
        {"epochs": 1.5}, {"epochs": "3"}, {"lr": "0.1"}, {"momentum": -1}, {"weight_decay": -1}, {"warmup": 2}, {"pad": -1}, {"epoch": 3},
        {"milestones": 5}, {"gamma": -1}, {"lr": NAN}, {"lr": math.inf}, {"epochs": True}, {"optimizer": "lion"}, {"flip": 1}, {"amp": "yes"},
    )},
    "fit: pad 100": lambda w: fit(NET, w.examples, replace(w.short, pad=100), generator()),
    "fit: generator None": lambda w: fit(NET, w.examples, w.short, None),
    "fit: generator a seed": lambda w: fit(NET, w.examples, w.short, 0),
    "fit: an ImageSet": lambda w: fit(NET, w.train, w.short, generator()),
    "fit: 7 outputs": lambda w: fit(K7, w.examples, w.short, generator()),
    "fit: 12 outputs": lambda w: fit(K12, w.examples, w.short, generator()),
    "fit: half precision": lambda w: fit(small_network(generator()).half(), w.examples, w.short, generator()),
    "fit: nothing moves": lambda w: fit(small_network(generator()).requires_grad_(False), w.examples, w.short, generator()),
    "fit: NaN": lambda w: fit(spoilt(), w.examples, w.short, generator()),
    "index out of range": lambda w: Examples(w.train, torch.tensor([99999]), torch.tensor([0])),
    "index negative": lambda w: Examples(w.train, torch.tensor([-1]), torch.tensor([0])),
    # measures
    "measure: swapped": lambda w: measure(w.split, NET),
    "measure: state dict": lambda w: measure(NET.state_dict(), w.split),
    "measure: a class": lambda w: measure(nn.Linear, w.split),
    "measure: retrain of other classes": lambda w: measure(Outputs.of(NET, w.split), w.split, K7),
    "measure: outputs of another split": lambda w: measure(Outputs(FIVE, FIVE), w.split),
    "measure: empty test set": lambda w: measure(NET, forget_class(w.train, w.test.subset(torch.arange(0)), 3)),
    "attack: nothing forgotten": lambda w: entropy_mia(FIVE, FIVE, FIVE[:0]),
    "attack: NaN": lambda w: entropy_mia(FIVE, FIVE * NAN, FIVE),
    "total variation of logits": lambda w: total_variation(FIVE - 1, FIVE + 3),
    "predict: batch size -1": lambda w: predict(NET, w.test, batch_size=-1),
    "predict: indices a list": lambda w: predict(NET, w.test, [1, 2]),
    # methods
    "rank of nothing": lambda w: rank_of(0.3, 10, 0),
    "labels: NaN": lambda w: perturbing_labels(FIVE[:2] * NAN, ~YES, 0.3),
    "labels: all forbidden": lambda w: perturbing_labels(FIVE[:2], YES, 0.3),
    "labels: other shape": lambda w: perturbing_labels(FIVE, ~YES, 0.3),
    "random labels: all forbidden": lambda w: random_labels(YES, generator()),
    "soft targets: all forbidden": lambda w: soft_targets(FIVE[:2], YES),
    "overlap: T of other classes": lambda w: class_overlap(torch.ones(3, 3), FIVE, torch.zeros(5, dtype=torch.int64)),
    **{f"noise: {c}": lambda w, c=c: NoiseConfig(**c) for c in ({"chunk": 0}, {"size": 2.5}, {"size": "4"}, {"stop": 0.0})},
    "noise: class 99": lambda w: make_noise(NET, w.train, [99], 1, NoiseConfig(2), generator()),
    "noise: no class": lambda w: make_noise(NET, w.train, [], 1, NoiseConfig(2), generator()),
    "noise: sign": lambda w: make_noise(NET, w.train, [1], "positive", NoiseConfig(2), generator()),
    "noise: shapes": lambda w: combine_noise(torch.zeros(2, 3, 4, 4), torch.zeros(3, 3, 4, 4), 0.5),
    "maga: T a tensor": lambda w: maga(w, transition=w.T.T),
    "maga: T a path": lambda w: maga(w, transition="T.safetensors"),
    "maga: generator None": lambda w: get_method("maga")(NET, w.split, maga(w), None),
    "maga: generator 0": lambda w: get_method("maga")(NET, w.split, maga(w), 0),
    "maga: model a path": lambda w: run(w, "maga", "model.pt", maga(w)),
    "maga: swapped": lambda w: get_method("maga")(w.split, NET, maga(w), generator()),
    "maga: tau a text": lambda w: maga(w, tau="0.3"),
    "maga: fit None": lambda w: maga(w, fit=None),
    "maga: a field that is not there": lambda w: maga(w, tua=0.3),
    **{f"{name}: {k} outputs": lambda w, name=name, net=net: run(w, name, net) for name in ("ssd", "salun", "maga_soft", "finetune")
       for k, net in ((7, K7), (12, K12))},
    "ssd: lam NaN": lambda w: get_method("ssd").preset("digits", lam=NAN),
    "restart: make_model without argument": lambda w: run(w, "restart", config=get_method("restart").preset("digits", make_model=lambda: NET)),
    "restart: make_model a model": lambda w: run(w, "restart", config=get_method("restart").preset("digits", make_model=K7)),
    "restart: make_model gives nothing": lambda w: run(w, "restart", config=get_method("restart").preset("digits", make_model=lambda g: None)),
    "retrain: make_model a text": lambda w: RetrainConfig("small_cnn"),
    "restart: retain_images -5": lambda w: get_method("restart").preset("digits", retain_images=-5),
    "experts: pad 100": lambda w: run(w, "maga_soft", config=with_change(get_method("maga_soft").preset("digits"), "experts.pad", 100)),
    "change of no field": lambda w: with_change(get_method("maga").preset("digits"), "tau.x", 1),
    "change to a text": lambda w: with_change(get_method("maga").preset("digits"), "fit.lr", "x"),
    # judges
    "exemplars 0": lambda w: draw_exemplars(w.train, 0, generator()),
    "exemplars -1": lambda w: draw_exemplars(w.train, -1, generator()),
    "exemplars 2.5": lambda w: draw_exemplars(w.train, 2.5, generator()),
    "judge of a path": lambda w: FeatureJudge("model.pt", w.train),
    "judge: seed of twenty digits": lambda w: random_judge(w.train, "9" * 20),
    "judge: batch size 0": lambda w: JudgeOptions(batch_size=0),
    "T: bad header": lambda w: TransitionMatrix.load(w.folder / "T.safetensors"),
    "T: class 99": lambda w: w.T.show([99]),
    # stores
    "store is a file": lambda w: Store(w.folder / "file.txt").put(Row("k", Spec("digits", "class", "three", "resnet10", "maga", "digits"))),
    "seed of twenty digits": lambda w: Spec("digits", "class", "three", "resnet10", "maga", "digits", training_seed=10**19),
    "seeds of twenty digits": lambda w: seeds_of("0," + "9" * 20),
    "seed negative": lambda w: seeds_of("-1"),
    # a plan for a user's network
    "plan: a seed in words": lambda w: planned(NET, w.split, seed="one"),
    "plan: changes in one text": lambda w: planned(NET, w.split, changes="fit.lr=0.05"),
    "plan: changes in a list": lambda w: planned(NET, w.split, changes=["fit.lr=0.05"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_sentence(name, w):
    with pytest.raises(MagaError) as error:
        REFUSED[name](w)
    said = str(error.value)
    assert 20 < len(said) < 420 and "\n" not in said and said[-1] in ".)]", said


def test_a_poisoned_store_heals(tmp_path):
    "A row with an absurd seed, from before seeds were checked, is ignored."
    store = Store(tmp_path)
    good = store.put(Row("0" * 16, Spec("digits", "class", "three", "resnet10", "original", "")))
    raw = json.loads(good.to_json())
    raw["key"], raw["spec"]["training_seed"] = "1" * 16, 10**20
    store.row_path("1" * 16).write_text(json.dumps(raw))
    assert [r.key for r in store.rows()] == ["0" * 16]
    assert len(store.tidy()) == 1


def test_right_results():
    "What looks odd and has an answer gets it."
    grey = ImageSet(torch.arange(2 * 64, dtype=torch.uint8).view(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64), ["a", "b"])
    assert grey.images.shape == (2, 3, 8, 8) and grey.classes == ("a", "b")
    assert load("digits", size=16)[0].batch(torch.arange(2)).shape == (2, 3, 16, 16)
    assert FitConfig(milestones=[3, 5]).milestones == (3, 5)
    assert random_views(2, 1, generator()).shift.shape == (2, 2)
    assert set(METHODS) >= {"restart", "maga_soft", "ssd", "salun"}


def test_a_command_with_an_absurd_seed(tmp_path):
    done = Forked(main, ["--data", "digits", "--judge", "random", "--seed", "9" * 30, "--out", str(tmp_path / "T.safetensors")]).ended()
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_sixteen_bits(tmp_path):
    Image.fromarray((torch.arange(64).view(8, 8) * 1000).to(torch.int32).numpy().astype("uint16")).save(tmp_path / "grey.png")
    from maga.sources import decode

    assert decode(tmp_path / "grey.png")[..., 0].flatten().tolist() == [round(i * 1000 / 257) for i in range(64)]


# a request of one's own


@pytest.mark.filterwarnings("ignore:.*the same pixels")
def test_a_line_of_digits_is_no_picture_of_another_person():
    "Where images are named by numbers, it could be a file or a row: neither is taken. A row is one of the training part."
    named = images(200, files=tuple(f"train/a/{n + 77:06d}.png" for n in range(200))), images(4, files=tuple(f"test/a/{n}.png" for n in range(4)))
    for line in ("000123", "123", "0", "99999"):
        with pytest.raises(MagaError, match=rf"'{line}', and images are named by numbers.*\(from 0\); write the name of the file .* such as"):
            Wanted(files=("000124.png", line)).split(*named)
    assert Wanted(files=("000123.png", "train/a/000124.png")).split(*named).forget_train.tolist() == [46, 47]
    plain = images(200, files=tuple(f"train/a/x{n}.png" for n in range(200))), images(4, files=tuple(f"test/a/x{n}.png" for n in range(4)))
    assert Wanted(files=("123", "x7.png")).split(*plain).forget_train.tolist() == [7, 123]


def changed(model, *_, by=1 / 3):
    "Stands for a method: every parameter that may move is another one."
    made = copy.deepcopy(model)
    for p in made.parameters():
        if p.requires_grad:
            p.data.mul_(by).add_(by)
    return made


def test_a_request_that_cannot_be_measured_fails_before_the_method(w):
    "No test image is left: said at once, not when the work is done."
    none = forget_class(w.train, w.test.subset(torch.arange(0)), 3)
    with pytest.raises(MagaError, match="non_members is empty"):
        forget(NET, none, Plan(raising(AssertionError("the method ran")), None, ""))


class Momentum(nn.Module):
    "An encoder with a slow copy of it, a queue of features, and a frozen body that no training made."

    def __init__(self, g=None):
        super().__init__()
        self.body, self.encoder = nn.Linear(192, 192).requires_grad_(False), nn.Linear(192, 10)
        nn.init.eye_(self.body.weight)
        self.body.bias.data.copy_(torch.arange(192) / 192)
        self.ema = copy.deepcopy(self.encoder).requires_grad_(False)
        self.register_buffer("queue", torch.rand(10, 4, generator=g))
        self.register_buffer("ones", torch.ones(192))

    def forward(self, x):
        return self.encoder(self.body(x.flatten(1)))


def test_parts_that_are_the_originals_bit_for_bit_are_named(w):
    "With their shares; no constants, and nothing that the network holds before training, also where the file rounded it."
    model, known = Momentum(generator(1)).eval(), r"Unchanged: ema\.\* \(4.7 % of the numbers\), queue \(0.1 % of the numbers\). If they were trained"
    with pytest.warns(UserWarning, match=known):
        result = forget(model, w.split, Plan(changed, None, "", make_model=Momentum))
    assert len(result.doubts) == 1
    with pytest.warns(UserWarning, match=r"Unchanged: body\.\* \(90.1 % of the numbers\), ema"):
        forget(model, w.split, Plan(changed, None, ""))
    with pytest.warns(UserWarning, match=r"Unchanged: ema"):
        forget(model.half().float(), w.split, Plan(changed, None, "", make_model=Momentum))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert forget(NET, w.split, Plan(changed, None, "")).doubts == ()


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_another_optimiser_has_its_own_rate(kind, w, monkeypatch):
    "Neither the rate of the network's usual one, nor that of a preset, and it is tried at its own rates."
    usual, changes = usual_rates(kind)[1], {"fit.optimizer": kind}
    few = planned(NET, w.split, budget=0.05, trained=12, changes=changes)
    assert few.config.fit.lr == usual and f"{usual:g} is the usual one" in few.why
    assert planned(NET, w.split, preset="digits", changes=changes).config.fit.lr == usual
    assert planned(NET, w.split, preset="digits", changes=changes | {"fit.lr": 0.02}).config.fit.lr == 0.02
    assert planned(NET, w.split, preset="digits", changes={"fit.optimizer": "sgd"}).config.fit.lr == 0.1
    tried = []
    monkeypatch.setattr(forgetting, "tried_rates", lambda model, split, config, *_: tried.append(config.fit) or ({0.5: 9.0}, 0.0))
    assert planned(NET, w.split, changes=changes).config.fit.lr == 0.5 and tried[0].optimizer == kind and tried[0].lr == usual


def test_an_error_of_every_trial_is_raised(w, monkeypatch):
    "It is no accuracy of 0."
    config = forgetting.usual_restart(NET, w.split)
    monkeypatch.setattr(forgetting, "get_method", lambda name: raising(MagaError("no layer moves")))
    with pytest.raises(MagaError, match="no layer moves"):
        forgetting.tried_rates(NET, w.split, config, generator(), most=100)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_the_numbers_are_those_of_the_weights_that_are_written(kind, w, tmp_path):
    "A file of 16 bits: the result is rounded before it is measured, and what the file cannot hold is said."
    save_tensors(tmp_path / "old.safetensors", copy.deepcopy(NET).to(kind))
    result = forget(NET, w.split, Plan(changed, None, ""), like=tmp_path / "old.safetensors")
    written = load_file(write_weights(result.model, tmp_path / "old.safetensors", tmp_path / "new.safetensors"))
    read = copy.deepcopy(NET)
    read.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in written.items()})
    assert all(torch.equal(a, b) for a, b in zip(result.model.state_dict().values(), read.state_dict().values(), strict=True))
    assert measure(read.eval(), w.split) == result.after
    if kind == torch.float16:
        with pytest.raises(MagaError, match="is not finite in float16, the precision of the original's file: write the original's"):
            forget(NET, w.split, Plan(lambda model, *_: changed(model, by=1e5), None, ""), like=tmp_path / "old.safetensors")


@pytest.mark.filterwarnings("ignore:The pixels of forgotten images")
def test_one_answer_for_all_images_is_near_chance(w):
    "Also where it is right on 95 % of them: the mean of the classes' accuracies counts, so a network that knows the rare class as well passes."
    labels = torch.zeros(100, dtype=torch.int64).index_fill_(0, torch.arange(95, 100), 1)
    shades = (60 + 80 * labels)[:, None, None, None].expand(100, 3, 8, 8).to(torch.uint8).contiguous()
    split = forget_random(*(ImageSet(shades, labels, ("common", "rare"), mean=(0.5,) * 3, std=(0.5,) * 3) for _ in range(2)), 5)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    net[1].weight.data.zero_()
    net[1].bias.data.copy_(torch.tensor([3.0, -1.0]))
    assert "is right on 50.0 % of the retained test images (mean of the classes), near chance (50.0 %)" in found_useless(net, split)
    net[1].weight.data[1] = 1.0
    net[1].bias.data.copy_(torch.tensor([3.0, 2.0]))
    assert found_useless(net, split) == ""
