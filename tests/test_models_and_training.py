"""Checkpoints on full and broken disks, the provided checkpoint, a user's own network, and steps on a GPU."""

import copy
import resource
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import maga
from maga.adapter import check_copies, check_model, handed_back, prepared, unreached
from maga.averaging import estimate_statistics, even_parts
from maga.data import MagaError
from maga.device import autocast, layout_of
from maga.measures.attacks import RelearnConfig
from maga.measures.connectivity import LineConfig, refresh_statistics
from maga.measures.metrics import accuracy, predict
from maga.measures.residual import ResidualConfig, share_said
from maga.methods.contract import get_method
from maga.models import Classifier, ModelSpec, batch_norms, load_checkpoint, save_checkpoint, small_network
from maga.own.forgetting import planned
from maga.pretrained import fill
from maga.sources import digits, load
from maga.training import PRETRAINING, Examples, FitConfig, fit

from .conftest import generator
from .forked import Forked


def written_twice(path, limit):
    "Write a checkpoint, and again when no file may be larger than the limit in bytes."
    spec = ModelSpec.of("resnet10", digits()[0])
    model = spec.make(generator())
    save_checkpoint(path, model, spec)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        save_checkpoint(path, model, spec, note="second")
    except MagaError as e:
        print(e)
        return 1


def test_full_disk_leaves_the_old_checkpoint(tmp_path):
    "A real limit on file size, in a process of its own: the write fails, the earlier file stays, nothing else is left."
    path = tmp_path / "model.safetensors"
    done = Forked(written_twice, path, 100_000).ended()
    assert done.returncode == 1 and "could not be written" in done.stdout and "nothing was changed" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    load_checkpoint(path)


def test_checkpoint_of_other_classes(tmp_path, original, digit_sets):
    train = digit_sets[0]
    spec = ModelSpec.of("resnet10", train)
    path = save_checkpoint(tmp_path / "m.safetensors", original, spec)
    model, found = load_checkpoint(path)
    assert found == spec and all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), original.state_dict().values(), strict=True))
    with pytest.raises(MagaError, match="The model knows 10 classes"):
        found.view(train.coarse())
    with pytest.raises(MagaError, match="has the classes 10, not 5, as it says itself"):
        load_checkpoint(path, ModelSpec.of("resnet10", train.coarse()))
    with pytest.raises(MagaError, match="cannot be read"):
        load_checkpoint(tmp_path / "nothing.safetensors")


OTHERS = {"arch": "resnet18", "classes": tuple("9876543210"), "size": 9, "mean": (0.5,) * 3, "std": (0.5,) * 3}


@pytest.mark.parametrize("field", OTHERS)
def test_a_description_that_differs_from_the_file_s_own_is_refused(tmp_path, original, digit_sets, field):
    "A file without one takes what it is given; where its weights come from describes no network."
    spec = ModelSpec.of("resnet10", digit_sets[0])
    path = save_checkpoint(tmp_path / "m.safetensors", original, spec)
    assert load_checkpoint(path, replace(spec, pretrained=True, weights="elsewhere.safetensors"))[1] == spec
    other = replace(spec, **{field: OTHERS[field]})
    with pytest.raises(MagaError, match=f"m.safetensors has the {field.replace('classes', 'class 0')} .*, not "):
        load_checkpoint(path, other)
    save_file(load_file(path), plain := tmp_path / "plain.safetensors")
    if field != "arch":
        assert load_checkpoint(plain, other)[1] == other


def test_the_provided_checkpoint(real_data):
    file = real_data.parent / "checkpoints" / "resnet18-cifar100.safetensors"
    if not file.exists():
        pytest.skip("no checkpoint of a ResNet-18 lies beside the data")
    _, test = load("cifar100", real_data)
    model, _ = load_checkpoint(file, ModelSpec.of("resnet18", test))
    some = torch.arange(512)
    assert 70 < accuracy(predict(model, test, some), test.labels[some]) < 81


class Own(nn.Module):
    "A network as a user might have it: no convolution, dropout, a name of its own for everything."

    def __init__(self, k=10):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.GELU(), nn.Dropout(0.1), nn.LayerNorm(64))
        self.classify = nn.Linear(64, k)

    def forward(self, x):
        return self.classify(self.body(x))


