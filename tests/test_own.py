"""The command `maga`, as somebody with a network, a folder of images and a list of what must go."""

import ast
import contextlib
import copy
import csv
import errno
import hashlib
import importlib
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from typer.main import get_command
from typer.testing import CliRunner

from maga.adapter import prepared
from maga.cache import Undecoded, cached, caches_of
from maga.checks import MagaError
from maga.data import ImageSet, forget_class
from maga.device import seeded
from maga.judges.contract import Answers, Block, image_hashes
from maga.judges.transition import TransitionMatrix
from maga.mapped import alike
from maga.measures.cost import counted_passes
from maga.measures.metrics import Outputs, measure
from maga.methods.contract import get_method, show_flow
from maga.models import ModelSpec, load_checkpoint, save_checkpoint
from maga.own import command, forgetting, inputs, report
from maga.own.artefacts import Artefact, _unread, answers_about, purge, read_artefacts, write_artefacts
from maga.own.audit import audit
from maga.own.audited import check_audit, keep_audit
from maga.own.doubts import names_among
from maga.own.forgetting import Wanted, transition_of
from maga.own.inputs import check_free, inputs_of
from maga.own.ledger import Entry, Ledger, carried_out, imported_beside, in_force, open_result
from maga.own.listing import methods_there_are, metrics_there_are
from maga.own.networks import Network, _processor, open_network, write_weights
from maga.own.order import in_model_order, lines_of
from maga.own.report import _picture
from maga.own.retrains import begun_with, retrain_files, trained_retrains, usual_training
from maga.packaged import file_revision
from maga.pretrained import save_tensors
from maga.requests import after, forget_files
from maga.sources import digits, from_folder
from maga.training import Examples, FitConfig, fit

from .conftest import raising
from .forked import ROOT, Forked

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten())
        self.out = nn.Linear(16 * 16, 10)

    def forward(self, x):
        return {"logits": self.out(self.body(x)), "more": x.mean()}

def hungry(path, depth):
    return Net()

def broken():
    raise RuntimeError("no such layer")

def nothing():
    return 3
"""


def as_folder(place, parts):
    for part, images in parts.items():
        for n in range(len(images)):
            file = place / part / images.classes[int(images.labels[n])] / f"{n:04d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images.images[n].permute(1, 2, 0).numpy()).save(file)


def photographed():
    "Training and test images of the desk's photos: every second digit."
    return tuple(images.subset(torch.arange(0, len(images), 2)) for images in digits())


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    "A folder with photos, networks of four kinds that know them, and a list of 30 files."
    place = tmp_path_factory.mktemp("desk")
    (place / "cache").mkdir()
    train, test = photographed()
    train, test = (s.__class__(s.images, s.labels, s.classes, name="photos", mean=(0.5,) * 3, std=(0.5,) * 3) for s in (train, test))
    as_folder(place / "photos", {"train": train, "test": test})
    (place / "net.py").write_text(NET)
    names = sorted(str(p.relative_to(place / "photos")) for p in (place / "photos/train").rglob("*.png"))
    (place / "empty.txt").write_text("\n")
    (place / "gone.txt").write_text("\n".join(names[::23][:30]) + "\n")
    g, brief = torch.Generator().manual_seed(0), FitConfig(8, 32, lr=0.1, pad=0, flip=False)
    exec(NET, found := {})
    net = fit(found["Net"](), Examples.of(in_model_order(train, sorted(train.classes))), brief, g)
    torch.save({"model": {f"module.{k}": v for k, v in net.state_dict().items()}, "optimizer": {"m": torch.ones(2)}, "epoch": 6}, place / "net.pth")
    spec = ModelSpec.of("small_cnn", train)
    model = fit(spec.make(g), Examples.of(train), brief, g)
    save_checkpoint(place / "model.safetensors", model, spec, date="2026-01-01")
    save_tensors(place / "half.safetensors", copy.deepcopy(model).half())
    return place


@pytest.fixture
def at(desk, monkeypatch):
    "The desk as current folder; a function that runs a line: (exit code, standard output, standard error)."
    monkeypatch.chdir(desk)
    monkeypatch.setenv("MAGA_CACHE", str(desk / "cache"))

    def run(line, capsys):
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            command.main()
            sys.exit(0)
        out = capsys.readouterr()
        return end.value.code or 0, out.out, out.err

    return run


COMMANDS = get_command(command.app).commands


def examples():
    for name, _c in COMMANDS.items():
        shown = CliRunner().invoke(command.app, [name, "--help"]).output
        found = re.findall(r"^\s+(maga .+)$", shown.split("Example")[-1], re.M)
        yield name, [re.sub(r"\s+", " ", f) for f in found]


def test_every_command_has_an_example():
    assert set(COMMANDS) >= {"forget", "audit", "purge", "methods", "judges", "metrics", "reproduce", "judge", "bench"}
    for name, found in examples():
        assert found and all(f.startswith(f"maga {name}") for f in found), name


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_run(name, at, desk, capsys):
    "In the order in which a reader would try them; `bench --help` alone is no work."
    lines = dict(examples())[name]
    if name in ("purge", "audit") and not (desk / "forgotten").exists():
        lines = [dict(examples())["forget"][0], *lines]
    for line in lines:
        code, out, err = at(line, capsys)
        assert code == 0 and out.strip(), (line, err)


def walk_through():
    "The lines that `studies/own_model` types, in its order: its cells are read, and of them only texts and numbers are computed."
    cells = json.loads((ROOT / "nbs/experiments/studies/own_model.ipynb").read_text(encoding="utf-8"))["cells"]
    known = {"range": range, "target": "three"}

    def value(expression):
        return eval(compile(ast.Expression(expression), "own_model", "eval"), {"__builtins__": {}}, known)

    for statement in [s for c in cells if c["cell_type"] == "code" for s in ast.parse("".join(c["source"])).body]:
        with contextlib.suppress(NameError):  # it needs more than texts and numbers
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name) and statement.targets[0].id != "target":
                known[statement.targets[0].id] = value(statement.value)
            if isinstance(statement, ast.Expr):
                typed = [c for c in ast.walk(statement) if isinstance(c, ast.Call) and getattr(c.func, "id", "") == "typed"]
                yield from [value(call.args[0]) for call in typed]


def test_the_lines_of_the_walk_through_are_understood():
    "Every command, option and value of `studies/own_model` is one that the command takes; each network is there when a line names it."
    lines = [shlex.split(line) for line in walk_through() if line.startswith("maga ")]
    assert [line[1] for line in lines] == ["forget", "forget", "audit", "audit", "purge"]
    made = {"net.pth"}
    for _, name, *rest in lines:
        given = COMMANDS[name].make_context(name, rest).params
        named = [given.get(k) for k in ("model", "unlearned", "folder") if given.get(k) and ":" not in given[k]]
        assert made.issuperset(named), (name, named)
        if name == "forget":
            made.add(given["out"])
        if name == "audit":
            assert given["retrain"] == [f"retrain_{seed}.pth" for seed in range(1, 6)] and given["forget"] == ["three"]


def test_a_class_goes_and_the_weights_load_where_they_came_from(at, desk, capsys):
    "The user's own class reads the result; names, container and precision are those of the input; the optimiser's state is gone."
    code, out, err = at("maga forget --model net.py:Net --weights net.pth --mean 0.5 --std 0.5 --data photos --forget three --out own --json", capsys)
    assert code == 0, err
    record = json.loads(out)
    before, found = (torch.load(desk / p) for p in ("net.pth", "own/net.pth"))
    assert list(found) == ["model", "epoch"] and list(found["model"]) == list(before["model"])
    assert [v.dtype for v in found["model"].values()] == [v.dtype for v in before["model"].values()]
    exec(NET, own := {})
    net = own["Net"]()
    net.load_state_dict({k.removeprefix("module."): v for k, v in found["model"].items()})
    _, test = photographed()
    ordered = in_model_order(test, sorted(test.classes))
    images = ordered.__class__(ordered.images, ordered.labels, ordered.classes, mean=(0.5,) * 3, std=(0.5,) * 3)
    with torch.no_grad():
        right = net.eval()(images.batch(torch.arange(len(images))))["logits"].argmax(1) == images.labels
    three = images.labels == sorted(test.classes).index("three")
    a_r, a_f = (100 * right[m].double().mean().item() for m in (~three, three))
    said = {n["name"]: n for n in record["numbers"]}
    assert abs(said["A_r"]["after"] - a_r) < 1e-6 and abs(said["A_f"]["after"] - a_f) < 1e-6
    assert a_f <= 5 and a_r >= said["A_r"]["before"] - 2, said
    page = (desk / "own/report.html").read_text()
    assert "undecided" in page and "<img" not in page and not re.search(r'(src|href)="http', page)
    assert {p.name for p in (desk / "own").iterdir()} == {"net.pth", "report.html", "report.json", "model_card.md", "artefacts.csv", "ledger.json"}


SECOND = """
from net import Net, nn

class Two(Net):
    def __init__(self):
        super().__init__()
        self.aux = nn.Linear(16 * 16, 10)

    def forward(self, x):
        phi = self.body(x)
        return self.out(phi), self.aux(phi)
