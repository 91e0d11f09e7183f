"""What somebody meets who brings a network, a folder of images and a list of what must go."""

import io
import os
import pydoc
import subprocess
import sys
from collections import OrderedDict
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import maga
from maga.adapter import check_network
from maga.benchmark import main as benchmark_main
from maga.cache import cache_folder, purge_cache
from maga.checks import check_value
from maga.data import ImageSet, MagaError, forget_class
from maga.device import pick_device
from maga.experiments.__main__ import main as experiments_main
from maga.judges.__main__ import main as judges_main
from maga.measures.connectivity import LineConfig, line_between
from maga.measures.cost import counted_passes
from maga.measures.metrics import measure, predict
from maga.methods.contract import get_method
from maga.methods.maga_soft import Experts
from maga.methods.restart import RestartConfig, within_budget
from maga.models import Classifier, ModelSpec, batch_norms, last_linear, load_checkpoint, save_checkpoint, small_network
from maga.own.command import main as maga_main
from maga.packaged import weights_at
from maga.pretrained import check_parameters
from maga.progress import Preparation
from maga.requests import after
from maga.sources import from_folder, load
from maga.training import Examples, FitConfig, fit

from .conftest import generator

SHORT = FitConfig(1, 64, lr=0.01, pad=0, flip=False)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MAGA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    "Two classes of two images of 6 × 9 pixels, 16-bit, grey and with alpha among them, and hidden things beside them."
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            place = tmp_path / "pets" / part / name
            place.mkdir(parents=True)
            Image.fromarray(rng.integers(0, 256, (6, 9), dtype=np.uint8)).save(place / "grey.png")
            Image.fromarray(rng.integers(0, 256, (6, 9, 4), dtype=np.uint8)).save(place / "alpha.png")
            (place / "._grey.png").write_bytes(b"not an image")
        (tmp_path / "pets" / part / ".git").mkdir()
        (tmp_path / "pets" / part / ".git" / "x.png").write_bytes(b"not an image")
    return tmp_path / "pets"


def test_every_method_is_there_after_the_imports_of_the_front_page():
    program = "from maga.methods.contract import get_method\nprint([get_method(n).name for n in ('restart', 'maga_soft', 'ssd', 'salun')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['restart', 'maga_soft', 'ssd', 'salun']"