def test_a_users_own_module(split, transition):
    torch.manual_seed(0)
    train = split.train
    model = fit(Own(), Examples.of(train), replace(PRETRAINING["digits"], lr=0.05, epochs=8), generator())
    before = accuracy(predict(model, split.test, split.forget_test), split.test.labels[split.forget_test])
    unlearned = get_method("maga")(model, split, get_method("maga").preset("digits", transition=transition), generator())
    after = accuracy(predict(unlearned, split.test, split.forget_test), split.test.labels[split.forget_test])
    assert before > 80 and after < 20


def test_frozen_parameters_stay_frozen(digit_sets):
    model = Own()
    model.body.requires_grad_(False)
    after = fit(model, Examples.of(digit_sets[0]), replace(PRETRAINING["digits"], epochs=1), generator())
    assert torch.equal(after.body[1].weight, model.body[1].weight) and not torch.equal(after.classify.weight, model.classify.weight)
    assert not after.body[1].weight.requires_grad and after.classify.weight.requires_grad


def test_progress_is_told(digit_sets):
    reports = []
    config = FitConfig(2, 64, lr=0.01, pad=0, flip=False)
    fit(Own(), Examples.of(digit_sets[0]), config, generator(), progress=reports.append)
    steps = 2 * -(-len(digit_sets[0]) // 64)
    assert reports[-1].done == reports[-1].total == steps and reports[-1].epoch == 2
    assert [r.done for r in reports] == sorted({r.done for r in reports}) and all(r.images_per_second > 0 for r in reports)


@pytest.mark.parametrize("batch_size", range(1, 8))
def test_parts_of_rows(batch_size):
    "All rows in order, sizes at most one apart, as few parts as batches; none of a single row where there are two and a batch has two."
    for n in range(1, 30):
        parts = even_parts(torch.arange(n), batch_size)
        sizes = {len(p) for p in parts}
        assert torch.equal(torch.cat(parts), torch.arange(n)) and max(sizes) - min(sizes) <= 1
        assert len(parts) == -(-n // batch_size) or (batch_size == 2 and n % 2)
        assert min(sizes) > 1 or n == 1 or batch_size == 1


def test_an_average_needs_no_even_number_of_images(digit_sets):
    "Batches of two and a row over: none of them is a single image, in training and when the statistics are estimated."
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))
    some = Examples.of(digit_sets[0], torch.arange(21))
    after = fit(net, some, FitConfig(1, 2, lr=0.01, pad=0, flip=False, average=0.9), generator())
    assert all(v.isfinite().all() for v in after.state_dict().values())
    refresh_statistics(net, digit_sets[0], torch.arange(21), 2, generator())
    assert not torch.equal(net[2].running_mean, torch.zeros(16))