"""


def test_a_second_head_is_said_to_know_the_class(at, desk, capsys):
    "On the terminal, in the report, to a script and by an audit: its training never reached that layer."
    (desk / "two.py").write_text(SECOND)
    weights = torch.load(desk / "net.pth")["model"]
    net = {k.removeprefix("module."): v for k, v in weights.items()}
    torch.save(net | {f"aux.{k}": net[f"out.{k}"].clone() for k in ("weight", "bias")}, desk / "two.pth")
    line = "maga forget --model two.py:Two --weights two.pth --mean 0.5 --std 0.5 --data photos --forget three --method ssd --out second"
    with pytest.warns(UserWarning, match="Training did not reach aux: the logits"):
        code, _out, err = at(line, capsys)
    assert code == 0 and "Note: Training" not in err, err  # it is said once
    record = json.loads((desk / "second/report.json").read_text())
    assert [w for w in record["warnings"] if w.startswith("Training did not reach aux")] and "did not reach aux" in (desk / "second/report.html").read_text()
    line = "maga audit --model two.py:Two --original two.pth --unlearned second --mean 0.5 --std 0.5 --data photos --forget three"
    assert "did not reach aux" in at(line, capsys)[2]


def begun_from(weights, model, make, classes=3, size=16):
    "The network that `--pretrained` begins with, of a request on a few noisy images."
    pixels = torch.randint(0, 256, (12, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = ImageSet(pixels, torch.arange(12) % classes, tuple("abc"), mean=(0.5,) * 3, std=(0.5,) * 3)
    return begun_with(weights, model, make, forget_class(images, images, "a"))(torch.Generator().manual_seed(0))


def test_a_backbone_of_hugging_face_is_what_training_began_with(tmp_path):
    "Saved by ViTModel, its names have no prefix; in a folder or as the file in it. The original's own folder is refused."
    from transformers import ViTConfig, ViTForImageClassification, ViTModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 16, "patch_size": 8}
    body, make = ViTModel(ViTConfig(**sizes)), lambda g: ViTForImageClassification(ViTConfig(**sizes, num_labels=3))
    body.save_pretrained(tmp_path / "body")
    torch.save(body.state_dict(), tmp_path / "body.pth")
    tuned = make(None).eval()
    tuned.save_pretrained(tmp_path / "tuned")
    for where in ("body", "body/model.safetensors", "body.pth"):
        begun = begun_from(tmp_path / where, tuned, make).vit.state_dict()
        assert all(torch.equal(v, body.state_dict()[k]) for k, v in begun.items())
    with pytest.raises(MagaError, match="holds the original itself"):
        begun_from(tmp_path / "tuned", tuned, make)


def test_a_vit_of_timm_begins_at_another_size_of_images(tmp_path):
    "Its position embeddings are interpolated as timm does itself."
    small = {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8}

    def make(g, size=16, k=3):
        return timm.create_model("vit_tiny_patch16_224", img_size=size, num_classes=k, **small)

    torch.save((large := make(None, 32, 5)).state_dict(), tmp_path / "large.pth")
    begun = begun_from(tmp_path / "large.pth", make(None).eval(), make)
    assert torch.equal(begun.blocks[0].attn.qkv.weight, large.blocks[0].attn.qkv.weight)
    wanted = timm.layers.resample_abs_pos_embed(large.pos_embed, [2, 2], num_prefix_tokens=1)
    assert torch.allclose(begun.pos_embed, wanted, atol=1e-6)


@pytest.mark.parametrize("name, size", [("test_vit", 32), ("resnet10t", 32)])
def test_networks_of_timm_open_at_the_size_of_the_images(name, size, tmp_path):
    "Those that are made for one size, whatever their names; others take any."
    sized = {} if name == "resnet10t" else {"img_size": size}
    torch.save(timm.create_model(name, num_classes=2, **sized).state_dict(), tmp_path / "net.pth")
    network = open_network(f"timm:{name}", str(tmp_path / "net.pth"), ["a", "b"], size)
    assert network.model(torch.zeros(1, 3, size, size)).shape == (1, 2)


def test_outputs_without_class_folders_ask_for_all_classes(split, original, tmp_path):
    "As after a forgotten class's folder is deleted."
    (tmp_path / "net.py").write_text(NET + "\ndef sized(num_classes):\n    net = Net()\n    net.out = nn.Linear(256, num_classes)\n    return net\n")
    exec(NET, found := {})
    torch.save(found["Net"]().state_dict(), tmp_path / "net.pth")
    with pytest.raises(MagaError, match=r"has 10 outputs, and 9 classes are known: name all in the order of the logits \(--classes"):
        open_network(f"{tmp_path}/net.py:sized", str(tmp_path / "net.pth"), list("abcdefghi"))
    with pytest.raises(MagaError, match=r"gives \[2, 10\].*name all of its classes in the order of its logits.*--classes"):
        prepared(original, split.train, 9)


def test_a_class_with_a_blank_at_its_end_can_be_named():
    assert names_among("b b,C, d", ("b b ", "C, d")) == ["b b ", "C, d"] and names_among("b ,b", ("b ", "b")) == ["b", "b"]


def test_weights_that_changed_are_another_request(at, desk, capsys):
    "The same line with new weights under the old name is refused, not answered with the old result."
    line = "maga forget --model again.safetensors --data photos --forget one --out again --set fit.epochs=1 --set fit.lr=0.1"
    (desk / "again.safetensors").write_bytes((desk / "model.safetensors").read_bytes())
    assert at(line, capsys)[0] == 0 and "is done" in at(line, capsys)[1]
    os.utime(desk / "again.safetensors", ns=(1, 1))
    code, _out, err = at(line, capsys)
    assert code == 1 and "again exists and holds another result, or that of inputs that changed since; name another folder" in err


def test_thirty_files_go(at, desk, capsys):
    "Named one a line; they are measured as training images, and the cache is in the list of what remembers them until it is purged."
    code, _out, err = at("maga forget --model model.safetensors --data photos --files gone.txt --out files --set fit.epochs=2 --set fit.lr=0.05", capsys)
    assert code == 0, err
    record = json.loads((desk / "files/report.json").read_text())
    assert record["task"] == "random" and record["images"] == {"forgotten": 30, "retained": 689, "forgotten test": 0}
    with (desk / "files/artefacts.csv").open() as f:
        listed = list(csv.DictReader(f))
    cached = [Path(a["path"]) for a in listed if a["whose"] == "maga's" and a["holds"] == "pixels"]
    assert cached and all(p.exists() for p in cached)
    assert sum(int(a["what"].split()[0]) for a in listed if a["what"].endswith("forgotten images")) == 30
    assert at("maga purge files", capsys)[0] == 0 and not any(p.exists() for p in cached)


def test_a_second_request_starts_from_the_first(at, desk, capsys):
    "Three goes, then eight from that folder: three stays gone, and its images are not shown; a third request remembers both."
    for line in (
        "maga forget --model model.safetensors --data photos --forget three --out one --set fit.lr=0.1",
        "maga forget --model one --data photos --forget eight --out two --set fit.lr=0.1",
    ):
        assert at(line, capsys)[0] == 0
    record = json.loads((desk / "two/report.json").read_text())
    (desk / "notes.txt").write_text("a file beside it is no input")
    code, out, err = at(f"{line} --json", capsys)
    assert code == 0 and json.loads(out) == record and "This very request is done" in err
    said = {n["name"]: n["after"] for n in record["numbers"]}
    assert said["A_f"] <= 5 and said["A_earlier"] <= 5
    with (desk / "two/artefacts.csv").open() as f:
        listed = [Path(a["path"]) for a in csv.DictReader(f) if a["holds"] == "weights"]
    assert listed == [desk / "one/model.safetensors", desk / "model.safetensors"]
    _network, ledger = open_result(desk / "two")
    assert [e.classes for e in ledger.entries] == [("three",), ("eight",)]
    assert [len(e.right) for e in ledger.entries] == [9, 0] and "three" not in ledger.entries[0].right
    assert load_file(desk / "two/model.safetensors").keys() == load_file(desk / "model.safetensors").keys()
    train, test = photographed()
    split = in_force(forget_class(train, test, "six"), ledger.entries)
    assert set(split.forgotten) == {3, 6, 8} and (train.labels[split.earlier_train] != 6).all()
    n, line = int((train.labels == 3).sum()), "maga audit --data photos --forget eight --unlearned two --json --original"
    for source in ("one", "model.safetensors"):  # the images of three are no retained ones
        code, out, err = at(f"{line} {source}", capsys)
        assert code == 0 and f"after requests for {n} images" in err and json.loads(out)["retrains"] == 0, err
    code, _, err = at("maga audit --data photos --forget three --unlearned one --original model.safetensors", capsys)
    assert code == 0 and "after requests" not in err  # its own request is no earlier one


def test_the_ledger_is_after_with_images_that_are_gone():
    "`in_force` gives what `after` gives where the images are still there."
    train, test = digits()
    first, second = forget_class(train, test, "three"), forget_class(train, test, "eight")
    entry = Entry.of(first, "restart", "2026-01-01")
    a, b = after(second, first), in_force(second, [entry])
    assert a.forgotten == b.forgotten and torch.equal(a.earlier_train, b.earlier_train) and torch.equal(a.earlier_test, b.earlier_test)


@pytest.mark.parametrize("sizes", [("--size 8", ""), ("", "--size 8"), ("--size 8", "--size 8")])
def test_forgotten_images_are_found_at_whatever_size(sizes, at, desk, capsys, tmp_path):
    "The first request resizes while decoding or not; the second one, asked in another way, still does not show its images."
    train, test = digits()
    rows = torch.arange(300)
    few = [replace(s.subset(rows), images=s.images[rows].repeat_interleave(2, 2).repeat_interleave(2, 3)) for s in (train, test)]
    as_folder(tmp_path / "big", dict(zip(("train", "test"), few, strict=True)))
    first = few[0].labels.tolist().index(0)
    (tmp_path / "one.txt").write_text(f"train/zero/{first:04d}.png\n")
    line = f"maga forget --model model.safetensors --data {tmp_path}/big --files {tmp_path}/one.txt --out {tmp_path}/one"
    code, _, err = at(f"{line} --set fit.epochs=1 --set fit.lr=0.05 {sizes[0]}", capsys)
    assert code == 0, err
    size = 8 if sizes[1] else None
    _network, images, held_out, ledger = command.opened(f"{tmp_path}/one", "", f"{tmp_path}/big", "data", "cpu", size=size)
    split = in_force(forget_class(images, held_out, "eight"), ledger.entries)
    assert [images.files[i] for i in split.earlier_train.tolist()] == [f"train/zero/{first:04d}.png"]
    assert images.sides == (8, 8)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_entry_of_images_that_stay_on_the_host(monkeypatch):
    "A GPU that has no room for the images: the ledger hashes the same pixels."
    monkeypatch.setattr("maga.mapped.has_room", lambda nbytes, device="cpu": torch.device(device).type == "cpu")
    split = forget_class(*digits(), "three")
    moved = split.to("cuda")
    assert moved.train.device.type == "cuda" and moved.train.images.device.type == "cpu"
    assert Entry.of(moved, "restart", "2026-01-01") == Entry.of(split, "restart", "2026-01-01")


MOMENTS = {"trial": "maga.own.forgetting.tried_rates", "method": "maga.own.forgetting.counted_passes", "writing": "maga.own.report.card_of"}


def killed_at(place: str, arguments: list[str]) -> None:
    "The command, which ends by SIGKILL as soon as it calls what is there."
    module, name = place.rsplit(".", 1)
    setattr(importlib.import_module(module), name, lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL))
    sys.argv = ["maga", *arguments]
    command.main()


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_leaves_nothing_half_written(moment, at, desk, capsys):
    line = f"maga forget --model model.safetensors --data photos --forget two --out killed_{moment} --set fit.epochs=1"
    line += "" if moment == "trial" else " --set fit.lr=0.1"
    done = Forked(killed_at, MOMENTS[moment], shlex.split(line)[1:], folder=desk, MAGA_CACHE=str(desk / "cache")).ended()
    assert done.returncode == -9, done.stderr
    assert not (desk / f"killed_{moment}").exists()
    assert len(list(desk.glob(f".killed_{moment}.*"))) == (moment == "writing")
    for left in desk.glob(f".killed_{moment}.*"):
        for file in (*left.iterdir(), left):
            os.utime(file, (0, 0))
    assert at(line, capsys)[0] == 0
    assert (desk / f"killed_{moment}/report.html").exists() and not list(desk.glob(f".killed_{moment}.*"))


def test_timm_and_hugging_face(at, desk, capsys):
    "A timm network's state dict, and a folder of Hugging Face's that was made from a config: both come back in their own form."
    import timm
    from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

    train, _ = photographed()
    ordered = in_model_order(train, sorted(train.classes))
    data = ordered.__class__(ordered.images, ordered.labels, ordered.classes, mean=(0.5,) * 3, std=(0.5,) * 3)
    g = torch.Generator().manual_seed(0)
    net = fit(timm.create_model("test_resnet", num_classes=10), Examples.of(data), FitConfig(12, 32, lr=0.1, pad=0, flip=False), g)
    torch.save(net.state_dict(), desk / "timm.pth")
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=8, patch_size=2,
        id2label=dict(enumerate(reversed(ordered.classes))), label2id={c: k for k, c in enumerate(reversed(ordered.classes))},
    )  # fmt: skip
    turned = in_model_order(data, tuple(reversed(ordered.classes)))
    own = FitConfig(30, 32, "adamw", lr=3e-3, weight_decay=0.01, pad=0, flip=False)
    vit = fit(ViTForImageClassification(config), Examples.of(turned), own, g)
    vit.save_pretrained(desk / "hf")
    about = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (desk / "hf/preprocessor_config.json").write_text(json.dumps(about))
    for line, out in (
        ("--model timm:test_resnet --weights timm.pth --mean 0.5 --std 0.5", "with_timm"),
        ("--model hf", "with_hf"),
    ):
        code, _, err = at(f"maga forget {line} --data photos --forget three --out {out}", capsys)
        assert code == 0, err
        numbers = {n["name"]: n for n in json.loads((desk / out / "report.json").read_text())["numbers"]}
        assert numbers["A_r"]["before"] > 80, numbers  # the classes are in the model's order
        assert numbers["A_f"]["after"] <= 5 and numbers["A_r"]["after"] >= numbers["A_r"]["before"] - 5, numbers
    before, after_ = (torch.load(desk / p) for p in ("timm.pth", "with_timm/timm.pth"))
    assert [(k, v.dtype, v.shape) for k, v in before.items()] == [(k, v.dtype, v.shape) for k, v in after_.items()]
    again = AutoModelForImageClassification.from_pretrained(desk / "with_hf/model")
    assert load_file(desk / "hf/model.safetensors").keys() == load_file(desk / "with_hf/model/model.safetensors").keys()
    assert again.config.id2label == vit.config.id2label and (desk / "with_hf/model/preprocessor_config.json").exists()
    (desk / "hf/preprocessor_config.json").write_text(json.dumps(about | {"size": {"height": 12, "width": 12}}))
    assert open_network(str(desk / "hf")).size == 12, "what the processor says goes before the network's configuration"
    config.save_pretrained(desk / "hollow")
    from safetensors.torch import save_file

    save_file({k: v.contiguous() for k, v in vit.state_dict().items() if "classifier" not in k}, desk / "hollow/model.safetensors", {"format": "pt"})
    with pytest.raises(MagaError, match=r"2 parameters differ, first classifier"):
        open_network(str(desk / "hollow"))
    save_file({**vit.state_dict(), "classifier.bias": torch.full((10,), torch.nan)}, desk / "hollow/model.safetensors", {"format": "pt"})
    with pytest.raises(MagaError, match=r"not finite, first classifier\.bias"):
        open_network(str(desk / "hollow"))


def test_a_sub_class_of_a_network_that_says_its_superclasses(at, desk, capsys):
    "The superclasses are put in the network's order, the sub-class is named by its own label; the result takes a second one."
    train, _ = digits()
    pairs = in_model_order(train.coarse(), tuple(reversed(train.coarse_classes)))
    g, spec = torch.Generator().manual_seed(0), ModelSpec.of("small_cnn", pairs)
    net = fit(spec.make(g), Examples.of(pairs), FitConfig(6, 32, lr=0.1, pad=0, flip=False), g)
    save_checkpoint(desk / "pairs.safetensors", net, spec, date="2026-01-01")
    brief = "--set fit.lr=0.05 --set fit.epochs=2"
    for line in (f"--model pairs.safetensors --subclass three --out no_three {brief}", f"--model no_three --subclass eight --out no_eight {brief}"):
        code, _, err = at(f"maga forget --data digits {line}", capsys)
        assert code == 0, err
    for out, told in (("no_three", "three"), ("no_eight", "eight")):
        record = json.loads((desk / out / "report.json").read_text())
        assert record["task"] == "subclass" and record["forgotten"] == told and record["classes"] == list(pairs.classes)
        assert record["numbers"][0]["before"] > 90, record["numbers"]
    code, _, err = at(f"maga forget --data digits --model pairs.safetensors --forget three --out whole {brief}", capsys)
    assert code == 1 and "expected logits [2, 10]" in err, err


def test_retrains_of_a_folder_in_bfloat16(at, desk, capsys):
    "Training needs float32; what is made anew has it, whatever the precision of the file."
    from transformers import ViTConfig, ViTForImageClassification

    names = dict(enumerate(sorted(digits()[0].classes)))
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4,
        id2label=names, label2id={c: k for k, c in names.items()},
    )  # fmt: skip
    ViTForImageClassification(config).to(torch.bfloat16).save_pretrained(desk / "halved")
    network, train, test, _ = command.opened("halved", "", "photos", "data", "cpu", mean=(0.5,) * 3, std=(0.5,) * 3)
    split = forget_class(train, test, "three")
    (one,) = trained_retrains(network.model, network.make, split, 1, usual_training(network.model, split, 1), desk / "of_halved")
    assert next(one.parameters()).dtype == torch.float32 and network.model.dtype == torch.bfloat16
    code, _, err = at("maga audit --original halved --unlearned halved --mean 0.5 --std 0.5 --data photos --forget three", capsys)
    assert code == 1 and "The original is right on" in err and "near chance" in err, err


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_weights_are_written_back_as_they_were(kind, tmp_path):
    "Unchanged weights give the same tensors, bit for bit, in each container and precision."
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    state = {k: v.double() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    old, new = tmp_path / f"old.{kind}", tmp_path / f"new.{kind}"
    if kind == "pt":
        torch.save(state, old)
    else:
        from safetensors.torch import save_file

        save_file(state, old, {"format": "pt", "accuracy": "71.0"})
    write_weights(net, old, new)
    found = torch.load(new) if kind == "pt" else load_file(new)
    assert found.keys() == state.keys() and all(torch.equal(found[k], state[k]) and found[k].dtype == state[k].dtype for k in state)


GOOD = "maga forget --model model.safetensors --data photos"
MISTAKES = {
    f"{GOOD} --out x": "Say what must go",
    f"{GOOD} --forget three --random 3 --out x": "in one way",
    f"{GOOD} --forget thre --out x": "the nearest names are three",
    f"{GOOD} --forget zero,one,two,three,four,five,six,seven,eight,nine --out x": "Everything would be forgotten",
    f"{GOOD} --forget three --method magga --out x": "did you mean maga",
    f"{GOOD} --forget three --method maga --preset papr --out x": "no preset",
    f"{GOOD} --forget three --budget 5% --out x": "how many epochs",
    f"{GOOD} --forget three --budget much --out x": "such as 5%",
    f"{GOOD} --forget three --budget 0.1% --trained-epochs 6 --out x": "too small",
    f"{GOOD} --forget three --set fit.lr --out x": "NAME=VALUE",
    f"{GOOD} --forget three --set fit.lrr=1 --out x": "no field 'lrr'",
    f"{GOOD} --forget three --set fit.lr=-1 --out x": "expected a number above 0",
    f"{GOOD} --forget three --judge featurs --method maga --out x": "did you mean features",
    f"{GOOD} --forget three --mean 0.5,0.5 --std 0.5 --out x": "expected three numbers",
    f"{GOOD} --forget three --mean a --std 0.5 --out x": "three numbers",
    f"{GOOD} --forget three --device cudaa --out x": "no device",
    f"{GOOD} --forget three --head fcc --out x": "no layer 'fcc'",
    f"{GOOD} --forget three --classes a,b --out x": "does not know the class",
    f"{GOOD} --forget three --out photos": "is no result of maga forget",
    f"{GOOD} --files nowhere.txt --out x": "cannot be read",
    f"{GOOD} --files model.safetensors --out x": "cannot be read",
    f"{GOOD} --files empty.txt --out x": "The list empty.txt is empty",
    f"{GOOD} --random 99999 --out x": "cannot be forgotten",
    f"{GOOD} --subclass three --out x": "no coarse labels",
    f"{GOOD} --forget three --weights net.pth --out x": "holds its own weights",
    "maga forget --model model.safetensors --data nowhere --forget three --out x": "There is no folder",
    "maga forget --model nowhere.safetensors --data photos --forget three --out x": "cannot be read",
    "maga forget --model net.py --data photos --forget three --out x": "code or weights alone",
    "maga forget --model photos --data photos --forget three --out x": "without config.json",
    "maga forget --model net.py:Net --data photos --forget three --out x": "needs a file of weights",
    "maga forget --model net.py:Net --weights net.pth --data photos --forget three --out x": "normalised",
    "maga forget --model net.py:Nett --weights net.pth --data photos --forget three --out x": "cannot be imported",
    "maga forget --model nett.py:Net --weights net.pth --data photos --forget three --out x": "no file nett.py",
    "maga forget --model net.py:hungry --weights net.pth --data photos --forget three --out x": "needs path, depth",
    "maga forget --model net.py:broken --weights net.pth --data photos --forget three --out x": "no such layer",
    "maga forget --model net.py:nothing --weights net.pth --data photos --forget three --out x": "returns 3",
    "maga forget --model timm:resnet10t --weights net.pth --mean 0.5 --std 0.5 --data photos --forget three --out x": "parameters differ",
    "maga forget --model timm:resnet10tt --weights net.pth --data photos --forget three --out x": "nearest names",
    "maga forget --model timm:resnet10t.mistyped --weights net.pth --data photos --forget three --out x": "timm cannot make resnet10t.mistyped",
    "maga forget --model timm:vit_tiny --weights net.pth --data photos --forget three --out x": "no architecture 'vit_tiny' in timm",
    "maga forget --model hf:nobody/nothing --data photos --forget three --out x": "cannot be opened",
    "maga forget --model net.pth --data photos --forget three --out x": "name their network as --model",
    "maga purge nowhere": "cannot be read",
    "maga audit --original model.safetensors --unlearned model.safetensors --data photos": "Say what must go",
    "maga audit --original model.safetensors --unlearned nowhere --data photos --forget three": "does not exist",
    "maga audit --original net.pth --unlearned model.safetensors --data photos --forget three": "name their network as --model",
    "maga audit --original model.safetensors --unlearned model.safetensors --data photos --forget three --train-retrains 2": "--trained-epochs",
    "maga audit --original model.safetensors --unlearned model.safetensors --data photos --forget three --level 2.0": "between 0 and 1",
    "maga audit --original model.safetensors --unlearned model.safetensors --data photos --forget three --set lr=0.1": "--set is for retrains",
    f"{GOOD} --forget three --out x --pretrained net.pth": "does not hold pretrained weights",
    f"{GOOD} --forget three --out x --pretrained nowhere.pth": "nowhere.pth",
    f"{GOOD} --forget three --out x --pretrained half.safetensors": "holds the original itself",
    f"{GOOD} --forget three --out x --pretrained model.safetensors": "holds the original itself",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_ends_in_one_sentence(line, at, desk, capsys):
    code, _, err = at(line, capsys)
    said = [s for s in err.strip().splitlines() if not s.startswith(("photos, ", "learning rates", "restart: "))]
    assert code == 1 and MISTAKES[line] in said[-1] and "Traceback" not in err, err
    assert not (desk / "x").exists() and not list(desk.glob(".x.*"))


def test_what_the_line_alone_decides_is_said_before_the_images_are_read(at, capsys, monkeypatch):
    "Decoding may take hours."
    monkeypatch.setattr("maga.own.order.images_named", raising(AssertionError("images were read")))
    own = "maga forget --model net.py:Net --data photos --out x"
    for line, says in {
        f"{GOOD} --forget three --budget 5% --out x": "how many epochs",
        f"{GOOD} --forget three --budget 5% --trained-epochs 6 --method ssd --out x": "ssd has no budget",
        f"{GOOD} --forget three --method magga --out x": "did you mean maga",
        f"{GOOD} --files gone.txt --method unsir --out x": "unsir is not defined for the random task",
        f"{GOOD} --forget three --preset papr --out x": "restart has no preset 'papr'",
        f"{GOOD} --forget three --method ssd --set fit.lr=1 --out x": "no field 'fit'",
        f"{GOOD} --forget three --set fit.epochs=some --out x": "expected a whole number",
        f"{GOOD} --forget three --mean 0.5,0.5 --std 0.5 --out x": "expected three numbers",
        f"{GOOD} --forget three --method ssd --pretrained net.pth --out x": "of no use to it",
        f"{GOOD} --forget three --pretrained nowhere.pth --out x": "nowhere.pth",
        f"{own} --forget three --weights net.pth --mean 0.5": "normalised",
        f"{own} --forget three --weights nowhere.pth --mean 0.5 --std 0.5": "nowhere.pth",
        "maga audit --original net.pth --unlearned net.pth --data photos --forget three": "name their network as --model",
        "maga audit --model net.py:Net --original net.pth --unlearned net.pth --retrain again.pth --data photos --forget three": "again.pth",
    }.items():
        code, _, err = at(line, capsys)
        assert code == 1 and says in err and len(err.strip().splitlines()) == 1, (line, err)


def test_settings_that_another_preset_has_are_left_to_the_plan(split, original):
    "A restart of an unknown network has a teacher, which most of its presets lack."
    forgetting.check_asked("class", changes={"distil.weight": 0.3})
    assert forgetting.planned(original, split, changes={"distil.weight": 0.3, "fit.lr": 0.05}).config.distil.weight == 0.3


UNWRITABLE = (f"{GOOD} --forget three --out net.py/x", "maga audit --original x --unlearned x --data photos --forget three --out net.py")


@pytest.mark.parametrize("line", UNWRITABLE)
def test_a_result_that_cannot_be_written_is_said_before_any_work(line, at, capsys):
    code, out, err = at(line, capsys)
    assert code == 1 and not out and "no folder to write into" in err and len(err.strip().splitlines()) == 1, err


def test_an_audit_that_cannot_be_kept_is_printed(at, desk, capsys):
    (desk / "taken/audit.json").mkdir(parents=True)
    code, out, err = at("maga audit --original model.safetensors --unlearned model.safetensors --data photos --forget three --out taken", capsys)
    assert code == 1 and out.startswith("UNDECIDED") and "audit.json could not be written" in err and "Traceback" not in err, err


def test_weights_stay_where_the_report_fails(at, desk, capsys, monkeypatch):
    "An error that nobody foresaw, in the last step: the work is not lost, and the ledger lets the next request start from it."

    def broken(r):
        raise KeyError("no such thing")

    monkeypatch.setattr("maga.own.report.card_of", broken)
    code, _, err = at(f"{GOOD} --forget three --out kept --set fit.lr=0.05 --set fit.epochs=1", capsys)
    assert code == 1 and "The weights are in kept (model.safetensors)" in err and "no such thing" in err and not list(desk.glob(".kept.*")), err
    assert load_file(desk / "kept/model.safetensors").keys() == load_file(desk / "model.safetensors").keys()
    assert [e.what for e in open_result(desk / "kept")[1].entries] == ["three"]


def test_a_request_whose_predecessor_is_deleted_writes_json(at, desk, capsys):
    "Nothing is left to measure the first class on: that number is null, not NaN, which JSON does not know."
    assert at(f"{GOOD} --forget three --out before --set fit.lr=0.05 --set fit.epochs=1", capsys)[0] == 0
    shutil.copytree(desk / "photos", desk / "fewer/photos", ignore=shutil.ignore_patterns("three"))
    line = "maga forget --model before --data fewer/photos --forget eight --out later --set fit.lr=0.05 --set fit.epochs=1"
    code, out, err = at(line, capsys)
    assert code == 0 and re.search(r"A_earlier +– → +– %", out), err
    record = json.loads((desk / "later/report.json").read_text(), parse_constant=pytest.fail)
    assert record["numbers"][-1]["name"] == "A_earlier" and record["numbers"][-1]["after"] is None
    assert "| – | – |" in (desk / "later/model_card.md").read_text()


@pytest.mark.parametrize("other", ["order of the classes", "mean", "std", "size"])
def test_an_audit_of_networks_that_see_other_things(other, at, desk, capsys):
    "One view serves all networks: one that says another order of its classes, or other pixels, would be read wrongly."
    _model, spec = load_checkpoint(desk / "model.safetensors")
    changed = {"order of the classes": {"classes": spec.classes[::-1]}, "mean": {"mean": (0.4,) * 3}, "std": {"std": (0.4,) * 3}, "size": {"size": 16}}
    save_checkpoint(desk / "other.safetensors", replace(spec, **changed[other]).make(torch.Generator()), replace(spec, **changed[other]))
    line = "maga audit --data photos --forget three --original model.safetensors"
    code, _, err = at(f"{line} --unlearned other.safetensors", capsys)
    assert code == 1 and f"other.safetensors says another {other} than the original" in err, err
    code, _, err = at(f"{line} --unlearned model.safetensors --retrain other.safetensors", capsys)
    assert code == 1 and f"says another {other}" in err, err


def test_a_wrong_line_ends_with_two(at, capsys):
    assert at("maga forget --modle x", capsys)[0] == 2 and at("maga forgett", capsys)[0] == 2


def test_an_audit_of_weights_of_a_users_own_network(at, desk, capsys):
    "The original is distinguishable from three retrains that are trained here; they are kept, and a second run trains none."
    line = "maga audit --model net.py:Net --original net.pth --unlearned net.pth --mean 0.5 --std 0.5 --data photos --forget three"
    assert json.loads(at(f"{line} --json", capsys)[1])["verdict"] == "undecided"
    line += " --train-retrains 4 --trained-epochs 3 --out audited_mine --json"
    found = json.loads(at(line, capsys)[1])
    assert found["verdict"] == "distinguishable" and found["retrains"] == 4
    kept = {p: p.stat().st_mtime_ns for p in (desk / "audited_mine").glob("retrain_*")}
    assert len(kept) == 4 and json.loads(at(line, capsys)[1]) == found
    assert kept == {p: p.stat().st_mtime_ns for p in (desk / "audited_mine").glob("retrain_*")}
    assert json.loads((desk / "audited_mine/audit.json").read_text()) == found and "<svg" in (desk / "audited_mine/audit.html").read_text()


def test_retrains_and_a_restart_begin_with_pretrained_weights(at, desk, capsys):
    "Those of other classes, saved in parallel training with a layer that the network lacks. Other weights make another audit, and another request."
    exec(NET, found := {})
    before = found["Net"]()
    before.out = torch.nn.Linear(before.out.in_features, 7)
    state = {f"module.{k}": v for k, v in before.state_dict().items()}
    torch.save(state | {"module.projection.weight": torch.ones(2, 2)}, desk / "before.pth")
    line = "maga audit --model net.py:Net --original net.pth --unlearned net.pth --mean 0.5 --std 0.5 --data photos --forget three"
    line += " --train-retrains 1 --trained-epochs 2 --pretrained before.pth --out begun --set pad=0 --json"
    code, out, err = at(f"{line} --set lr=0.04", capsys)
    record = json.loads(out)["audited"]
    assert code == 0 and "begin with the pretrained weights" in err and "untrained" not in err, err
    assert (record["recipe"]["lr"], record["recipe"]["pad"], record["settings"]) == (0.04, 0, {"pad": 0, "lr": 0.04})
    assert record["networks"]["pretrained weights"]["sha256"] == file_revision(desk / "before.pth")
    assert "begin with the pretrained weights" in (desk / "begun/audit.html").read_text()
    made = load_file(next((desk / "begun").glob("retrain_*")))
    away = {k: (made[k] - before.state_dict()[k]).norm() / made[k].norm() for k in made if k.endswith("weight") and not k.startswith("out")}
    assert max(away.values()) < 0.9, away  # of two independent networks: about 1.4
    code, _, err = at(line, capsys)
    assert code == 1 and "other networks, data or settings" in err, err
    forget = "maga forget --model net.py:Net --weights net.pth --mean 0.5 --std 0.5 --data photos --forget three --pretrained before.pth --out half_way"
    forget += " --set fit.epochs=1 --set fit.lr=0.01"
    code, _, err = at(forget, capsys)
    assert code == 0 and "half-way to the pretrained weights" in err, err
    assert "This very request is done" in at(forget, capsys)[1]
    code, _, err = at("maga forget --model half_way --data photos --forget eight --out half_way_2 --set fit.epochs=1 --set fit.lr=0.01", capsys)
    assert code == 0 and "half-way to the pretrained weights in before.pth" in err, err  # the ledger knows them
    assert json.loads((desk / "half_way_2/report.json").read_text())["pretrained"]["sha256"] == file_revision(desk / "before.pth")
    line_of_ssd = "maga forget --model half_way --data photos --forget eight --method ssd --out half_way_ssd"
    code, _, err = at(f"{line_of_ssd} --pretrained before.pth", capsys)
    assert code == 1 and "pretrained ones are of no use to it" in err, err
    code, _, err = at(line_of_ssd, capsys)  # nobody asked for them
    assert code == 0 and "pretrained" not in err, err
    ledgers = [json.loads((desk / folder / "ledger.json").read_text()) for folder in ("half_way_2", "half_way_ssd")]
    assert [ledger["pretrained"] for ledger in ledgers] == 2 * [str(desk / "before.pth")]  # for the request after this one
    torch.save({k: v + 1 for k, v in state.items()}, desk / "before.pth")
    code, _, err = at(forget, capsys)
    assert code == 1 and "inputs that changed since" in err, err
    code, _, err = at(f"{line} --set lr=0.04", capsys)
    assert code == 1 and "other networks, data or settings" in err, err


def test_a_recipe_that_does_not_train_the_network_is_named(at, desk, capsys):
    "The first retrain shows it; the message names what changes the recipe, and no normalisation."
    line = "maga audit --model net.py:Net --original net.pth --unlearned net.pth --mean 0.5 --std 0.5 --data photos --forget three"
    code, out, err = at(f"{line} --train-retrains 3 --trained-epochs 1 --set lr=0.0001 --out badly", capsys)
    assert code == 1 and not out and "Retrain 1, trained here, is right on" in err and "rate 0.0001 and 1 epochs, does not train" in err, err
    assert all(option in err for option in ("--set lr=", "--trained-epochs", "--retrain")) and "check the normalisation" not in err
    assert len([*(desk / "badly").glob("retrain_*")]) == 1


def test_advice_is_of_settings_that_the_method_has(at, desk, capsys):
    "A dampening has no epochs."
    assert at(f"{GOOD} --forget three --method ssd --preset digits --set alpha=0.1 --set lam=0.01 --out damped", capsys)[0] == 0
    said = [w for w in json.loads((desk / "damped/report.json").read_text())["warnings"] if w.startswith("Accuracy on what stays fell")]
    assert len(said) == 1 and "give ssd other settings (--set): alpha, lam" in said[0] and "epochs" not in said[0]


def test_what_must_go_may_be_said_in_several_options(at, desk, capsys):
    "None of them is lost: classes, and lists of files that share a line."
    brief = "--set fit.epochs=1 --set fit.lr=0.01"
    assert at(f"{GOOD} --forget one --forget three,four --out several {brief}", capsys)[0] == 0
    assert set(json.loads((desk / "several/ledger.json").read_text())["entries"][0]["classes"]) == {"one", "three", "four"}
    code, _, err = at(f"maga forget --model several --data photos --forget one,two --out several_again {brief}", capsys)
    assert code == 0 and "Note: one: forgotten by the request of " in err, err
    lines = (desk / "gone.txt").read_text().splitlines()
    (desk / "first.txt").write_text("\n".join(lines[:4]))
    (desk / "second.txt").write_text("\n".join(lines[3:9]))
    assert at(f"{GOOD} --files first.txt --files second.txt --out several_files {brief}", capsys)[0] == 0
    assert json.loads((desk / "several_files/report.json").read_text())["images"]["forgotten"] == 9


def test_an_original_that_is_at_chance_is_named(at, desk, capsys):
    "A wrong normalisation is no error of any single step; the report says what to check."
    line = f"{GOOD} --forget three --mean 0 --std 0.004 --classes nine,eight,seven,six,five,four,three,two,one,zero --out wrong --set fit.epochs=1"
    _, _, err = at(line, capsys)
    assert any("near chance" in w for w in json.loads((desk / "wrong/report.json").read_text())["warnings"])
    assert err.count("near chance") == 1 and err.index("near chance") < err.index("restart: among"), err  # said before any work


def test_purge_deletes_what_is_decoded_after_the_request(at, desk, capsys, tmp_path, monkeypatch):
    "At another size, by a process that was killed, into a cache that was named by a relative path, and from another working folder."
    monkeypatch.setenv("MAGA_CACHE", "near")
    few = [s.subset(torch.arange(100)) for s in digits()]
    as_folder(desk / "some", dict(zip(("train", "test"), few, strict=True)))
    assert at("maga forget --model model.safetensors --data some --forget three --out purged --set fit.lr=0.05 --set fit.epochs=1", capsys)[0] == 0
    (first,) = (desk / "near").iterdir()
    from_folder(desk / "some", 16)
    (left := desk / "near" / f".{first.name}.000000a1.half").write_bytes(b"pixels")
    os.utime(left, (0, 0))
    monkeypatch.setenv("MAGA_CACHE", str(desk / "near"))
    monkeypatch.chdir(tmp_path)
    code, out, _ = at(f"maga purge {desk}/purged", capsys)
    assert code == 0 and out.count("deleted: ") == 3 and str(first) in out and not list((desk / "near").iterdir())
    assert "nothing of ours" in at(f"maga purge {desk}/purged", capsys)[1]


def test_images_behind_links_are_listed_and_purged(at, desk, capsys, tmp_path):
    "Links are deleted where the list says it, and what they lead to as well."
    few = [s.subset(torch.arange(100)) for s in digits()]
    as_folder(tmp_path / "store", dict(zip(("train", "test"), few, strict=True)))
    for file in (tmp_path / "store").rglob("*.png"):
        link = tmp_path / "linked" / file.relative_to(tmp_path / "store")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    line = f"maga forget --model model.safetensors --data {tmp_path}/linked --forget three --out {tmp_path}/out --set fit.lr=0.05 --set fit.epochs=1"
    assert at(line, capsys)[0] == 0
    with (tmp_path / "out/artefacts.csv").open() as f:
        listed = {a["path"]: a for a in csv.DictReader(f)}
    assert listed[f"{tmp_path}/linked/train/three"]["what"].endswith("forgotten images")
    assert listed[f"{tmp_path}/store/train/three"]["what"].endswith("behind links")
    assert at(f"maga purge {tmp_path}/out", capsys)[1].count("deleted: ") == 1


@pytest.mark.filterwarnings("ignore:.*the same pixels")
def test_a_list_that_names_an_image_of_a_forgotten_class_keeps_the_size_of_the_others():
    "Three is forgotten as a whole, then a list has one three and five ones: the ones are found by hashes alone, so at that size alone."
    train, test = digits()
    first = Entry.of(forget_class(train, test, "three"), "restart", "2026-01-01")
    rows = [int((train.labels == 3).nonzero()[0]), *(train.labels == 1).nonzero().flatten()[:5].tolist()]
    second = Entry.of(in_force(forget_files(train, test, rows), [first]), "restart", "2026-01-02")
    assert second.classes == () and len(second.images) == 6
    big = [replace(s, images=s.images.repeat_interleave(2, 2).repeat_interleave(2, 3)) for s in (train, test)]
    for entry in (second, replace(second, classes=("three",))):  # the other is what ledgers said until now
        third = in_force(forget_class(train, test, "eight"), [first, entry])
        assert int((train.labels[third.earlier_train] == 1).sum()) == 5
        with pytest.raises(MagaError, match="at 8×8 pixels"):
            in_force(forget_class(*big, "eight"), [first, entry])


def test_random_images_are_none_that_earlier_requests_named(at, capsys):
    "They are drawn from the others; an audit of the result draws the same ones, whichever network is the original."
    brief = "--set fit.lr=0.05 --set fit.epochs=1"
    assert at(f"{GOOD} --forget eight --out no_eight_first {brief}", capsys)[0] == 0
    code, _, err = at(f"maga forget --model no_eight_first --data photos --random 100 --seed 3 --out and_random {brief}", capsys)
    assert code == 0, err
    asked = re.search(r".*forget 100 random images.*", err)[0]
    record, train = json.loads(Path("and_random/report.json").read_text()), photographed()[0]
    assert record["images"]["forgotten"] == 100 and record["images"]["retained"] == int((train.labels != 8).sum()) - 100
    for original in ("no_eight_first", "model.safetensors"):
        line = f"maga audit --original {original} --unlearned and_random --data photos --random 100 --seed 3"
        code, _, err = at(line, capsys)
        assert code == 0 and asked in err, (asked, err)


@pytest.mark.parametrize("deleted", [False, True])
@pytest.mark.parametrize("task", ["class", "files"])
def test_a_judge_sees_nothing_of_earlier_requests(task, deleted, split, original, monkeypatch):
    "Its exemplars are of images that may be shown; a class that has none of them resembles itself alone, also where its images are deleted."
    train, test = digits()
    first = forget_class(train, test, "eight") if task == "class" else forget_files(train, test, list(range(200)))
    entry = Entry.of(first, "restart", "2026-01-01")
    if deleted:
        train = train.subset(first.retain_train)
    second, drawn = in_force(forget_class(train, test, "three"), [entry]), []
    estimated = forgetting.estimate_transition
    monkeypatch.setattr(forgetting, "estimate_transition", lambda judge, shown: drawn.append(shown) or estimated(judge, shown))
    plan = forgetting.planned(original, second, "maga", "digits")
    assert not alike(drawn[0].images, (first.train.images, first.forget_train)).any()
    T = plan.config.transition
    assert T.classes == train.classes and ("eight" in drawn[0].classes) == (task == "files")
    if task == "class":
        assert T.T[8].tolist() == T.T[:, 8].tolist() == torch.eye(10)[8].tolist()
        assert forgetting.forget(original, second, plan).after.A_f <= 5


def test_the_forgotten_images_are_deleted_and_their_folders_stay(at, desk, capsys):
    "As the report advises. The next request and its audit go on from there; an audit of the first one says what it lacks."
    brief = "--set fit.lr=0.05 --set fit.epochs=1"
    shutil.copytree(desk / "photos", desk / "kept/photos")
    assert at(f"maga forget --model model.safetensors --data kept/photos --forget three --out emptied {brief}", capsys)[0] == 0
    with (desk / "emptied/artefacts.csv").open() as f:
        for a in csv.DictReader(f):
            if a["remedy"] == "delete those files":
                for file in (desk / a["path"]).iterdir():
                    file.unlink()
    assert not list((desk / "kept/photos/train/three").iterdir())
    for line in (f"--forget eight --out emptied_2 {brief}", f"--forget eight --method maga --preset digits --out emptied_3 {brief}"):
        code, _, err = at(f"maga forget --model emptied --data kept/photos {line}", capsys)
        assert code == 0, err
    code, _, err = at("maga audit --original emptied --unlearned emptied_2 --data kept/photos --forget eight", capsys)
    assert code == 0, err
    code, _, err = at("maga audit --original model.safetensors --unlearned emptied --data kept/photos --forget three", capsys)
    assert code == 1 and "no training image belongs to 'three'" in err and "Traceback" not in err, err
    for file in (desk / "kept/photos/test").rglob("*.png"):
        file.unlink()
    code, _, err = at(f"maga forget --model emptied --data kept/photos --forget two --out emptied_4 {brief}", capsys)
    assert code == 1 and "no image in any of them" in err, err


def test_what_cannot_be_purged_is_named_beside_what_is_gone(at, desk, capsys, monkeypatch):
    "A cache on a read-only disk: the others are deleted, and one sentence has both."
    monkeypatch.setenv("MAGA_CACHE", str(desk / "locked"))
    line = "maga forget --model model.safetensors --data photos --forget three --out locked_out --set fit.lr=0.05 --set fit.epochs=1"
    assert at(line, capsys)[0] == 0
    (first,) = (desk / "locked").iterdir()
    from_folder(desk / "photos", 16)
    unlink = Path.unlink

    def refused(path, *a, **k):
        if path == first:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        unlink(path, *a, **k)

    monkeypatch.setattr(Path, "unlink", refused)
    code, _, err = at("maga purge locked_out", capsys)
    assert code == 1 and re.match(rf"Not deleted: {first} \(Read-only file system\); deleted: \S+safetensors\. Delete", err), err
    assert list((desk / "locked").iterdir()) == [first]


def test_numbers_and_lists_as_other_systems_write_them(tmp_path):
    "A superscript is no number of a class or a row, and the mark at the beginning of a list is no part of a name."
    train, test = digits()
    with pytest.raises(MagaError, match="There is no class named '²'"):
        forgetting.Wanted(classes=("²",)).split(train, test)
    with pytest.raises(MagaError, match="images of digits have no names"):
        forgetting.Wanted(files=("²",)).split(train, test)
    (tmp_path / "list.txt").write_text("\ufefftrain/a/0.png\r\n3\r\n", encoding="utf-8")
    assert lines_of(str(tmp_path / "list.txt")) == ("train/a/0.png", "3")


def test_inputs_that_changed_are_another_request(at, desk, capsys, tmp_path):
    "The code of the network and what it imports beside it, the judge's matrix, an image: the same line is refused after each. What cannot be seen is named."
    shutil.copytree(desk / "photos", tmp_path / "photos")
    (tmp_path / "net.py").write_text(f"import beside_the_net\n{NET}")
    (tmp_path / "beside_the_net").mkdir()
    (tmp_path / "beside_the_net/__init__.py").write_text("from .part import more\n")
    (tmp_path / "beside_the_net/part.py").write_text("more = 1\n")
    (tmp_path / "train.py").write_text("more = 2\n")  # imports the network, is not imported
    TransitionMatrix.from_similarity(torch.rand(10, 10) + 0.1, sorted(digits()[0].classes)).save(tmp_path / "T.safetensors")
    line = f"maga forget --model {tmp_path}/net.py:Net --weights net.pth --mean 0.5 --std 0.5 --data {tmp_path}/photos --forget three"
    line += f" --judge {tmp_path}/T.safetensors --set fit.epochs=1 --set fit.lr=0.05 --out inputs"
    code, _, err = at(line, capsys)
    assert code == 0, err
    (tmp_path / "train.py").write_text("more = 3\n")
    part = tmp_path / "beside_the_net/part.py"
    for file in (tmp_path / "net.py", part, tmp_path / "T.safetensors", next((tmp_path / "photos/train/two").iterdir())):
        code, out, _ = at(line, capsys)
        assert code == 0 and out.strip() == "This very request is done: inputs/report.html"
        held, time = file.read_bytes(), file.stat().st_mtime_ns
        file.write_bytes(held + b"\n")
        code, _, err = at(line, capsys)
        assert code == 1 and "inputs that changed since" in err, (file, err)
        file.write_bytes(held), os.utime(file, ns=(time, time))
    part.write_text("more = 4\n")
    with pytest.warns(UserWarning, match="part.py has changed since inputs was made"):
        open_result("inputs")
    next((tmp_path / "photos/test/two").iterdir()).unlink()
    assert at(line, capsys)[0] == 1
    line = "maga forget --model model.safetensors --data digits --forget three --set fit.epochs=1 --set fit.lr=0.05 --out inputs_2"
    assert at(line, capsys)[0] == 0 and "(not known: whether digits changed since)" in at(line, capsys)[1]
    assert inputs_of("package.module:Net", "", "features", "hub:x/y") == ([], ["package.module:Net", "hub:x/y"])


@pytest.mark.parametrize(
    "kind, options",
    [
        ("ViTImageProcessor", {}),
        ("ViTImageProcessor", {"do_resize": False}),
        ("ViTImageProcessor", {"do_normalize": False}),
        ("ViTImageProcessor", {"do_rescale": False, "image_mean": [120.0] * 3, "image_std": [60.0] * 3}),
        ("ViTImageProcessor", {"do_rescale": False, "do_normalize": False}),
        ("ViTImageProcessor", {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}),
        ("EfficientNetImageProcessor", {"size": {"height": 16, "width": 16}}),
        ("EfficientNetImageProcessor", {"rescale_offset": True, "rescale_factor": 1 / 127.5, "include_top": False}),
        ("MobileNetV2ImageProcessor", {}),
        ("CLIPImageProcessor", {"size": {"shortest_edge": 64}, "crop_size": {"height": 48, "width": 48}}),
    ],
)
def test_an_image_processor_is_read_as_it_works(kind, options, tmp_path):
    "Its side, and its normalisation to the last digit that matters, whatever it is written as."
    import transformers

    processor = getattr(transformers, kind)(**options)
    processor.save_pretrained(tmp_path)
    said = _processor(tmp_path)
    image = Image.new("RGB", (100, 100), (200, 30, 90))
    theirs = processor(image, return_tensors="pt")["pixel_values"][0].float()
    side = theirs.shape[-1]
    assert said["size"] == (None if side == 100 else side)
    picture = torch.tensor(np.asarray(image.resize((side, side)))).permute(2, 0, 1)[None].contiguous()
    ours = ImageSet(picture, torch.tensor([0]), ("a",), mean=said["mean"], std=said["std"]).batch(torch.tensor([0]))[0]
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    if kind == "CLIPImageProcessor":
        assert said["mean"] == tuple(processor.image_mean)


@pytest.mark.parametrize(
    "kind, options, message",
    [
        ("MobileViTImageProcessor", {}, "turns channels round"),
        ("ViTImageProcessor", {"size": {"height": 8, "width": 16}}, "squares"),
        ("ViTImageProcessor", {"image_std": [2.0] * 3}, "std is"),
        ("EfficientNetImageProcessor", {"rescale_offset": True}, "mean is"),
    ],
)
def test_an_image_processor_that_does_more_is_refused(kind, options, message, tmp_path):
    import transformers

    getattr(transformers, kind)(**options).save_pretrained(tmp_path)
    with pytest.raises(MagaError, match=message):
        _processor(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("no JSON")
    with pytest.raises(MagaError, match="is damaged"):
        _processor(tmp_path)


def test_twins_and_another_scale_are_said_by_the_command(at, desk, capsys):
    "Threes in the folder of eights as well; and test images of thrice the side, which are refused before any work."
    shutil.copytree(desk / "photos", desk / "twins")
    for file in sorted((desk / "twins/train/three").iterdir())[:4]:
        shutil.copy(file, desk / "twins/train/eight" / f"copy{file.name}")
    with pytest.warns(UserWarning, match=r"4 of the retained training images \(train/eight/copy.* lists them \(forget_files, --files\)"):
        code, _, err = at("maga forget --model model.safetensors --data twins --forget three --out told --set fit.lr=0.05 --set fit.epochs=1", capsys)
    assert code == 0, err
    for file in (desk / "twins/test").rglob("*.png"):
        Image.open(file).resize((24, 24)).save(file)
    line = "maga forget --model net.py:Net --weights net.pth --mean 0.5 --std 0.5 --data twins --forget three --out refused"
    code, _, err = at(line, capsys)
    assert code == 1 and "shown at 8×8 pixels, the test images shown at 24×24" in err and "--size" in err, err


@pytest.mark.parametrize(
    "kind, options, crop",
    [
        ("ViTImageProcessor", {}, None),
        ("ViTImageProcessor", {"size": {"height": 8, "width": 8}, "resample": 0}, None),
        ("ViTImageProcessor", {"do_resize": False}, None),
        ("BitImageProcessor", {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}, 0.875),
        ("BitImageProcessor", {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}, 1.0),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}, "crop_pct": 0.875}, 0.875),
        ("EfficientNetImageProcessor", {"size": {"height": 64, "width": 64}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}}, "told"),
    ],
)
def test_a_cut_of_an_image_processor_is_taken_over_or_told(kind, options, crop, tmp_path):
    "A square is resized as a whole by many that cut an oblong image. A middle square is cut out here, too; for another cut a warning says what to do."
    import transformers

    getattr(transformers, kind)(**options).save_pretrained(tmp_path)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = _processor(tmp_path)
    said = [str(w.message) for w in told if "cut your images beforehand" in str(w.message)]
    assert len(said) == (crop == "told") and all("Only side, mean and std are taken from it" in s for s in said), said
    assert found["crop"] == (None if crop == "told" else crop)


def test_what_timm_cuts_is_told(tmp_path):
    import timm

    for name, cuts in (("resnet10t", True), ("vit_tiny_patch16_384", False)):
        net = timm.create_model(name, num_classes=2)
        torch.save(net.state_dict(), tmp_path / "net.pth")
        kept = net.pretrained_cfg["crop_pct"]
        assert (kept < 1) == cuts
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            open_network(f"timm:{name}", str(tmp_path / "net.pth"), ["a", "b"])
        said = [str(w.message) for w in told if f"--crop {kept:.3g}; in Python" in str(w.message)]
        assert len(said) == cuts and all(f"{kept:.3g} of its shorter side (bicubic)" in s for s in said), said


def test_the_middle_of_oblong_images_is_what_the_network_sees(at, desk, capsys):
    "Digits in the middle of strips of noise: with --crop the network knows them, a second request and an audit see the same, and say what cannot be."
    noise = np.random.default_rng(0)
    for part, images in zip(("train", "test"), photographed(), strict=True):
        for n, picture in enumerate(images.images.permute(0, 2, 3, 1).numpy()):
            file = desk / "strips" / part / images.classes[int(images.labels[n])] / f"{n:04d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            strip = noise.integers(0, 256, (8, 24, 3), dtype=np.uint8)
            strip[:, 8:16] = picture
            Image.fromarray(strip).save(file)
    line, brief = "--data strips --forget three", "--set fit.epochs=1 --set fit.lr=0.05"
    code, _, err = at(f"{GOOD.replace('--data photos', '')} {line} --crop 1 --size 8 --out cut {brief}", capsys)
    assert code == 0, err
    record = json.loads((desk / "cut/report.json").read_text())
    before = {n["name"]: n["before"] for n in record["numbers"]}
    assert before["A_r"] > 90 and record["model"]["crop"] == 1 and "cut to the middle" in (desk / "cut/model_card.md").read_text()
    assert open_result(desk / "cut")[1].crop == 1
    code, _, err = at(f"maga forget --model cut --data strips --forget eight --out cut_twice {brief}", capsys)
    assert code == 0 and "after requests" in err, err
    code, _, err = at(f"maga forget --model cut --data strips --forget eight --crop 0.5 --out x {brief}", capsys)
    assert code == 1 and "were cut to 1 of their shorter side" in err, err
    audit = f"maga audit {line} --original model.safetensors --unlearned cut"
    assert at(f"{audit} --crop 1", capsys)[0] == 0
    code, _, err = at(f"{audit} --size 8", capsys)
    assert code == 1 and "another crop than the original" in err and "--crop" in err, err
    code, _, err = at("maga forget --model net.py:Net --weights net.pth --mean 0.5 --std 0.5 --data strips --forget three --crop 1 --out x", capsys)
    assert code == 1 and "--crop needs --size" in err, err
    code, _, err = at("maga forget --model model.safetensors --data digits --forget three --crop 0.5 --size 8 --out x", capsys)
    assert code == 1 and "nothing is cut" in err, err


def test_a_file_without_a_description_is_told_how_to_name_its_network(at, desk, capsys):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, desk / "bare.safetensors")
    code, _, err = at("maga forget --model bare.safetensors --data photos --forget three --out x", capsys)
    assert code == 1 and "name its network, and this file as weights (timm:NAME or file.py:NAME with --weights)" in err, err


CHECKPOINTS = {
    "compiled": lambda net: {f"_orig_mod.{k}": v for k, v in net.state_dict().items()},
    "compiled in parts": lambda net: {k.replace("body.", "body._orig_mod."): v for k, v in net.state_dict().items()},
    "lightning": lambda net: {"state_dict": {f"model.{k}": v for k, v in net.state_dict().items()}, "epoch": 3},
    "parallel and compiled": lambda net: {f"module._orig_mod.{k}": v for k, v in net.state_dict().items()},
    "averaged": lambda net: torch.optim.swa_utils.AveragedModel(net).state_dict(),
    "extra state": lambda net: net.state_dict() | {"_extra_state": {"version": 3}},
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_wrapped_checkpoints_are_opened_and_written_back(kind, tmp_path):
    "Prefixes and counters of torch.compile, Lightning and AveragedModel are left out of the network, and are in the result again."
    more = "\n    def get_extra_state(self):\n        return {'version': 3}\n    def set_extra_state(self, state):\n        self.told = state\n"
    (tmp_path / "own.py").write_text(NET.replace("    def forward", f"{more if kind == 'extra state' else ''}\n    def forward"))
    exec(NET, found := {})
    net, file = found["Net"](), tmp_path / "weights.pth"
    torch.save(CHECKPOINTS[kind](net), file)
    opened = open_network(f"{tmp_path}/own.py:Net", str(file))
    for name, v in net.state_dict().items():
        assert torch.equal(opened.model.state_dict()[name], v), name
    with torch.no_grad():
        opened.model.out.bias += 1
    before, after_ = (torch.load(p) for p in (file, opened.write(opened.model, tmp_path / "out")))
    assert list(before) == list(after_)
    before, after_ = (d.get("state_dict", d) for d in (before, after_))
    assert list(before) == list(after_)
    for name, v in before.items():
        wanted = v + 1 if name.endswith("out.bias") else v
        assert torch.equal(after_[name], wanted) if isinstance(v, torch.Tensor) else after_[name] == wanted, name
    if kind == "extra state":
        assert opened.model.told == {"version": 3} and prepared(opened.model, digits()[0], 10)


TIED = """
import neighbour
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1), nn.Linear(192, num_classes)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.c(neighbour.together(self.b(self.a(x))))