def test_a_folder_is_normalised_as_the_model_was_trained(folder):
    with pytest.warns(UserWarning, match="pass those of your model's training"):
        load(f"folder:{folder}")
    train, test = load(f"folder:{folder}", mean=[0.5, 0.5, 0.5], std=(0.25, 0.25, 0.25))
    assert train.mean == (0.5, 0.5, 0.5) and test.std == (0.25, 0.25, 0.25)
    assert torch.allclose(train.batch(torch.arange(4)), (train.images / 255 - 0.5) / 0.25, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*CIFAR's mean")
def test_a_folder_as_it_lies_on_a_disk(folder, monkeypatch):
    "Home, hidden files and folders, one channel, alpha, and images that are not square."
    monkeypatch.setenv("HOME", str(folder.parent))
    train, _ = load("folder:~/pets")
    assert train.classes == ("cat", "dog") and train.images.shape == (4, 3, 6, 9)
    assert train.batch(torch.arange(4)).shape == (4, 3, 6, 9)
    assert replace(train, size=9).batch(torch.arange(4)).shape == (4, 3, 9, 9)
    with pytest.raises(MagaError, match="load them with size=6"):  # a network of one side would be trained on another view
        ModelSpec.of("small_cnn", train)
    square = load("folder:~/pets", size=8)[0]
    assert square.images.shape == (4, 3, 8, 8) and ModelSpec.of("small_cnn", square).size == 8


def test_the_cache_is_never_stale_and_can_be_purged(folder):
    from_folder(folder)
    (folder / "train" / "cat" / "grey.png").unlink()
    from_folder(folder)
    assert len(list(cache_folder().iterdir())) == 1, "the file with the deleted image is gone"
    assert purge_cache(folder / "elsewhere") == [] and len(purge_cache(folder)) == 1
    assert list(cache_folder().iterdir()) == []


def test_a_second_request_leaves_the_first_in_force(digit_sets, original, transition):
    "Three, then seven: without a memory MaGA shows threes and may call a seven a three."
    method = get_method("maga")
    config = method.preset("digits", transition=transition)
    first = forget_class(*digit_sets, "three")
    once = method(original, first, config, generator())
    second = after(forget_class(*digit_sets, "seven"), first)
    twice = measure(method(once, second, config, generator()), second)
    careless = forget_class(*digit_sets, "seven")
    brought_back = measure(method(once, careless, config, generator()), first).A_f
    assert brought_back > 20 and twice.A_earlier <= 5 and twice.A_f <= 5 and "A_earlier" in str(twice)


@pytest.mark.parametrize("name", ["amnesiac", "salun", "head_distillation", "finetune", "maga", "ssd", "delete"])
def test_nothing_of_an_earlier_request_is_shown(name, digit_sets, transition, monkeypatch):
    first = forget_class(*digit_sets, "three")
    second = after(forget_class(*digit_sets, "seven"), first)
    seen, batch = set(), ImageSet.batch

    def watched(self, indices, views=None):
        if self.images is second.train.images:
            seen.update(self.labels[indices].tolist())
        return batch(self, indices, views)

    monkeypatch.setattr(ImageSet, "batch", watched)
    method = get_method(name)
    config = method.preset("digits")
    if hasattr(config, "transition"):
        config = replace(config, transition=transition, noise=replace(config.noise, size=2, steps=2))
    if hasattr(config, "fit"):
        config = replace(config, fit=replace(config.fit, epochs=1))
    # the check of a model looks at the first two images, whatever they are
    monkeypatch.setattr("maga.methods.contract.prepared", lambda model, images, classes: model)
    monkeypatch.setattr("maga.training.check_model", lambda *a, **k: None)
    method(small_network(generator()), second, config, generator())
    assert seen and 3 not in seen


class Own(nn.Module):
    "Two layers and one after the classifier, with the output in some form."

    def __init__(self, form, gate=False):
        super().__init__()
        self.body, self.out, self.extra = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU()), nn.Linear(16, 10), nn.Linear(16, 3)
        self.form, self.gate = form, gate

    def forward(self, x):
        phi = self.body(x)
        z = self.out(phi) * (torch.sigmoid(self.extra(phi)[:, :1]) if self.gate else 1)
        return {"tensor": z, "tuple": (z, phi), "dictionary": {"logits": z}, "object": type("Output", (), {"logits": z})}[self.form]