@pytest.mark.parametrize("training", [True, False])
def test_statistics_leave_every_mode_as_it_was(training, digit_sets):
    "Also that of a batch norm which the user froze by its mode, and of a part in train mode in a network that is not."
    net = small_network(generator()).train(training)
    first, second = batch_norms(net)
    first.train(not training)
    mean = first.running_mean.clone()
    estimate_statistics(net, [digit_sets[0].batch(torch.arange(20))], still=[first])
    assert (net.training, first.training, second.training) == (training, not training, training)
    assert torch.equal(first.running_mean, mean) and not torch.equal(second.running_mean, torch.zeros_like(second.running_mean))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_captured_steps_agree_with_eager_ones(optimizer, monkeypatch):
    train = digits()[0].to("cuda")
    base = ModelSpec.of("resnet10", train).make(generator())
    config = FitConfig(3, 32, optimizer, lr=1e-3, schedule="cosine", pad=1, flip=False, amp=False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # TF32 alone moves the weights by as much as training does
    captured, eager, on_cpu = (
        fit(base, Examples.of(images), replace(config, capture=capture), generator()).cpu()
        for images, capture in ((train, True), (train, False), (train.to("cpu"), False))
    )
    moved = max((a - b).abs().max() for a, b in zip(base.parameters(), eager.parameters(), strict=True))
    for a, b, c in zip(captured.parameters(), eager.parameters(), on_cpu.parameters(), strict=True):
        assert (a - b).abs().max() < 0.02 * moved and (a - c).abs().max() < 0.2 * moved


def test_a_description_has_one_side():
    "Images that are not square are named before a network is trained on another view than its checkpoint will describe."
    square, _ = digits()
    wide = replace(square, images=square.images.repeat(1, 1, 1, 2))
    with pytest.raises(MagaError, match=r"8×16 pixels.*size=8"):
        ModelSpec.of("resnet10", wide)
    assert ModelSpec.of("resnet10", wide.resized(8)).size == 8


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_pretrained_weights_come_under_other_names(prefix, tmp_path):
    "Of torch.compile, of Lightning, of several cards."
    theirs, ours = small_network(torch.Generator().manual_seed(0)), small_network(torch.Generator().manual_seed(1))
    torch.save({prefix + k: v for k, v in theirs.state_dict().items()}, tmp_path / "theirs.pth")
    fill(ours, [*ours.modules()][-1], tmp_path / "theirs.pth", "it", keep_head=False)
    assert all(torch.equal(a, b) for a, b in zip(theirs.state_dict().values(), ours.state_dict().values(), strict=True))


def test_the_first_names_are_loaded_when_used():
    "`import maga` takes no torch; every listed name is there, and a mistyped one gets its nearest."
    program = "import sys, maga; assert 'torch' not in sys.modules; [getattr(maga, name) for name in dir(maga)]; print(*dir(maga))"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert {"load", "forget_class", "fit", "get_method", "measure", "evaluate"} <= set(shown)
    with pytest.raises(AttributeError, match="nearest names are forget_class"):
        maga.forget_clas  # noqa: B018
    with pytest.raises(ImportError, match="forget_clas"):
        from maga import forget_clas  # noqa: F401


class Moody(nn.Module):
    "A network whose answer in training mode is chosen: two heads on one body."

    def __init__(self, training=lambda main, aux: main, answer=lambda main: main):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())
        self.main, self.aux, self.trained, self.answer = nn.Linear(128, 10), nn.Linear(128, 10), training, answer

    def forward(self, x):
        phi = self.body(x)
        return self.trained(self.main(phi), self.aux(phi)) if self.training else self.answer(self.main(phi))


def test_a_network_that_trains_another_head_is_refused(digit_sets):
    "The first of what it returns in training mode must be what it answers with in eval mode."
    train, few = digit_sets[0], FitConfig(1, 64, lr=0.01, pad=0, flip=False)
    with pytest.raises(MagaError, match="In training mode the answer comes from the layer aux, in eval mode from main"):
        fit(Moody(lambda main, aux: [aux, main]), Examples.of(train), few, generator())
    with pytest.raises(MagaError, match=r"In training mode the model gives \[2, 20\]"):
        check_model(Moody(lambda main, aux: torch.cat([main, aux], 1)), train, 10)
    with pytest.raises(MagaError, match="In training mode: The model returns a dict without logits"):
        check_model(Moody(lambda main, aux: {"loss": main.mean()}), train, 10)
    legitimate = [Moody(), Moody(lambda main, aux: (main, aux)), Moody(lambda main, aux: {"logits": main, "aux": aux}), Moody(lambda main, aux: main + aux)]
    for model in (*legitimate, Moody(answer=lambda z: 30 * torch.tanh(z / 30)), Own()):
        before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
        check_model(model, train, 10)
        check_model(model, train.subset(torch.tensor([0])), 10)
        assert torch.equal(torch.get_rng_state(), state) and model.training
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_probabilities_are_no_logits(digit_sets):
    "Log-probabilities are logits of the same network; probabilities are not."
    with pytest.raises(MagaError, match=r"returns probabilities: .* without the softmax at its end"):
        prepared(nn.Sequential(Own(), nn.Softmax(1)), digit_sets[0], 10)
    prepared(nn.Sequential(Own(), nn.LogSoftmax(1)), digit_sets[0], 10)


@pytest.mark.parametrize("head", ["body.1", "aux", "body"])
def test_a_named_layer_that_does_not_make_the_logits_is_refused(head, digit_sets):
    "A cap or a scale may come after it, another layer may not."
    train = digit_sets[0]
    for model in (Own(), Moody(answer=lambda z: torch.tanh(z) / 2)):
        if head in dict(model.named_modules()):
            with pytest.raises(MagaError, match=f"The layer '{head}' does not make the 10 logits: name (classify|main), or leave head out"):
                prepared(Classifier(model, head), train, 10)
    assert prepared(Classifier(model, "main"), train, 10).head == "main"