def late(num_classes):
    from second_neighbour import given
    return given(Net(num_classes))
"""


def test_tied_weights_and_a_neighbour(tmp_path):
    "safetensors' save_model writes tied weights once; what a script imports from beside it, at once or when it makes a network, is found there."
    from safetensors.torch import load_model, save_model

    (tmp_path / "work").mkdir()
    (tmp_path / "work/neighbour.py").write_text("def together(x):\n    return x.flatten(1)\n")
    (tmp_path / "work/tied.py").write_text(TIED)
    searched = list(sys.path)
    with pytest.raises(MagaError, match="needs a file of weights"):
        open_network(f"{tmp_path}/work/tied.py:Net", "", ["a", "b"])
    assert sys.path == searched
    make = sys.modules["tied"].Net
    net = make(2)
    save_model(net, str(tmp_path / "tied.safetensors"))
    opened = open_network(f"{tmp_path}/work/tied.py:Net", str(tmp_path / "tied.safetensors"), ["a", "b"])
    assert torch.equal(opened.model.b.weight, net.a.weight) and torch.equal(opened.model.a.weight, net.a.weight)
    load_model(make(2), str(opened.write(opened.model, tmp_path / "out")))
    (tmp_path / "work/second_neighbour.py").write_text("def given(net):\n    return net\n")
    later = open_network(f"{tmp_path}/work/tied.py:late", str(tmp_path / "tied.safetensors"), ["a", "b"])
    assert torch.equal(later.model.b.weight, net.a.weight) and sys.path == searched


def test_weights_that_cannot_be_taken_say_why(tmp_path):
    "Programs, two sets of weights, a retrain without the forgotten class's logit."
    (tmp_path / "own.py").write_text(NET)
    exec(NET, found := {})
    net = found["Net"]()
    (plain := nn.Sequential(nn.Flatten(), nn.Linear(192, 10))).eval()
    torch.jit.script(plain).save(tmp_path / "script.pt")
    torch.export.save(torch.export.export(plain, (torch.zeros(2, 3, 8, 8),)), tmp_path / "exported.pt2")
    state = net.state_dict()
    torch.save({**state, **{f"model.{k}": v for k, v in state.items()}}, tmp_path / "twice.pth")
    torch.save({f"{p}.{k}": v for k, v in state.items() for p in ("model", "ema")}, tmp_path / "both.pth")
    torch.save({k: v[:9] if k.startswith("out.") else v for k, v in state.items()}, tmp_path / "nine.pth")
    for file, said in {
        "script.pt": r"is a TorchScript archive \(torch.jit.save\), a program and not weights",
        "exported.pt2": r"is an exported program \(torch.export.save\)",
        "twice.pth": "parameters differ, first model|holds .* twice",
        "both.pth": "parameters differ",
        "nine.pth": "has 9 outputs, not 10: .* a retrain too. Train it with 10 outputs",
    }.items():
        with pytest.raises(MagaError, match=said):
            open_network(f"{tmp_path}/own.py:Net", str(tmp_path / file))


def test_a_number_where_classes_are_named_by_numbers():
    "Folders 001 … 010: the label 3 is the folder 004, so a number that is no name is refused, and the near names are said."
    named = tuple(f"{k:03d}" for k in range(1, 11))
    train, test = (replace(s, classes=named) for s in digits())
    with pytest.raises(MagaError, match=r"no class named '3', and the classes are named by numbers: did you mean 003\?"):
        forgetting.Wanted(("3",)).split(train, test)
    assert forgetting.Wanted(("003",)).split(train, test).forgotten == (2,)
    assert forgetting.Wanted(("3",)).split(*digits()).forgotten == (3,)
    with pytest.raises(MagaError, match=r"did you mean 01[0-9] or"):
        forgetting.Wanted(("11",)).split(train, test)


def test_class_names_that_hold_commas():
    "What is typed is first read as one name, then as several; of them, too, the longest that there is."
    own = ("three, digit", "zero", "one,two", *digits()[0].classes[3:])
    train, test = (replace(s, classes=own) for s in digits())
    for text, labels in (("three, digit", (0,)), ("one,two", (2,)), ("zero, three, digit,one,two ,nine", (0, 1, 2, 9)), ("three,8", (3, 8))):
        assert forgetting.Wanted((text,)).split(train, test).forgotten == labels, text
    assert forgetting.Wanted(("one,two", "zero")).split(train, test).forgotten == (1, 2)
    with pytest.raises(MagaError, match="no class named 'digit'"):
        forgetting.Wanted(("zero, digit",)).split(train, test)


def test_a_class_with_a_comma_is_named_on_the_command_line(at, desk, capsys):
    shutil.copytree(desk / "photos", desk / "commas")
    for part in ("train", "test"):
        (desk / "commas" / part / "three").rename(desk / "commas" / part / "three, digit")
    line = "maga audit --model net.py:Net --original net.pth --unlearned net.pth --mean 0.5 --std 0.5 --data commas --forget 'three, digit'"
    code, _, err = at(line, capsys)
    assert code == 0 and "forget three, digit:" in err, err
    names = sorted(p.name for p in (desk / "commas/train").iterdir())
    (desk / "names.txt").write_text("\n".join(names))
    assert at(f"{line} --classes names.txt", capsys)[0] == 0
    (desk / "names.txt").write_text("\n".join(n.replace(", digit", "") for n in names))
    code, _, err = at(f"{line} --classes names.txt", capsys)
    assert code == 1 and "does not know the class 'three, digit'" in err, err


def test_classes_that_the_data_lack_are_named(at, desk, capsys):
    "Five of ten folders: what the network knows of the others is lost, which no number shows. Those of an earlier request are no loss."
    kept = ("three", "five", "one", "two", "four")
    for part, name in itertools.product(("train", "test"), kept):
        shutil.copytree(desk / "photos" / part / name, desk / "half" / part / name)
    brief = "--data half --set fit.lr=0.05 --set fit.epochs=1"
    code, _, err = at(f"maga forget --model model.safetensors {brief} --forget three --out halved_away", capsys)
    said = "No training image of zero, six, seven, eight, nine stays, and no request forgets them: what the network knows of these classes is lost"
    assert code == 0 and err.count(said) == 1 and err.index(said) < err.index("restart: "), err
    assert any(said in w for w in json.loads((desk / "halved_away/report.json").read_text())["warnings"])
    assert said in (desk / "halved_away/report.html").read_text() and said in (desk / "halved_away/model_card.md").read_text()
    for part in ("train", "test"):
        shutil.rmtree(desk / "half" / part / "three")
    code, _, err = at(f"maga forget --model halved_away {brief} --forget five --out halved_again", capsys)
    assert code == 0 and "No training image of zero, six," in err and "three" not in err.split("No training image of")[1].split(" stays")[0], err


def test_test_images_that_were_put_aside_are_said_to_be_perhaps_training_images(at, desk, capsys):
    "A folder without train and test: the original was trained on all of it, so its accuracy is not that of unseen images."
    for name in ("three", "five", "one"):
        shutil.copytree(desk / "photos/train" / name, desk / "flat" / name)
    brief = "--data flat --forget three --set fit.lr=0.05 --set fit.epochs=1 --out of_flat"
    with pytest.warns(UserWarning, match="put aside as the test set"):
        assert at(f"maga forget --model model.safetensors {brief}", capsys)[0] == 0
    record, card = json.loads((desk / "of_flat/report.json").read_text()), (desk / "of_flat/model_card.md").read_text()
    assert any("were put aside from flat itself" in w for w in record["warnings"]) and "were put aside from flat itself" in card
    assert [n["meaning"].endswith("possibly on images that it was trained on") for n in record["numbers"]] == [True, True, True]
    assert "were put aside from flat itself" in (desk / "of_flat/report.html").read_text()
    shutil.rmtree(desk / "flat/three")
    with pytest.warns(UserWarning, match="put aside as the test set"):
        assert at("maga forget --model of_flat --data flat --forget five --set fit.lr=0.05 --set fit.epochs=1 --out of_less", capsys)[0] == 0
    later = json.loads((desk / "of_less/report.json").read_text())
    assert all("; before and after: possibly on images" in n["meaning"] for n in later["numbers"][:3])
    assert any("An earlier request may have trained on some of them" in w for w in later["warnings"])
    assert not any("An earlier request" in w for w in record["warnings"])


@pytest.fixture(scope="module")
def retrained(desk):
    "Three retrains without *three*, the files of the user's own script."
    exec(NET, found := {})
    train = in_model_order(digits()[0], sorted(digits()[0].classes))
    data = train.__class__(train.images, train.labels, train.classes, mean=(0.5,) * 3, std=(0.5,) * 3)
    rows = (data.labels != data.classes.index("three")).nonzero().flatten()
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = found["Net"]()
        net = fit(net, Examples.of(data, rows), FitConfig(4, 32, lr=0.1, pad=0, flip=False), g)
        torch.save(net.state_dict(), desk / f"again_{seed}.pth")
    torch.save(found["Net"]().state_dict(), desk / "untrained.pth")
    state = torch.load(desk / "again_1.pth")
    turned = state | {k: state[k].roll(1, 0) for k in ("out.weight", "out.bias")}
    torch.save(turned, desk / "turned.pth")
    return [f"again_{seed}.pth" for seed in range(3)]


AUDITED = "maga audit --model net.py:Net --original net.pth --data photos --forget three"


def test_an_audit_refuses_networks_that_do_not_work(at, retrained, capsys):
    "A wrong normalisation, an untrained retrain, one whose classes are in another order: each would give a confident verdict."
    own, check = "--mean 0.5 --std 0.5", "check the normalisation (--mean, --std), the size of the images, the order of the classes, and the weights"
    given = " ".join(f"--retrain {r}" for r in retrained)
    code, out, err = at(f"{AUDITED} {own} --unlearned net.pth {given}", capsys)
    assert code == 0 and out.startswith("DISTINGUISHABLE"), err
    turned = "nine,eight,seven,six,five,four,three,two,one,zero"
    code, out, err = at(f"{AUDITED} --mean 0 --std 0.004 --classes {turned} --unlearned net.pth {given}", capsys)
    assert code == 1 and not out and f"near chance (11.1 %): {check}" in err, err
    for wrong in ("untrained.pth", "turned.pth"):
        code, out, err = at(f"{AUDITED} {own} --unlearned net.pth {given} --retrain {wrong}", capsys)
        assert code == 1 and not out and "Retrain 4 is right on" in err and check in err, err
    code, out, err = at(f"{AUDITED} {own} --unlearned net.pth --retrain turned.pth", capsys)
    assert code == 1 and "Retrain 1 is right on" in err, err


def test_accuracy_on_images_that_were_put_aside_decides_nothing(split, original):
    "Of a folder without train and test a network may have seen the test images: A_r is not measured there, and the others count."
    for folders, counts in ((("a", "a"), False), (("train", "test"), True)):
        train, test = (replace(s, files=tuple(f"{f}/{n}.png" for n in range(len(s)))) for f, s in zip(folders, (split.train, split.test), strict=True))
        found = audit(original, original, replace(split, train=train, test=test))
        assert ("were put aside" in found["A_r"].says) != counts and "were put aside" not in found["A_f"].says


def test_weights_beside_an_earlier_result_are_refused(at, desk, capsys):
    "The result has its own; others would be ignored without a word."
    assert at(f"{GOOD} --forget three --out has_weights --set fit.lr=0.05 --set fit.epochs=1", capsys)[0] == 0
    for weights in ("net.pth", "nowhere.pth"):
        code, _, err = at(f"maga forget --model has_weights --weights {weights} --data photos --forget eight --out x", capsys)
        assert code == 1 and "has_weights is an earlier result and holds its own weights" in err and not (desk / "x").exists(), err


def test_a_folder_named_as_a_data_set_is_not_replaced_by_it(at, desk, capsys, tmp_path, monkeypatch):
    "`digits` is scikit-learn's, ./digits and folder:digits are the folder; which is meant is asked."
    few = [s.subset(torch.arange(100)) for s in digits()]
    as_folder(tmp_path / "digits", dict(zip(("train", "test"), few, strict=True)))
    monkeypatch.chdir(tmp_path)
    line = f"maga audit --original {desk}/model.safetensors --unlearned {desk}/model.safetensors --forget three --data"
    code, _, err = at(f"{line} digits", capsys)
    assert code == 1 and "write ./digits for the folder" in err, err
    for named in ("./digits", "folder:digits", str(tmp_path / "digits")):
        code, _, err = at(f"{line} {named}", capsys)
        assert code == 0 and "forget three: train 11 forget + 89 retain" in err, err
    code, _, err = at(f"{line} folder:nowhere", capsys)
    assert code == 1 and "There is no folder" in err, err
    with pytest.raises(MagaError, match="cifar10 was not found"):  # the folder of the data set itself is no doubt
        (tmp_path / "cifar10").mkdir()
        command.opened(f"{desk}/model.safetensors", "", "cifar10", ".", "cpu")


def test_the_checkpoint_may_vanish_or_change_while_the_method_runs(at, desk, capsys, monkeypatch):
    "Names, container and hash are those of the file that was opened: the result is not lost with it."
    own, line = forgetting.forget, "maga forget --model net.py:Net --weights going.pth --mean 0.5 --std 0.5 --data photos --forget three --set fit.epochs=1"
    digest = hashlib.sha256((desk / "net.pth").read_bytes()).hexdigest()[:16]
    for n, change in enumerate((Path.unlink, lambda p: p.write_bytes(b"another"))):
        shutil.copy(desk / "net.pth", desk / "going.pth")

        def run(*a, change=change, **k):
            change(desk / "going.pth")
            return own(*a, **k)

        monkeypatch.setattr(forgetting, "forget", run)
        code, _, err = at(f"{line} --set fit.lr=0.05 --out went_{n}", capsys)
        assert code == 0, err
        before, found = (torch.load(desk / p) for p in ("net.pth", f"went_{n}/going.pth"))
        assert list(found) == ["model", "epoch"] and list(found["model"]) == list(before["model"])
        assert json.loads((desk / f"went_{n}/report.json").read_text())["model"]["sha256"] == digest


def test_weights_that_cannot_be_written_in_their_form_are_kept_plain(at, desk, capsys, monkeypatch):
    "Whatever fails while the result is written as the original was: a state dict is left."

    def refused(*a):
        raise KeyError("no such form")

    monkeypatch.setattr("maga.own.networks.write_weights", refused)
    code, _, err = at(f"{GOOD} --forget three --out plainly --set fit.lr=0.05 --set fit.epochs=1", capsys)
    assert code == 1 and "The weights are in plainly (state_dict.pth)" in err and "no such form" in err, err
    assert torch.load(desk / "plainly/state_dict.pth").keys() == load_checkpoint(desk / "model.safetensors")[0].state_dict().keys()


def test_a_result_works_from_every_folder(at, desk, capsys, tmp_path, monkeypatch):
    "With its code where it was, or moved along with it; code that has changed or is gone is said."
    project = tmp_path / "project"
    project.mkdir()
    (project / "parts.py").write_text(NET)
    (project / "mine.py").write_text("import parts\n\ndef Net():\n    return parts.Net()\n")
    shutil.copy(desk / "net.pth", project)
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(project)
    brief = f"--data {desk}/photos --set fit.lr=0.05 --set fit.epochs=1"
    line = f"maga forget --model mine.py:Net --weights net.pth --mean 0.5 --std 0.5 {brief} --forget three --out done"
    assert at(line, capsys)[0] == 0
    monkeypatch.chdir(desk)
    for n, place in enumerate((project, tmp_path / "moved")):
        code, _, err = at(f"maga forget --model {place}/done {brief} --forget eight --out {tmp_path}/eight_{n}", capsys)
        assert code == 0 and "has changed" not in err, err
        project.rename(tmp_path / "moved") if n == 0 else None
    assert open_result(tmp_path / "eight_1")[0].source == "mine.py:Net"  # also of a result of a result
    (tmp_path / "moved/mine.py").write_text("import parts\n\nclass Net(parts.Net):\n    pass\n")
    with pytest.warns(UserWarning, match="mine.py has changed since .*done was made"):
        open_result(tmp_path / "moved/done")
    (tmp_path / "moved/mine.py").unlink()
    code, _, err = at(f"maga forget --model {tmp_path}/moved/done {brief} --forget eight --out x", capsys)
    assert code == 1 and "The code of the network" in err and "put mine.py back" in err, err


@pytest.mark.parametrize("share, trained", [(0.05, 12), (0.5, 60), (0.03, 60)])
def test_a_budget_pays_for_all_that_is_done(share, trained, split, original):
    "Trials of learning rates and looks at views are work, too: what is spent is within the budget, and what is said is what is spent."
    with counted_passes() as spent:
        plan = forgetting.planned(original, split, budget=share, trained=trained)
        forgetting.forget(original, split, plan)
        measured = 2 / 3 * (len(split.train) + len(split.test))  # what `forget` measures is no part of it
    retrain = trained * len(split.retain_train)
    cost = (float(spent) - measured) / retrain
    assert 0.5 * share <= cost <= 1.02 * share, cost
    said = float(re.search(r"It costs about ([0-9.]+) % of a retrain \(", plan.why)[1])
    assert abs(said - 100 * cost) <= 0.1 + 2 * cost, (said, cost)
    assert bool(plan.trials) == (share == 0.5) and ("pays for no trial" in plan.why) != bool(plan.trials)
    rows = min(plan.config.retain_images or len(split.retain_train), len(split.retain_train))
    steps = plan.config.fit.epochs * max(1, rows // plan.config.fit.batch_size)
    assert plan.config.fit.average == max(0.0, 1 - 10 / steps), "the weights are averaged over a tenth of the steps that are paid for"


def test_a_budget_that_is_too_small_is_named_as_it_was_asked_for(split, original):
    "With what one batch costs and what was looked at before: together they are more."
    with pytest.raises(MagaError, match="A budget of 8 % is too small") as said:
        forgetting.planned(original, split, budget=0.08, trained=1)
    pattern = r"costs ([0-9.]+) % of a retrain .*, and looking at images before that ([0-9.]+) %: ([0-9.]+) % together"
    batch, looks, both = map(float, re.search(pattern, str(said.value)).groups())
    assert batch < 8 < both <= batch + looks and "noise" not in str(said.value)


def test_a_setting_that_saves_counts_in_the_budget(split, original):
    "Noise of the preset costs more than the budget; less noise, as the message advises, leaves enough."
    with pytest.raises(MagaError, match=r"this method costs [0-9.]+ % of a retrain .*lower its settings beside fit.*or take restart"):
        forgetting.planned(original, split, "maga", "digits", budget=0.05, trained=12)
    plan = forgetting.planned(original, split, "maga", "digits", budget=0.05, trained=12, changes={"noise.size": 1, "noise.steps": 1})
    assert plan.config.noise.steps == 1 and plan.method.cost(plan.config, split, original) <= 0.05 * 12 * len(split.retain_train)


def test_settings_that_exceed_the_budget_are_said(at, desk, capsys):
    "Before the work, and in the report: the true share beside the one that was asked for."
    line = f"{GOOD} --forget three --budget 5% --trained-epochs 12 --set fit.lr=0.05"
    code, _, err = at(f"{line} --out within", capsys)
    assert code == 0 and "% of a retrain (5 % asked for)" in err, err
    cost = json.loads((desk / "within/report.json").read_text())["cost"]
    assert cost["percent asked for"] == 5 and 2 < cost["percent of a retrain"] <= 5.1, cost
    assert f"{cost['percent of a retrain']} % of a retrain (5.0 % asked for)" in (desk / "within/report.html").read_text()
    code, _, err = at(f"{line} --set fit.epochs=4 --out beyond", capsys)
    record = json.loads((desk / "beyond/report.json").read_text())
    share = record["cost"]["percent of a retrain"]
    assert code == 0 and share > 6 and any(f"This cost {share:.1f} % of a retrain, and 5 % were asked for" in w for w in record["warnings"]), err
    told = float(re.search(r"costs about ([0-9.]+) % of a retrain \(5 % asked for\)", err)[1])
    assert abs(told - share) < 0.2, (told, share)


def test_kept_retrains_are_those_of_this_code(at, desk, capsys, tmp_path):
    "Code that computes something else under the same names of parameters: its retrains are trained anew. A comment is no other code."
    file, line = tmp_path / "net.py", f"--data photos --forget three --train-retrains 1 --trained-epochs 3 --out {tmp_path}/kept_here"
    line = f"maga audit --model {file}:Net --original net.pth --unlearned net.pth --mean 0.5 --std 0.5 {line}"
    for code, kept in ((NET, 1), (f"# mine\n{NET}", 1), (NET.replace("nn.ReLU()", "nn.ELU()"), 2)):
        file.write_text(code)
        at(line, capsys)
        assert len(list((tmp_path / "kept_here").glob("retrain_*"))) == kept
        (tmp_path / "kept_here/audit.json").unlink()  # an audit of other code would be refused


class Begins(nn.Module):
    "A block whose branch begins at zero, and a last layer that does; `still` names what does not move."

    def __init__(self, seed=0, act=torch.relu, branch=torch.relu, still=()):
        super().__init__()
        with seeded(torch.Generator().manual_seed(seed)):
            self.conv, self.norm, self.body, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.Linear(8, 10)
            self.act, self.branch, self.scale = act, branch, nn.Parameter(torch.full((), 1e-6))
        for p in self.head.parameters():
            nn.init.zeros_(p)
        for name in still:
            self.get_submodule(name).requires_grad_(name == "norm").train(name != "norm")

    def forward(self, x):
        x = self.act(self.norm(self.conv(x)))
        return self.head((x[..., 1:-1, 1:-1] + self.scale * self.branch(self.body(x))).mean((2, 3)))


def test_what_begins_at_zero_hides_no_difference_from_kept_retrains(split, tmp_path):
    "All logits of the untrained network are 0: weights, activations and what is frozen are told apart all the same."

    def kept(**how):
        (file,) = retrain_files(Begins(**how | {"seed": 9}), lambda g: Begins(**how), split, 1, FitConfig(1), tmp_path)
        return file.name

    gelu = torch.nn.functional.gelu
    kinds = [{}, {"seed": 1}, {"act": gelu}, {"branch": gelu}, {"still": ["conv"]}, {"still": ["conv", "body"]}, {"still": ["norm"]}]
    assert kept() == kept() and len({kept(**how) for how in kinds}) == len(kinds)


def test_an_audit_says_what_was_audited_and_is_not_overwritten_by_another(at, desk, retrained, capsys):
    "Networks with hashes, data and settings; the same audit may be run again, and retrains move to another folder with it."
    line = f"{AUDITED} --mean 0.5 --std 0.5 --train-retrains 2 --trained-epochs 3"
    code, _, err = at(f"{line} --unlearned net.pth --out says_what", capsys)
    assert code == 0, err
    record, page = json.loads((desk / "says_what/audit.json").read_text())["audited"], (desk / "says_what/audit.html").read_text()
    held = {p.name: hashlib.sha256(p.read_bytes()).hexdigest()[:16] for p in (desk / "net.pth", *(desk / "says_what").glob("retrain_*"))}
    assert {Path(n["file"]).name: n["sha256"] for n in record["networks"].values()} == held and len(held) == 3
    assert [*record["networks"]] == ["original", "unlearned", "retrain trained here, 1", "retrain trained here, 2"]
    assert record["forgotten"] == "three" and record["mean"] == [0.5] * 3 and record["data"]["name"] == "photos" and record["date"] and record["maga"]
    assert all(text in page for text in (*held.values(), "photos", record["data"]["sha256"], record["date"]))
    assert record["recipe"]["epochs"] == 3 and "2 retrains were trained here" in page and "pretrained weights they are no retrains" in page and f"batch_size {record['recipe']['batch_size']};" in page
    before = (desk / "says_what/audit.json").read_bytes()
    assert at(f"{line} --unlearned net.pth --out says_what", capsys)[0] == 0 and (desk / "says_what/audit.json").read_bytes() == before
    for other in ("--unlearned again_0.pth", "--unlearned net.pth --retrain again_0.pth", "--unlearned net.pth --level 0.01"):
        code, out, err = at(f"{line} {other} --out says_what", capsys)
        assert code == 1 and not out and "is the audit of other networks, data or settings" in err and "copy retrain_*" in err, err
    assert (desk / "says_what/audit.json").read_bytes() == before
    shutil.copytree(desk / "says_what", desk / "says_more", ignore=shutil.ignore_patterns("audit.*"))
    kept = {p: p.stat().st_mtime_ns for p in (desk / "says_more").iterdir()}
    assert at(f"{line} --unlearned again_0.pth --out says_more", capsys)[0] == 0
    assert {p: p.stat().st_mtime_ns for p in (desk / "says_more").glob("retrain_*")} == kept


@pytest.mark.parametrize("flat", [False, True])
def test_files_that_are_not_read_are_listed(flat, at, desk, capsys, tmp_path):
    "A GIF, a hidden picture and a second held-out folder of the forgotten class hold it as well; those of other classes are no matter."
    few = [s.subset(torch.arange(100)) for s in digits()]
    as_folder(tmp_path / "data", {"train": few[0]} if flat else dict(zip(("train", "test"), few, strict=True)))
    root = tmp_path / "data/train" if flat else tmp_path / "data"
    place = root / "three" if flat else root / "train/three"
    held = root / "val/three"
    for file in (place / "a.gif", place / "deeper/b.GIF", place / ".hidden.png", held / "c.png", held / "note", place.with_name("two") / "d.gif"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    if flat:
        shutil.rmtree(root / "val")
    line = f"maga forget --model model.safetensors --data {root} --forget three --out {tmp_path}/out --set fit.lr=0.05 --set fit.epochs=1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code, _, err = at(line, capsys)
    assert code == 0, err
    with (tmp_path / "out/artefacts.csv").open() as f:
        listed = {a["path"]: a["what"] for a in csv.DictReader(f) if "not read" in a["what"]}
    expected = {place: "1 hidden, 1 of the ending .gif", place / "deeper": "1 of the ending .gif"}
    expected |= {} if flat else {held: "1 in a folder that is not read, 1 of the ending (none)"}
    assert listed == {str(k): f"files that were not read: {v}" for k, v in expected.items()}


def test_class_names_of_any_script_are_letters_in_the_picture(split, original):
    "As text, not as outlines of a font that lacks them."
    names = ("猫", "zwei", *split.train.classes[2:])
    named = replace(split, train=replace(split.train, classes=names), test=replace(split.test, classes=names))
    plan = forgetting.planned(original, named, changes={"fit.lr": 0.05, "fit.epochs": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        picture = _picture(named, forgetting.forget(original, named, plan))
    assert "猫" in re.sub(r"<!--.*?-->", "", picture) and ">zwei<" in picture.replace("\n", "")


def test_the_card_is_markdown_that_is_read_as_it_is_meant(at, desk, capsys):
    "A table ends, and a warning is no part of one, only where an empty line says so."
    shutil.copytree(desk / "photos/train/three", desk / "card/train/three"), shutil.copytree(desk / "photos/train/one", desk / "card/train/one")
    shutil.copytree(desk / "photos/test/three", desk / "card/test/three"), shutil.copytree(desk / "photos/test/one", desk / "card/test/one")
    assert at("maga forget --model model.safetensors --data card --forget three --out carded --set fit.lr=0.05 --set fit.epochs=1", capsys)[0] == 0
    lines = (desk / "carded/model_card.md").read_text().splitlines()
    kinds = ["".join(line[:1]) for line in lines]
    for i in range(1, len(lines)):
        marks = {kinds[i - 1], kinds[i]} & {"|", ">"}
        assert not marks or kinds[i - 1] == kinds[i] or "" in kinds[i - 1 : i + 1], lines[i - 1 : i + 1]
    assert ">" in kinds and "|" in kinds


def test_an_audit_of_what_was_never_forgotten_is_told():
    "The ledger says what was: another class, other random images."
    train, test = (s.subset(torch.arange(200)) for s in digits())
    asked = Wanted(random=5), Wanted(("three",))
    held = [Entry.of(wanted.split(train, test), "restart", "2026-01-01") for wanted in asked]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for wanted in asked:
            carried_out(wanted, train, test, (), held)
        carried_out(Wanted(("eight",)), train, test, held, ())  # no ledger, and nothing is known
    said = r"its ledger holds 5 random images \(seed 0\); three"
    for wanted, what in ((Wanted(("three", "eight")), "eight"), (Wanted(random=6), "6 of 6 images"), (Wanted(random=5, seed=1), "5 of 5 images")):
        with pytest.warns(UserWarning, match=f"never asked to forget {what}.*: {said}"):
            carried_out(wanted, train, test, (), held)


@pytest.mark.parametrize("wanted", [Wanted(random=12, seed=1), Wanted(files=("7", "8", "9"))])
def test_an_audit_of_data_that_changed_names_other_images(wanted):
    "Without one earlier image the same words mean other images: the audit would be of those that were trained on."
    train, test = (s.subset(torch.arange(120)) for s in digits())
    entry = Entry.of(wanted.split(train, test), "ssd", "2026-01-01")
    assert carried_out(wanted, train, test, (), (entry,)).forget_train.equal(wanted.split(train, test).forget_train)
    fewer = train.subset(torch.arange(1, 120))
    with pytest.raises(MagaError, match="are not those that the network forgot"):
        carried_out(wanted, fewer, test, (), (entry,))
    again = Entry.of(wanted.split(fewer, test), "ssd", "2026-01-02")
    assert carried_out(wanted, fewer, test, (), (entry, again)).forget_train.equal(wanted.split(fewer, test).forget_train)  # of its own request


def test_a_matrix_in_the_folders_order_serves_a_network_in_another(split, original, tmp_path):
    "As one that was made in the network's order."
    there = TransitionMatrix.from_similarity(torch.rand(10, 10, generator=torch.Generator().manual_seed(0)) + 0.1, split.train.classes)
    other = there.in_order(sorted(split.train.classes))
    other.save(tmp_path / "T.safetensors")
    found = transition_of(str(tmp_path / "T.safetensors"), original, split, torch.Generator())
    assert other.digest != there.digest and found.digest == there.digest and found.S.equal(there.S)


class Asked:
    "A judge that is asked a class at a time, and dies at one of its questions."

    name, revision, prompt = "asked", "1", "like?"

    def __init__(self, dies=-1):
        self.dies, self.blocks_asked = dies, []

    def scores(self, queries, concepts):
        raise NotImplementedError

    def blocks(self, queries, concepts):
        return [Block(torch.arange(len(queries)), (k,)) for k in concepts]

    def ask(self, queries, block):
        if len(self.blocks_asked) == self.dies:
            raise KeyboardInterrupt
        self.blocks_asked.append(block.concepts)
        return Answers(*(torch.full((len(block.rows), 1), x) for x in (0.1 + 0.05 * block.concepts[0], 0.9)))


def test_a_judge_that_takes_hours_goes_on_after_an_interruption(split, original, tmp_path, monkeypatch):
    "Its answers are in the cache until T is there, and a class with few images lends what it has."
    monkeypatch.setenv("MAGA_CACHE", str(tmp_path))
    few = forget_class(split.train.subset(torch.arange(60)), split.test, "three")
    fewest = int(torch.bincount(few.train.labels).min())
    first, second = Asked(dies=4), Asked()
    for judge in (first, second):
        monkeypatch.setattr(forgetting, "make_judge", lambda *given, judge=judge: judge)
        with contextlib.suppress(KeyboardInterrupt):
            found = transition_of("asked", original, few, torch.Generator().manual_seed(0))
    assert (len(first.blocks_asked), len(second.blocks_asked)) == (4, 6) and 0 < fewest < 10
    assert found.about["exemplars"] == str(fewest) and torch.allclose(found.S, 0.1 + 0.05 * torch.arange(10).expand(10, 10))


def test_an_interruption_says_what_was_lost(at, desk, monkeypatch, capsys):
    monkeypatch.setattr(forgetting, "forget", raising(KeyboardInterrupt()))
    code, _, err = at(f"{GOOD} --forget three --out stopped --set fit.lr=0.05", capsys)
    assert code == 130 and err.splitlines()[-1].startswith("maga: interrupted, no result was written") and not (desk / "stopped").exists()
    for line in ("maga reproduce --list", "maga judge --help"):  # these say it themselves, or end well
        assert "interrupted" not in at(line, capsys)[2]


def test_layers_without_a_shape_are_named(split, tmp_path):
    "They take it from a first batch, which comes before the weights."
    lazy = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(10))
    with pytest.raises(MagaError, match="weight is not known yet: call the model once"):
        prepared(lazy, split.train)


def test_class_names_with_dollars_are_no_formulas():
    "Nor do names of folders that are no text stop a picture."
    figure = show_flow({"after": torch.eye(3)}, ("$1_to_$5_", "cost $", "caf\udce9"))
    figure.canvas.draw()
    assert next(t.get_text() for t in figure.axes[0].get_yticklabels()) == r"\$1_to_\$5_"


def test_the_lists_say_what_each_thing_is():
    "Every metric has a sentence; a method that trains says for how many epochs, whatever its configuration calls that."
    assert all(m["says"] for m in metrics_there_are())
    cost = {m["name"]: m["cost"] for m in methods_there_are()}
    assert cost["ssd"] == "passes over the images, no training" and "epoch" in cost["unsir"] and "epoch" in cost["maga"]


def test_a_script_that_ends_the_process_ends_in_a_sentence(at, desk, capsys, tmp_path):
    "A network's file may be a script: its exit is not the command's, which would look like a success."
    for body in ("sys.exit(0)", "def make():\n    sys.exit(0)"):
        (tmp_path / "script.py").write_text(f"import sys\ndef make(): pass\n{body}\n")
        code, out, err = at(f"maga forget --model {tmp_path}/script.py:make --weights net.pth --mean 0.5 --std 0.5 --data digits --forget three --out e", capsys)
        assert code == 1 and "SystemExit: 0" in err and not out and not (desk / "e").exists(), err


def test_a_class_without_training_images_is_no_part_of_a_request(at, desk, capsys):
    "Beside another one it would stay out of the ledger, and images that come back would be trained on."
    train, test = digits()
    left = train.subset((train.labels != 3).nonzero().flatten())
    with pytest.raises(MagaError, match="no training image belongs to 'three'; leave that out"):
        forget_class(left, test, ["three", "eight"])


def test_files_are_readable_by_whom_the_umask_allows(at, desk, capsys, tmp_path, monkeypatch):
    "The weights, the ledger with its hashes, and the decoded copy of the images."
    monkeypatch.setenv("MAGA_CACHE", str(tmp_path / "cache"))
    before = os.umask(0o077)
    try:
        code, _, err = at(f"{GOOD} --forget three --set fit.epochs=1 --set fit.lr=0.05 --out {tmp_path}/private", capsys)
    finally:
        os.umask(before)
    assert code == 0, err
    made = [tmp_path / "private", *(tmp_path / "private").iterdir(), *(tmp_path / "cache").iterdir()]
    assert len(made) > 6 and not any(p.stat().st_mode & 0o077 for p in made)


def test_a_judges_answers_are_among_what_remembers(tmp_path, monkeypatch):
    "They name images by their hashes; those about other images are not listed."
    monkeypatch.setenv("MAGA_CACHE", str(tmp_path))
    train, test = digits()
    split = forget_class(train, test, "three")
    (tmp_path / "answers").mkdir()
    for name, rows in (("about", split.forget_train[:2]), ("other", split.retain_train[:2])):
        record = json.dumps({"queries": image_hashes(train.pixels(rows)), "concepts": [0]})
        (tmp_path / "answers" / f"{name}.jsonl").write_text(f"853904f7 {record}\n")
    assert [p.stem for p in answers_about(split)] == ["about"]


def test_a_factory_with_a_usual_number_of_classes_makes_that_of_the_data(tmp_path):
    "Weights for ten classes fit it, as where the factory asks for the number."
    code = "from torch import nn\ndef net(width=8, num_classes=1000):\n    return nn.Sequential(nn.Flatten(), nn.Linear(192, width), nn.Linear(width, num_classes))\n"
    (tmp_path / "usual.py").write_text(code)
    torch.save({k: torch.randn(v) for k, v in {"1.weight": (8, 192), "1.bias": (8,), "2.weight": (10, 8), "2.bias": (10,)}.items()}, tmp_path / "w.pth")
    network = open_network(f"{tmp_path}/usual.py:net", str(tmp_path / "w.pth"), digits()[0].classes)
    assert network.model[2].out_features == 10


def test_a_factory_that_passes_its_arguments_on_makes_the_classes_of_the_data(tmp_path):
    "As torchvision's, whose number of classes is behind **kwargs; one that refuses the argument is called without it."
    code = """