@pytest.mark.parametrize("form", ["tensor", "tuple", "dictionary", "object"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_a_network_of_any_output_and_precision(form, dtype, split):
    torch.manual_seed(0)
    own = Own(form).to(dtype)
    kept = {k: v.clone() for k, v in own.state_dict().items()}
    result = get_method("retrain_head")(own, split, get_method("retrain_head").preset("digits", fit=SHORT), generator())
    assert type(result) is Own and all(v.dtype == dtype for v in result.state_dict().values()) and 0 <= measure(result, split).A_r <= 100
    assert not torch.equal(result.out.weight, kept["out.weight"]), "the classifier is made new"
    assert all(torch.equal(v, kept[k]) for k, v in own.state_dict().items()), "the original is not changed"


def test_the_head_is_found_named_or_asked_for(split):
    gated, config = Own("tensor", gate=True), get_method("head_distillation").preset("digits", fit=SHORT)
    with pytest.raises(MagaError, match=r"name its last layer: Classifier\(model, head="):
        get_method("head_distillation")(gated, split, config, generator())
    named = Classifier(gated, "out")
    again = get_method("retrain_head")(named, split, get_method("retrain_head").preset("digits", fit=SHORT), generator())
    assert last_linear(named) is gated.out and isinstance(again, Classifier) and not torch.equal(again.model.out.weight, gated.out.weight)
    convolution = nn.Sequential(nn.Conv2d(3, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert measure(get_method("finetune")(convolution, split, get_method("finetune").preset("digits", fit=SHORT), generator()), split).A_f >= 0
    with pytest.raises(MagaError, match="no linear layer"):
        get_method("head_distillation")(convolution, split, config, generator())


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_frozen_batch_norm_stays(average, split):
    "Also where the statistics of the others are estimated for averaged weights."
    net = small_network(generator())
    first, second = batch_norms(net)
    first.requires_grad_(False)
    fitted = fit(net, Examples.of(split.train, split.retain_train), replace(SHORT, average=average), generator())
    still, moved = batch_norms(fitted)
    assert torch.equal(still.running_mean, first.running_mean) and not torch.equal(moved.running_mean, second.running_mean)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("by", ["mode", "parameters"])
def test_unsir_moves_no_frozen_batch_norm(by, legacy, split):
    "In both of its trainings, and while its noise is made."
    net = small_network(generator()).train()
    first, second = batch_norms(net)
    first.eval() if by == "mode" else first.requires_grad_(False)
    config = get_method("unsir").preset("digits", legacy=legacy, impair=SHORT, repair=SHORT)
    unlearned = get_method("unsir")(net, split, replace(config, noise=replace(config.noise, size=2, steps=2)), generator())
    still, moved = batch_norms(unlearned)
    assert torch.equal(still.running_mean, first.running_mean) and not torch.equal(moved.running_mean, second.running_mean)


@pytest.mark.parametrize("by", ["mode", "parameters"])
def test_the_ends_of_the_line_are_the_two_models(by, split):
    "Also where batch norm is frozen: its statistics are the user's, and are not estimated again."
    net = small_network(generator()).train()
    for m in batch_norms(net):
        m.running_var.fill_(4.0)
        m.eval() if by == "mode" else m.requires_grad_(False)
    other = small_network(generator(1))
    other.load_state_dict({k: v for k, v in other.state_dict().items() if "running" not in k} | {k: v for k, v in net.state_dict().items() if "running" in k})
    line = line_between(net, other, split, LineConfig(points=3, images=len(split.retain_train)))
    for loss, model in zip(line.retain[::2], (net, other), strict=True):
        labels = split.train.labels[split.retain_train]
        assert loss == pytest.approx(float(nn.functional.cross_entropy(predict(model, split.train, split.retain_train), labels)), rel=1e-4)


class Paired(nn.Module):
    "A network that returns a tuple."

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x), 0


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("name", ["finetune", "restart", "retrain"])
def test_an_adapter_freezes_nothing(name, mode, split):
    "A network that needs an adapter is trained as it would be without one, in whichever mode it comes."
    net, config = small_network(generator(7)), get_method(name).preset("digits", fit=SHORT)
    plain = get_method(name)(net.train(mode), split, config, generator())
    adapted = get_method(name)(Paired(net).train(mode), split, config, generator())
    assert not torch.equal(batch_norms(plain)[0].running_mean, batch_norms(net)[0].running_mean)
    assert all(torch.equal(v, plain.state_dict()[k]) for k, v in adapted.net.state_dict().items())


def test_a_network_in_half_precision_comes_back_whole(split):
    "Also a buffer that no state dict holds has the precision of before, so the network still takes images."
    net = ModelSpec.of("resnet6_haar", split.train).make(generator()).half()
    result = get_method("finetune")(net, split, get_method("finetune").preset("digits", fit=SHORT), generator())
    assert {v.dtype for v in (*result.parameters(), *result.buffers()) if v.is_floating_point()} == {torch.float16}
    assert predict(result, split.test, torch.arange(4)).isfinite().all()


def test_a_factory_in_half_precision_is_trained_in_whole(split):
    "As the original is: the retrain is that of the same numbers in float32, in the precision of the original."
    retrain, net = get_method("retrain"), small_network(generator(1)).half()
    makers = (lambda g: small_network(g).half(), lambda g: small_network(g).half().float())
    one, two = (retrain(net, split, retrain.preset("digits", fit=SHORT, make_model=make), generator()).state_dict() for make in makers)
    assert all(torch.equal(v, two[k]) for k, v in one.items()) and one["0.weight"].dtype == torch.float16
    untrained = small_network(generator()).half()
    retrain(net, split, retrain.preset("digits", fit=SHORT, make_model=lambda g: untrained), generator())
    assert untrained[0].weight.dtype == torch.float16, "what the factory keeps is not changed"


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_factory_may_compute_weights_as_older_torch_does(split):
    "Weight norm of `torch.nn.utils`: before its first batch such a network cannot be copied."

    def make(g):
        net = small_network(g)
        net[-1] = nn.utils.weight_norm(net[-1])
        return net

    retrain = get_method("retrain")
    made = retrain(make(generator(1)), split, retrain.preset("digits", fit=SHORT, make_model=make), generator())
    assert predict(made, split.test, torch.arange(4)).isfinite().all()


def test_a_checkpoint_of_a_network_of_ones_own(tmp_path, split):
    own, spec = Own("tuple"), ModelSpec.of("mine", split.train)
    own.out.weight.data = torch.rand(16, 10).T  # not contiguous
    path = save_checkpoint(tmp_path / "own.safetensors", own, spec, seed=3)
    again, described = load_checkpoint(path, model=Own("tuple"))
    assert described == spec and torch.equal(again.out.weight, own.out.weight)
    with pytest.raises(MagaError, match="pass a network of your own"):
        load_checkpoint(path)


def test_noise_reports_its_progress(split, original, transition):
    reports = []
    config = get_method("maga").preset("digits", transition=transition, noise=replace(get_method("maga").preset("digits").noise, size=2, steps=2))
    get_method("maga")(original, split, config, generator(), reports.append)
    made = [r for r in reports if isinstance(r, Preparation)]
    assert {r.what.split()[0] for r in made} == {"positive", "negative"} and made[-1].done == made[-1].total and not isinstance(reports[-1], Preparation)


def test_what_the_package_shows():
    assert {"load", "forget_class", "get_method", "measure", "after"} <= set(dir(maga)) and "Any" not in dir(maga)
    assert "how many images" in pydoc.plain(pydoc.render_doc(maga.forget_random))
    assert "the largest in the schedule" in pydoc.plain(pydoc.render_doc(maga.FitConfig))
    shown = pydoc.plain(pydoc.render_doc(get_method("restart")))
    assert "shrunk and perturbed" in shown and "RestartConfig" in shown and "12.5%" in shown
    with redirect_stdout(io.StringIO()) as out:
        help(maga.load)
    assert "mean:" in out.getvalue()


@pytest.mark.parametrize("experts", [None, Experts(n_views=2, pad=1, bank=200)])
def test_a_budget_is_a_share_of_ones_own_retrain(experts, split):
    training = FitConfig(12, 32, lr=0.1, pad=1, flip=False)
    asked = RestartConfig(FitConfig(5, 256, lr=0.1, pad=1, flip=False, average=0.9), 48_800, perturb=0, experts=experts)
    config = within_budget(asked, 0.125, split, training)
    with counted_passes() as passes:
        get_method("restart")(small_network(generator()), split, config, generator())
    cost = float(passes) / (training.epochs * len(split.retain_train))
    assert 0.11 < cost <= 0.1255
    with pytest.raises(MagaError, match=r"costs \d+\.\d % of a retrain"):
        within_budget(asked, 0.001, split, training)


def test_a_type_checker_sees_a_misspelt_setting(tmp_path):
    program = tmp_path / "mine.py"
    program.write_text('from maga.methods.maga import maga\n\nconfig = maga.preset("digits")\nconfig.tua = 3\n')
    line = [sys.executable, "-m", "mypy", str(program)]
    done = subprocess.run(line, capture_output=True, text=True, cwd=Path(__file__).parent.parent, env=os.environ | {"MYPYPATH": "."})
    assert '"MaGAConfig" has no attribute "tua"' in done.stdout


def test_logits_of_a_model_in_half_precision(split):
    net = small_network(generator())
    assert (predict(net.half(), split.test, torch.arange(8)) - predict(net.float(), split.test, torch.arange(8))).abs().max() < 0.05


def test_batch_norm_with_a_single_image_says_what_to_do(digit_sets):
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.BatchNorm1d(16), nn.Linear(16, 10))
    one = Examples.of(digit_sets[0], torch.arange(1))
    with pytest.raises(MagaError, match=r"single image.*freeze_batch_norm"):
        fit(network, one, SHORT, generator())
    fit(network, one, replace(SHORT, freeze_batch_norm=True), generator())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_compiled_network_is_handed_back_plain(dtype, split):
    "Hooks do not run in it once it is compiled, so nothing would show which layer makes the logits."
    torch.manual_seed(0)
    own, config = Own("tensor").to(dtype), get_method("head_distillation").preset("digits", fit=SHORT)
    compiled = torch.compile(own, backend="eager")
    with torch.no_grad():
        compiled(split.train.batch(torch.arange(2)).to(dtype))
    one, two = (get_method("head_distillation")(model, split, config, generator()) for model in (compiled, own))
    assert type(one) is Own and all(v.dtype == dtype and torch.equal(v, two.state_dict()[k]) for k, v in one.state_dict().items())


@pytest.mark.parametrize("wrap", [partial(torch.compile, backend="eager"), nn.DataParallel], ids=["compile", "DataParallel"])
def test_parts_may_be_wrapped(wrap, split):
    "As where the normalisation stands before a compiled network; the same part may stand in two places."
    torch.manual_seed(0)
    body, head = nn.Linear(192, 192), nn.Sequential(nn.ReLU(), nn.Linear(192, 10))
    plain, part = nn.Sequential(nn.Flatten(), body, body, head), wrap(body)
    own = nn.Sequential(nn.Flatten(), part, part, wrap(nn.DataParallel(head)))
    with torch.no_grad():
        own(split.train.batch(torch.arange(2)))
    config = get_method("head_distillation").preset("digits", fit=SHORT)
    one, two = (get_method("head_distillation")(model, split, config, generator()) for model in (own, plain))
    assert list(one.state_dict()) == list(two.state_dict()) and one[1] is one[2]
    assert all(torch.equal(v, two.state_dict()[k]) for k, v in one.state_dict().items())
    assert isinstance(own[1], type(part)) and own[1] is own[2], "what came in is not changed"


def test_a_sentence_counts_and_has_the_right_article(digit_sets, monkeypatch):
    weight = torch.zeros(2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert repr(digit_sets[0].subset(torch.tensor([0]))).startswith("digits: 1 image of 8×8")
    for call, said in (
        (lambda: pick_device("cuda:1"), "sees 1 CUDA device;"),
        (lambda: check_parameters("net.pth", "it", {"a": weight}, {"a": weight, "b": weight}), "1 parameter differs, first b"),
        (lambda: check_network(OrderedDict(weight=torch.zeros(99))), "The model is an OrderedDict"),
        (lambda: check_value("images", 3, ImageSet), "expected an ImageSet"),
        (lambda: weights_at("resnet"), "There are no weights named 'resnet'"),
    ):
        with pytest.raises(MagaError, match=said):
            call()


@pytest.mark.parametrize("arguments", ("reproduce --list", "judge --data digits --judge toy-vlm --dry-run", "methods", "bench --help"))
def test_a_terminal_that_lacks_a_sign_ends_no_command(arguments, monkeypatch):
    "Whoever calls it: each module's own command, as `python -m` does, and `maga`."
    name, *rest = arguments.split()
    poor = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", poor)
    main = {"reproduce": experiments_main, "judge": judges_main, "bench": benchmark_main}.get(name)
    monkeypatch.setattr(sys, "argv", ["maga", name, *rest])
    with pytest.raises(SystemExit) as left:
        sys.exit(main(rest) if main else maga_main())
    print("τ ± →", flush=True)
    assert left.value.code in (0, None) and poor.buffer.getvalue().endswith(b"? ? ?\n")