def test_a_network_of_grey_images_is_told_how_to_wrap_it(digit_sets):
    grey = nn.Sequential(nn.Conv2d(1, 4, 8), nn.Flatten(), nn.Linear(4, 10))
    for model in (grey, nn.Sequential(nn.Flatten(), nn.Linear(64, 10))):
        with pytest.raises(MagaError, match=r"images here have three channels, also grey ones, and it takes one: .*x\.mean"):
            prepared(model, digit_sets[0], 10)

    class Grey(nn.Sequential):
        def forward(self, x):
            return super().forward(x.mean(1, keepdim=True))

    prepared(Grey(*grey), digit_sets[0], 10)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_rows_targets_and_models_may_lie_on_the_host(monkeypatch):
    "Examples take their rows to the images; a pass takes a copy of the model there."
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    few, rows = digits()[0].subset(torch.arange(40)), torch.arange(20)
    there, model, config = few.to("cuda"), small_network(torch.Generator().manual_seed(0)), FitConfig(1, 10, lr=0.01, amp=False)
    given = (Examples.of(there, rows), Examples.of(there, rows.to("cuda")))
    trained = [fit(copy.deepcopy(model), e, config, torch.Generator().manual_seed(0)) for e in given]
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in trained), strict=True))
    logits = predict(model, there, amp=False)
    assert logits.device == there.device and next(model.parameters()).device.type == "cpu"
    torch.testing.assert_close(logits.cpu(), predict(model, few), rtol=1e-3, atol=1e-3)
    assert share_said(model, there, rows.to("cuda"), ResidualConfig(copies=2)).device == there.device


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpus_that_only_imitate_bfloat16_compute_in_single_precision(monkeypatch):
    "Unless bfloat16 is asked for."
    for capability, usual in (((7, 5), False), ((8, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None, c=capability: c)
        for amp, enabled in ((None, usual), (True, True), (False, False)):
            with autocast("cuda", amp):
                assert torch.is_autocast_enabled("cuda") == enabled


class InPlace(nn.Module):
    "Its first layer is frozen, and images are normalised a second time: in place, or in a copy."

    def __init__(self, in_place):
        super().__init__()
        self.net, self.in_place = small_network(generator(1)), in_place
        self.net[0].requires_grad_(False)

    def forward(self, x):
        return self.net(x.sub_(0.5) if self.in_place else x - 0.5)


@pytest.mark.parametrize("name", ["restart", "delete", "undo"])
def test_a_network_may_change_its_images_in_place(name, split):
    "A teacher, or whoever else is asked about the same images, sees them as they are; what comes back is the user's own network."
    method, few = get_method(name), FitConfig(1, 200, lr=0.01, pad=0, flip=False)
    made = [method(InPlace(p), split, method.preset("digits_fresh" if name == "restart" else "digits", fit=few), generator()) for p in (True, False)]
    assert all(torch.equal(a, b) for a, b in zip(*(m.state_dict().values() for m in made), strict=True)) and type(made[0]) is InPlace
    assert prepared(made[1], split.train) is made[1], "a network that leaves its images alone gets no copies"


@pytest.mark.filterwarnings("ignore:.*jit:DeprecationWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_a_torchscript_program_is_refused(digit_sets):
    with pytest.raises(MagaError, match=r"is a TorchScript program.*give the network's Python class with its weights"):
        prepared(torch.jit.trace(small_network(generator()).eval(), torch.zeros(2, 3, 8, 8)), digit_sets[0], 10)


def test_what_cannot_be_copied_is_named(split):
    "Before anything is trained; what a network holds otherwise is no matter."
    model = small_network(generator())
    model[0].notes, model[0].last = {"of": [1, 2]}, model[0].weight * 2  # a tensor that torch does not copy
    check_copies(model)
    model[0].lock = threading.Lock()
    for call in (lambda: get_method("retrain")(model, split, get_method("retrain").preset("digits"), generator()), lambda: planned(model, split)):
        with pytest.raises(MagaError, match=r"cannot be copied \(TypeError: .*lock.*take 0.lock \(a lock\) out of it"):
            call()


class Experts(nn.Module):
    "Every image goes through the part that it chooses."

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([nn.Linear(192, 10), nn.Linear(192, 10)])

    def forward(self, x):
        x, second = x.flatten(1), x.mean((1, 2, 3)) > 0
        z = x.new_zeros(len(x), 10)
        for part, chosen in zip(self.parts, (~second, second), strict=True):
            if chosen.any():
                z[chosen] = part(x[chosen])
        return z


class Viewed(nn.Module):
    "Its `view` takes contiguous images alone."

    def __init__(self, deep=True):
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3, padding=1) if deep else nn.Identity()
        self.head = nn.Linear((4 if deep else 3) * 64, 10)

    def forward(self, x):
        x = self.body(x)
        return self.head(x.view(len(x), -1))


@pytest.mark.parametrize("deep", [True, False])
def test_a_network_may_view_its_activations(deep, split):
    "It is asked, trained and unlearned in contiguous memory; one without `view` in channels-last memory, and comes back as it was."
    few, model = split.train.subset(torch.arange(200)), Viewed(deep)
    assert torch.allclose(predict(model, few), model(few.batch(torch.arange(200))), atol=1e-5)
    made = prepared(model, few)
    assert made is model and layout_of(fit(made, Examples.of(few), FitConfig(1, 32, pad=0, flip=False), generator())) is torch.contiguous_format
    forgotten = get_method("finetune").run(model, split, replace(get_method("finetune").preset("digits"), fit=FitConfig(1, 64)), generator())
    assert predict(forgotten, few).isfinite().all()
    flat = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 10))
    faster = prepared(flat, few)
    assert layout_of(faster) is torch.channels_last and faster is not flat
    assert torch.allclose(predict(faster, few), predict(flat, few), atol=1e-5)
    back = handed_back(faster, flat)
    assert layout_of(back) is layout_of(flat) is torch.contiguous_format and all(p.is_contiguous() for p in back.parameters())