from torch import nn
def inner(num_classes=1000):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes))
def outer(*, weights=None, **kwargs):
    return inner(**kwargs)
class Net(nn.Module):
    def __init__(self, width=10, **kwargs):
        super().__init__(**kwargs)
        self.head = nn.Linear(192, width)
    def forward(self, x):
        return self.head(x.flatten(1))
"""
    (tmp_path / "passing.py").write_text(code)
    for name, prefix in {"outer": "1", "Net": "head"}.items():
        torch.save({f"{prefix}.weight": torch.randn(10, 192), f"{prefix}.bias": torch.randn(10)}, tmp_path / f"{name}.pth")
        network = open_network(f"{tmp_path}/passing.py:{name}", str(tmp_path / f"{name}.pth"), digits()[0].classes)
        for made in (network.model, network.make(torch.Generator().manual_seed(0))):
            assert made(torch.zeros(1, 3, 8, 8)).shape == (1, 10)


def test_a_network_of_torchvision_is_named_as_it_is(tmp_path):
    from torchvision.models import squeezenet1_1

    torch.save(squeezenet1_1(num_classes=10).state_dict(), tmp_path / "w.pth")
    assert open_network("torchvision.models:squeezenet1_1", str(tmp_path / "w.pth"), digits()[0].classes).model.classifier[1].out_channels == 10


def test_a_wrong_level_is_refused_before_any_network_is_opened(at, capsys):
    code, _, err = at("maga audit --original nowhere --unlearned nowhere --data nowhere --forget three --level 5", capsys)
    assert code == 1 and "--level is 5; expected a number between 0 and 1" in err, err


def test_single_images_are_forgotten_from_a_fresh_last_layer(split, original):
    "As it was measured (studies/frontier), for every kind of request."
    some = forget_files(split.train, split.test, list(range(0, 300, 10)))
    plan = forgetting.planned(original, some, changes={"fit.lr": 0.05})
    assert plan.config.head == "fresh" and plan.config.distil is not None and "single images" in plan.why


def test_purge_deletes_what_is_a_cache_alone(tmp_path, monkeypatch):
    "A list may come from anybody: files that it calls maga's are looked at, and a thesis stays and is named."
    monkeypatch.setenv("MAGA_CACHE", str(tmp_path / "cache"))
    (photo := tmp_path / "photos/a.png").parent.mkdir()
    photo.write_bytes(b"")
    cached([photo], lambda: tuple(Undecoded.of(s.subset(torch.arange(3))) for s in digits()))
    (own,) = caches_of(photo.parent)
    (left := tmp_path / f".{own.name}.000000a1").write_bytes(b"pixels")
    (thesis := tmp_path / "thesis.txt").write_text("years")
    save_file({"w": torch.ones(1)}, weights := tmp_path / "model.safetensors")
    listed = (own, left, thesis, weights, tmp_path / "gone.safetensors")
    write_artefacts([Artefact(str(p), "decoded images", "pixels", "maga's", "maga purge") for p in listed], tmp_path / "artefacts.csv")
    with pytest.warns(UserWarning, match=rf"Not deleted: {thesis}, {weights}\. .* no cache of maga: look at it"):
        assert purge(tmp_path) == [own, left]
    assert thesis.read_text() == "years" and weights.exists() and not own.exists() and not left.exists()


def test_a_list_of_many_kinds_of_files_can_be_read(tmp_path):
    "Thousands of other files of as many endings in a class folder: the four commonest are named. A cell that CSV cannot hold is said."
    train, test = (s.subset(torch.arange(30)) for s in digits())
    train = replace(train, files=tuple(f"train/{train.classes[int(k)]}/{i}.png" for i, k in enumerate(train.labels)))
    (tmp_path / "train/three").mkdir(parents=True)
    for name in (*(f"{k}.e{k}" for k in range(60)), "a.gif", "b.gif"):
        (tmp_path / "train/three" / name).write_bytes(b"")
    (found,) = _unread(tmp_path, forget_class(train, test, "three"))
    assert "2 of the ending .gif" in found.what and found.what.count("of the ending") == 4 and found.what.endswith(", …"), found.what
    write_artefacts([replace(found, what="x" * 2**18)], tmp_path / "artefacts.csv")
    with pytest.raises(MagaError, match=r"artefacts\.csv cannot be read .* expected the list of a result"):
        read_artefacts(tmp_path)


@pytest.mark.parametrize("source", ["net.py:Net", "{folder}/net.py:Net", "net:Net", "result.net:Net", "m.safetensors"])
def test_code_in_the_folder_of_a_result_is_not_run(source, tmp_path, monkeypatch):
    "Whoever made the folder wrote it: beside the weights, by whichever name, also where the weights are named like code."
    folder = tmp_path / "result"
    folder.mkdir()
    (folder / "net.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n{NET}")
    torch.save({}, folder / "net.pth")
    code = {"code": "net.py", "code_beside": "net.py", "code_sha256": file_revision(folder / "net.py")} if source == "net.py:Net" else {}
    weights = "net.py:Net" if source == "m.safetensors" else "net.pth"
    view = ("a", "b"), None, (0.5,) * 3, (0.5,) * 3
    Ledger(source.format(folder=folder), weights, *view, **code).save(folder)
    monkeypatch.chdir(tmp_path if source.startswith("result") else folder)
    with pytest.raises(MagaError, match=r"holds code, .*net\.py, and .* give it as --model file\.py:NAME with its weights"):
        open_result(folder if source != "m.safetensors" else ".")
    assert not (tmp_path / "ran").exists()


def test_code_elsewhere_is_named_before_it_runs(tmp_path):
    (tmp_path / "result").mkdir()
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n{NET}")
    exec(NET, made := {})
    torch.save(made["Net"]().state_dict(), tmp_path / "result/net.pth")
    view = tuple("abcdefghij"), None, (0.5,) * 3, (0.5,) * 3
    beside = {"code": f"{tmp_path}/own.py", "code_beside": "../own.py", "code_sha256": file_revision(tmp_path / "own.py")}
    for source, more in ((f"{tmp_path}/own.py:Net", beside), ("torchvision.models:resnet18", {})):
        said = []
        Ledger(source, "net.pth", *view, **more).save(tmp_path / "result")
        with contextlib.suppress(MagaError):  # torchvision's network has other weights
            open_result(tmp_path / "result", lambda text, said=said: said.append((text, (tmp_path / "ran").exists())))
        assert len(said) == 1 and said[0][0].endswith(f"made by code that runs now: {source}."), said
        assert said[0][1] is (source[0] == "t") and (tmp_path / "ran").exists()


def test_a_folder_that_another_machine_writes_stays(tmp_path):
    "Its process is none of this machine; a minute after the last writing it is left over."
    (part := tmp_path / ".out.99999999.abcd.part").mkdir()
    (part / "model.pth").write_bytes(b"half")
    os.utime(part, (0, 0))
    assert not check_free(tmp_path / "out", "r") and part.exists()
    os.utime(part / "model.pth", (0, 0))
    assert not check_free(tmp_path / "out", "r") and not part.exists()


@pytest.mark.parametrize("event", ["taken", "removed"])
def test_a_name_that_is_taken_meanwhile_and_a_folder_that_is_removed(event, split, original, tmp_path, monkeypatch):
    "The second of two runs is complete beside the first; weights that somebody removed are written again before they are said to be there."
    def meanwhile(r):
        if event == "taken":
            (tmp_path / "out").mkdir()
            (tmp_path / "out/report.json").write_text("of the first")
        else:
            shutil.rmtree(next(tmp_path.glob(".out.*.part")))
        return "card"

    monkeypatch.setattr("maga.own.report.card_of", meanwhile)
    save_tensors(file := tmp_path / "m.safetensors", original)
    network = Network(str(file), original, file, lambda m, into: write_weights(m, file, into / file.name), lambda g: original)
    plan = forgetting.planned(network.model, split, "ssd")
    result = forgetting.forget(network.model, split, plan)
    with pytest.raises(MagaError) as e:
        report.write_result(tmp_path / "out", network, split, result, "digits", "r")
    beside = tmp_path / f"out_{os.getpid()}"
    if event == "taken":
        assert f"The result is complete, in {beside}: the name {tmp_path}/out was taken meanwhile" in str(e.value), e.value
        assert json.loads((beside / "report.json").read_text())["request"] == "r" and (tmp_path / "out/report.json").read_text() == "of the first"
    else:
        assert f"The weights are in {tmp_path}/out (state_dict.pth)" in str(e.value) and (tmp_path / "out/state_dict.pth").is_file(), e.value


def test_an_audit_that_was_written_meanwhile_is_not_overwritten(tmp_path):
    "Both were asked for while the folder was empty; the record is there before the page is."
    about = {"request": "three", "networks": {}, "level": 0.05, "data": {"name": "d", "sha256": "0"}, "sides": [8, 8]}
    (tmp_path / "audit.html").mkdir()
    with pytest.raises(MagaError, match=r"audit\.html could not be written"):
        keep_audit(tmp_path, {"audited": about}, "")
    before = (tmp_path / "audit.json").read_bytes()
    with pytest.raises(MagaError, match="is the audit of other networks, data or settings"):
        keep_audit(tmp_path, {"audited": about | {"level": 0.01}}, "")
    assert (tmp_path / "audit.json").read_bytes() == before


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    "Not finite, or whole numbers without their scale; a mask of the network's own may hold infinities."
    (tmp_path / "own.py").write_text(
        "import torch\nfrom torch import nn\n\nclass Net(nn.Sequential):\n    def __init__(self):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(12, 2))\n        self.register_buffer('mask', torch.full((2,), -torch.inf))\n")
    state = {"1.weight": torch.ones(2, 12), "1.bias": torch.zeros(2), "mask": torch.full((2,), -torch.inf)}
    torch.save(state, tmp_path / "good.pth")
    open_network(f"{tmp_path}/own.py:Net", str(tmp_path / "good.pth"))
    for bad, said in (({"1.bias": torch.tensor([0.0, torch.nan])}, r"are not finite, first 1\.bias: .* take an earlier checkpoint"),
                      ({"1.weight": torch.ones(2, 12, dtype=torch.int8)}, r"holds 1\.weight in whole numbers, without their scale")):
        torch.save(state | bad, tmp_path / "bad.pth")
        with pytest.raises(MagaError, match=said):
            open_network(f"{tmp_path}/own.py:Net", str(tmp_path / "bad.pth"))


def test_names_that_are_no_text_are_listed_and_written(tmp_path, at, desk, capsys):
    "A folder from another system may have a name that is not UTF-8: list, page and card are written, and the list finds the folder again."
    name = os.fsdecode(b"caf\xe9")
    found = [Artefact(f"/photos/{name}", "30 forgotten images", "pixels", "yours", "delete those files")]
    write_artefacts(found, tmp_path / "artefacts.csv")
    assert read_artefacts(tmp_path) == found
    for part in ("train", "test"):
        shutil.copytree(desk / "photos" / part, tmp_path / "odd" / part)
        (tmp_path / "odd" / part / "three").rename(tmp_path / "odd" / part / name)
    (tmp_path / "net.py").write_text(NET)
    sys.stderr.reconfigure(errors="backslashreplace")  # as Python opens it, and pytest does not
    code, _, err = at(
        f"maga forget --model {tmp_path}/net.py:Net --weights {desk}/net.pth --mean 0.5 --std 0.5 --data {tmp_path}/odd "
        f"--forget {name} --set fit.lr=0.05 --set fit.epochs=1 --out {tmp_path}/done", capsys)
    assert code == 0 and {"report.html", "model_card.md", "artefacts.csv", "ledger.json"} <= {p.name for p in (tmp_path / "done").iterdir()}, err


def test_code_on_another_drive_and_processes_that_windows_does_not_know(monkeypatch):
    "`os.path.relpath` finds no way between two drives, and `os.kill` raises a plain OSError there."
    def refuse(*given):
        raise ValueError("path is on mount 'C:', start on mount 'D:'")

    monkeypatch.setattr(report.os.path, "relpath", refuse)
    assert report._from(Path("D:/done"), "C:/venv/net.py") == ""

    def unknown(*given):
        raise OSError(22, "The parameter is incorrect")

    monkeypatch.setattr(inputs.os, "kill", unknown)
    assert not inputs._runs(Path(".done.4711.x.part"))


# ledger, report and list of files


@pytest.mark.parametrize("task", ["overwritten", "cut off", "deleted"])
def test_a_result_with_other_weights_is_none(task, at, desk, capsys):
    "Neither for the same line, nor for the next request or an audit, which would go on as if the class were gone; a ledger without a hash passes."
    out = f"tied_{task.partition(' ')[0]}"
    line = f"{GOOD} --forget three --method ssd --out {out}"
    assert at(line, capsys)[0] == 0 and "is done" in at(line, capsys)[1]
    held, file = Path(out, "model.safetensors").read_bytes(), Path(out, "model.safetensors")
    if task == "deleted":
        file.unlink()
    else:
        file.write_bytes(held[:-100] if task == "cut off" else Path("model.safetensors").read_bytes())
    said = "is not what maga forget wrote (it is gone)" if task == "deleted" else "is not what maga forget wrote (its SHA-256 begins with"
    for other in (line, f"maga forget --model {out} --data photos --forget eight --method ssd --out never",
                  f"maga audit --original model.safetensors --unlearned {out} --data photos --forget three"):
        code, _, err = at(other, capsys)
        assert code == 1 and said in err and "put that file back" in err, err
    file.write_bytes(held)
    assert "is done" in at(line, capsys)[1]
    replace(Ledger.load(out), weights_sha256="").save(out)
    file.write_bytes(Path("model.safetensors").read_bytes())
    assert open_result(out)[1].weights_sha256 == ""


def test_a_ledger_that_is_nested_without_end_is_damaged(tmp_path):
    "Hostile JSON exhausts Python's stack; it ends in one sentence, and a report of the kind is another result."
    for name in ("ledger.json", "report.json", "audit.json"):
        (tmp_path / name).write_text("[" * 100_000)
    with pytest.raises(MagaError, match=r"ledger\.json is damaged \(RecursionError"):
        Ledger.load(tmp_path)
    with pytest.raises(MagaError, match="holds another result"):
        check_free(tmp_path, "forget three")
    with pytest.raises(MagaError, match="is the audit of other networks"):
        check_audit(tmp_path, {})


def test_an_audit_of_another_list_of_as_many_files_is_told():
    "Both are called 30 listed images: their pixels say that it was never asked for, and the data are not blamed."
    train, test = (s.subset(torch.arange(120)) for s in digits())
    train = replace(train, files=tuple(f"train/{k:03d}.png" for k in range(120)))
    asked, other = (Wanted(files=train.files[k : k + 30]) for k in (0, 60))
    first = Entry.of(asked.split(train, test), "ssd", "2026-01-01")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        carried_out(asked, train, test, (), (first,))
        carried_out(other, train, test, (), (first, Entry.of(other.split(train, test), "ssd", "2026-01-02")))
    for before in ((), (first,)):
        with pytest.warns(UserWarning, match=r"never asked to forget 30 of 30 images \(30 listed images\), or their pixels have changed"):
            assert carried_out(other, train, test, before, (first,)).forget_train.tolist() == list(range(60, 90))


def test_the_list_of_files_holds_in_any_folder_and_the_card_names_none(at, desk, capsys, tmp_path, monkeypatch):
    "Also where a later request is made from another working folder. The card is published: of the network it has the name alone."
    line = f"maga forget --model {desk}/net.py:Net --weights net.pth --mean 0.5 --std 0.5 --data photos --forget three --method ssd --out placed"
    assert at(line, capsys)[0] == 0
    monkeypatch.chdir(tmp_path)
    assert at(f"maga forget --model {desk}/placed --data {desk}/photos --forget eight --method ssd --out later", capsys)[0] == 0
    for out, originals in ((desk / "placed", [desk / "net.pth"]), (tmp_path / "later", [desk / "placed/net.pth", desk / "net.pth"])):
        listed = read_artefacts(out)
        assert all(Path(a.path).is_absolute() and Path(a.path).exists() for a in listed), listed
        assert [Path(a.path) for a in listed if a.holds == "weights"] == originals
        assert f"maga purge {out}" in {a.remedy for a in listed}
        card = (out / "model_card.md").read_text()
        assert "# net.py:Net, without" in card and str(desk) not in card and "was not compared with retrains" in card
    assert [report._published(s) for s in ("timm:resnet18", "hf:org/name", f"hf:{desk}/placed", "models.mine:net")] == [
        "timm:resnet18", "hf:org/name", "placed", "models.mine:net"]  # fmt: skip


def test_beside_a_module_of_site_packages_are_other_peoples_packages(tmp_path, monkeypatch):
    "They are no part of the network's code; the files of its own package are."
    for name in ("net.py", "other/__init__.py", "mine/net.py", "mine/other/__init__.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("import other\n")
    assert [*imported_beside(tmp_path / "net.py")] == ["other/__init__.py"]
    monkeypatch.setattr("site.getsitepackages", lambda: [str(tmp_path)])
    assert imported_beside(tmp_path / "net.py") == {} and [*imported_beside(tmp_path / "mine/net.py")] == ["other/__init__.py"]


def test_a_report_names_the_processor(split, original, tmp_path, monkeypatch):
    "Its model where the system says it, else the number of threads."
    file = save_checkpoint(tmp_path / "net.safetensors", original, ModelSpec.of("resnet10", split.train))
    measured = measure(Outputs.of(original, split), split)
    result = forgetting.Forgotten(original, forgetting.Plan(get_method("restart"), get_method("restart").preset("digits"), ""), measured, measured, {}, 1.0, 1.0, 0)
    network = open_network(str(file))
    for name, said in (("A processor", "cpu (A processor)"), ("", "cpu (CPU, ")):
        monkeypatch.setattr(report, "processor_name", lambda device, name=name: name)
        record = report.record(network, split, result, file, "r")
        assert record["device"].startswith(said) and "audit" not in record


def test_a_ledger_holds_entries_alone():
    about = {"source": "m", "weights": "m", "classes": ("a", "b"), "size": 8, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    assert Ledger(**about).entries == ()
    with pytest.raises(MagaError, match=r"entries is .*Entry"):
        Ledger(**about, entries=("three",))