class Needy(nn.Module):
    "It asks for the labels in training mode, or for a batch of eight at least."

    def __init__(self, labels):
        super().__init__()
        self.labels, self.head = labels, nn.Linear(192, 10)

    def forward(self, x, labels=None):
        if self.training and (labels is None if self.labels else len(x) < 8):
            raise TypeError("labels are missing")
        return self.head(x.flatten(1))


def test_what_stops_a_network_in_training_mode_is_said_before_its_training(digit_sets):
    train = digit_sets[0].subset(torch.arange(64))
    with pytest.raises(MagaError, match=r"In training mode the model cannot take a batch \[64, 3, 8, 8\] .*TypeError: labels are missing"):
        fit(Needy(True), Examples.of(train), FitConfig(1, 32, pad=0, flip=False), generator())
    patient, before = Needy(False), torch.get_rng_state()
    fit(patient, Examples.of(train), FitConfig(1, 32, pad=0, flip=False), generator())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        (ResidualConfig, {"radius": "a"}, "radius is 'a'; expected"),
        (LineConfig, {"points": 3.5}, "points is 3.5; expected"),
        (RelearnConfig, {"every": 1.5}, "every is 1.5; expected"),
        (LineConfig, {"point": 5}, "has no field 'point'"),
    ],
)
def test_configurations_of_measures_are_checked(kind, given, said):
    with pytest.raises(MagaError, match=said):
        kind(**given)


def test_layers_that_the_logits_do_not_need_are_named(digit_sets):
    "A second head is one; frozen layers, a tied weight, an ensemble, dropout, and a part that few images need are none."
    train, tied = digit_sets[0], nn.Sequential(nn.Flatten(), nn.Linear(192, 192), nn.ReLU(), nn.Linear(192, 192), nn.Linear(192, 10))
    tied[3].weight = tied[1].weight
    frozen = Moody()
    frozen.aux.requires_grad_(False)
    twice = InPlace(True)
    assert unreached(Moody(answer=lambda z: (z, z.sum())), train) == ["aux"] == unreached(nn.DataParallel(Moody()), train)
    for model in (frozen, tied, twice, Own(), Experts(), ModelSpec.of("vit_tiny", train).make(generator())):
        modes = [m.training for m in model.modules()]
        assert unreached(model, train) == [] and [m.training for m in model.modules()] == modes
        assert all(p.grad is None for p in model.parameters())
