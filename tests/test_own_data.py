"""A user's own images: folders with and without a test part, the names of rows, and a request that lists files."""

import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
import unicodedata
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from maga import cache, mapped
from maga.cache import Undecoded, cache_folder, cached, caches_of, purge_cache, unfinished
from maga.data import ImageSet, MagaError, Views, crop_and_flip, forget_class, forget_random, forget_subclass
from maga.experiments.report import paper_folder, paper_numbers
from maga.measures.attacks import quantised
from maga.models import small_network
from maga.own.artefacts import artefacts, read_from
from maga.own.forgetting import Wanted
from maga.own.inputs import inputs_of
from maga.own.ledger import Entry, carried_out, gone_before, in_force
from maga.own.networks import Network
from maga.own.order import order_of
from maga.requests import after, forget_files
from maga.sources import aside_files, digits, from_folder, from_parquet, load, put_aside, unread_files


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MAGA_CACHE", str(tmp_path / "cache"))


def paint(path: Path, seed: int, size: int = 6, width: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, width or size, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    "Two parts of three classes: 6 + 2 images a class."
    place = tmp_path / "mine"
    for c, name in enumerate(("cat", "dog", "rocket")):
        for i in range(6):
            paint(place / "train" / name / f"{i:04d}.png", 100 * c + i)
        for i in range(2):
            paint(place / "test" / name / f"{i:04d}.png", 1000 + 100 * c + i)
    return place


@pytest.fixture
def loose(tmp_path):
    "Three classes without parts: 10, 4 and 2 images."
    place = tmp_path / "loose"
    for c, (name, n) in enumerate((("cat", 10), ("dog", 4), ("rocket", 2))):
        for i in range(n):
            paint(place / name / f"{i}.png", 100 * c + i)
    return place


# Rows have names


def test_rows_are_named_by_their_files(folder):
    for train, test in (from_folder(folder), from_folder(folder)):  # decoded, and from the cache
        assert train.files[:2] == ("train/cat/0000.png", "train/cat/0001.png") and test.files[-1] == "test/rocket/0001.png"
        for images in (train, test):
            for name, picture in zip(images.files, images.images, strict=True):
                assert np.array_equal(np.asarray(Image.open(folder / name)), picture.permute(1, 2, 0).numpy())


def test_names_stay_with_their_rows(folder):
    train, _ = from_folder(folder)
    rows = torch.tensor([7, 2, 11])
    assert train.subset(rows).files == tuple(train.files[i] for i in rows)
    assert train.to("cpu").files == train.resized(9).files == train.files
    assert train.digest == ImageSet(train.images, train.labels, train.classes).digest, "names are no part of the digest"
    with pytest.raises(MagaError, match="files: 1 name of 18 images"):
        ImageSet(train.images, train.labels, train.classes, files=("a.png",))


def test_the_cache_of_a_folder_is_of_its_classes_and_labels(folder, tmp_path):
    "An empty class folder that is made later is a class; an image that is linked from another class folder has its label."
    first = from_folder(folder)[0]
    for part in ("train", "test"):
        (folder / part / "0 empty").mkdir()
    again = from_folder(folder)[0]
    assert again.classes == ("0 empty", *first.classes) and torch.equal(again.labels, first.labels + 1)
    pool = tmp_path / "pool"
    pool.mkdir()
    classes = sorted(p for p in (folder / "train").iterdir() if any(p.iterdir()))
    for path in sorted(p for c in classes for p in c.iterdir()):
        path.rename(pool / f"{path.parent.name}-{path.name}")
    for i, path in enumerate(sorted(pool.iterdir())):
        (classes[0 if i < 2 else 1] / f"{i:02d}.png").symlink_to(path)
    two = from_folder(folder)[0].labels.tolist()
    (classes[0] / "01.png").rename(classes[1] / "01.png")  # the files are the same ones, in the same order
    one = from_folder(folder)[0]
    assert two.count(1) == 2 and one.labels.tolist().count(1) == 1 and (folder / one.files[1]).exists()


def test_a_link_that_leads_nowhere_is_named(folder):
    place = next((folder / "train").iterdir()) / "gone.png"
    place.symlink_to("/nowhere.png")
    with pytest.raises(MagaError, match=r"gone.png cannot be read .*leads nowhere"):
        from_folder(folder)


LOOPS = (("train/cat/self", "."), ("train/cat/up", ".."), ("train/self", "."), ("train/dog/far", "/"), ("train/cat/round", "{elsewhere}"))


@pytest.mark.parametrize("place, target", LOOPS)
def test_a_link_that_leads_back_is_named(folder, tmp_path, place, target):
    "Behind it images would be counted again and again: to the folder it lies in, one above it, or by way of a folder elsewhere."
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/back").symlink_to(folder)
    (folder / place).symlink_to(target.format(elsewhere=tmp_path / "elsewhere"))
    unread, inputs = partial(unread_files, folder, ["cat", "dog", "self"], []), partial(inputs_of, "net.safetensors", "", "features", str(folder))
    for read in (partial(from_folder, folder), unread, inputs):
        with pytest.raises(MagaError, match=rf"{re.escape(str(folder / place))}\S* is a link that leads back to /"):
            read()


def test_a_link_that_leads_elsewhere_is_followed(folder, tmp_path):
    "Into another class, too, and where two links lead to one folder."
    paint(tmp_path / "more/0.png", 77)
    for place in ("cat/a", "dog/b"):
        (folder / "train" / place).symlink_to(tmp_path / "more")
    (folder / "train/cat/dogs").symlink_to("../dog")
    train, _ = from_folder(folder)
    assert len(train) == 18 + 2 + 7 and {"train/cat/a/0.png", "train/dog/b/0.png", "train/cat/dogs/b/0.png"} < {*train.files}


def test_single_images_are_not_looked_for_at_another_size(folder):
    earlier = forget_files(*from_folder(folder), [0])
    large = from_folder(folder, 12)
    with pytest.raises(MagaError, match="have 6×6 pixels, these 12×12"):
        after(forget_files(*large, [3]), earlier)


def test_names_that_are_no_utf8_are_kept(folder):
    strange = folder / "train/cat" / b"caf\xe9.png".decode(errors="surrogateescape")
    paint(strange, 5)
    first, again = from_folder(folder)[0], from_folder(folder)[0]
    assert strange.relative_to(folder).as_posix() in first.files and first.files == again.files


# A folder of classes alone


def test_a_folder_of_classes_is_split_aloud(loose):
    with pytest.warns(UserWarning, match=r"4 of its 16 images, 20% of every class \(seed 0\), are put aside as the test set"):
        train, test = from_folder(loose)
    assert torch.bincount(train.labels).tolist() == [8, 3, 1] and torch.bincount(test.labels).tolist() == [2, 1, 1]
    assert not set(train.files) & set(test.files)
    assert set(train.files) | set(test.files) == {p.relative_to(loose).as_posix() for p in loose.rglob("*.png")}
    with pytest.warns(UserWarning, match="put aside"):
        assert [s.files for s in from_folder(loose)] == [train.files, test.files], "the second time too"


def test_deleting_training_images_moves_none_of_them_to_the_test_set(loose):
    for i in range(10, 60):
        paint(loose / "cat" / f"{i}.png", i)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train, test = from_folder(loose)
        for name in train.files[:20]:
            (loose / name).unlink()
        later = from_folder(loose)
    assert set(later[1].files) <= set(test.files) and set(later[0].files) >= set(train.files[20:])


def test_where_the_test_images_may_lie(folder, loose):
    (folder / "test").rename(folder / "val")
    assert from_folder(folder)[1].files[0] == "val/cat/0000.png"
    shutil.rmtree(folder / "val")
    with pytest.raises(MagaError, match="it has train alone; expected train and test"):
        from_folder(folder)
    shutil.copytree(loose / "dog", loose / "train")  # a class of trains
    with pytest.warns(UserWarning, match="put aside"):
        assert from_folder(loose)[0].classes == ("cat", "dog", "rocket", "train")
    for name in ("cat", "dog", "rocket", "train"):
        for file in sorted((loose / name).iterdir())[1:]:
            file.unlink()
    with pytest.raises(MagaError, match="one image a class"):
        from_folder(loose)


def test_hidden_files_are_left_out_and_endings_count_in_any_case(folder):
    (folder / "train/cat/0000.png").rename(folder / "train/cat/0000.PnG")
    paint(folder / "train/cat/.0009.png", 9)
    paint(folder / "train/cat/.hidden/1.png", 9)
    paint(folder / "train/.trash/1.png", 9)
    (folder / "train/cat/notes.txt").write_text("no image")
    train, _ = load(f"folder:{folder}", mean=(0.5,) * 3, std=(0.2,) * 3)
    assert len(train) == 18 and train.files[0] == "train/cat/0000.PnG" and train.classes == ("cat", "dog", "rocket")


def test_larger_sets_show_a_bar_and_small_ones_none(folder, monkeypatch, capsys):
    from_folder(folder)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("maga.decoding.QUIET", 10)
    from_folder(folder, size=5)
    assert "decoding: 100%" in capsys.readouterr().err


# A request lists files


def test_listed_files_make_a_random_split(folder):
    train, test = from_folder(folder)
    wanted = ["train/rocket/0001.png", f"{folder}/train/cat/0005.png", "mine/train/dog/0000.png", "./train/dog/0003.png", 4, "cat/0002.png"]
    split = forget_files(train, test, wanted)
    assert [train.files[k] for k in split.forget_train] == [
        "train/cat/0002.png",
        "train/cat/0004.png",
        "train/cat/0005.png",
        "train/dog/0000.png",
        "train/dog/0003.png",
        "train/rocket/0001.png",
    ]
    assert split.task == "random" and len(split.forget_test) == 0 and split.forgotten == () and len(split.retain_train) == 12
    same = forget_files(train, test, torch.tensor([13, 5, 6, 9, 4, 2]))
    assert same.digest == split.digest
    assert forget_files(train, test, "train/cat/0005.png").forget_train.tolist() == [5]


@pytest.mark.parametrize(
    "wanted, message",
    [
        ([], "the list is empty"),
        ([" "], "An entry of the list is empty"),
        (["train/rocket/0oo1.png"], r"There is no image 'train/rocket/0oo1.png' \(did you mean train/rocket/0001.png\?\)"),
        (["0003.png"], "0003.png stands for 3 files, train/cat/0003.png, train/dog/0003.png, train/rocket/0003.png; give the longer name"),
        (["rocket/0001.png"], "stands for 2 files, train/rocket/0001.png, test/rocket/0001.png"),
        (["/elsewhere/train/rocket/0001.png"], "There is no image '/elsewhere/train/rocket/0001.png'"),
        (["test/rocket/0001.png"], "is a test image: no model was trained on it"),
        ([18], "There is no row 18: the 18 training images are numbered 0 to 17"),
        ([-1], "of at least 0"),
        ([True], "of at least 0"),
        ([2.0], "An entry of the list is 2.0"),
        ([None], "An entry of the list is None"),
        (None, "expected a list of names"),
        (range(18), "Everything would be forgotten"),
    ],
)
def test_a_list_with_a_mistake_ends_in_one_sentence(folder, wanted, message):
    shutil.rmtree(folder / "test/cat"), paint(folder / "test/cat/0000.png", 7)
    with pytest.raises(MagaError, match=message) as caught:
        forget_files(*from_folder(folder), wanted)
    assert "\n" not in str(caught.value)


def test_a_listed_image_that_was_put_aside_can_be_forgotten(loose, monkeypatch):
    "A folder without test images of its own: whoever trained on all of it has trained on these."
    with pytest.warns(UserWarning, match="put aside as the test set"):
        train, test = from_folder(loose)
    assert test.files[:2] == tuple(sorted(test.files[:2])) and all(f.startswith("cat/") for f in test.files[:2])
    wanted = [test.files[1], train.files[3], f"{loose}/{test.files[2]}"]
    with pytest.warns(UserWarning, match=rf"2 listed images were put aside for testing \({test.files[1]}, {test.files[2]}\), .* has seen it"):
        split = forget_files(train, test, wanted)
    assert [split.train.files[k] for k in split.forget_train] == [train.files[3], test.files[1], test.files[2]]
    assert (len(split.train), split.test.files) == (len(train) + 2, (test.files[0], test.files[3])) and len(split.forget_test) == 0
    for images in (split.train, split.test):
        for name, label, picture in zip(images.files, images.labels.tolist(), images.images, strict=True):
            assert name.startswith(images.classes[label]) and np.array_equal(np.asarray(Image.open(loose / name)), picture.permute(1, 2, 0).numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert forget_files(train, test, wanted[::-1]).digest == split.digest
        monkeypatch.setattr("maga.mapped.room", lambda device="cpu": 1000.0)
        assert forget_files(train, test, wanted).digest == split.digest, "also where memory has no room"
        with pytest.raises(MagaError, match=r"names all images that were put aside as test images \(4\)"):
            forget_files(train, test, test.files)


def test_rows_without_names_are_numbers(digit_sets):
    assert forget_files(*digit_sets, [3, 1]).forget_train.tolist() == [1, 3]
    with pytest.raises(MagaError, match="images of digits have no names; give the numbers of rows, 0 to 1436"):
        forget_files(*digit_sets, ["3.png"])


def test_what_a_list_says_twice_counts_once_and_aloud(folder):
    train, test = from_folder(folder)
    with pytest.warns(UserWarning, match=r"more than once \(train/cat/0001.png\); they count once"):
        split = forget_files(train, test, [1, "train/cat/0001.png", 2])
    assert split.forget_train.tolist() == [1, 2]
    with pytest.warns(UserWarning, match="No training image of cat is left: .* use forget_class"):
        forget_files(train, test, range(6))


def test_twins_are_named_and_forgotten_on_demand(folder):
    twin, other = folder / "train/rocket/zzz.png", folder / "train/dog/0002.png"
    for copy in (twin, other):  # under other labels, as other bytes of the same pixels
        Image.open(folder / "train/cat/0001.png").save(copy, compress_level=0)
    train, test = from_folder(folder)
    with pytest.warns(UserWarning, match=r"the same pixels as listed ones: 2 \(train/dog/0002.png, train/rocket/zzz.png\)"):
        split = forget_files(train, test, ["train/cat/0001.png"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        both = forget_files(train, test, ["train/cat/0001.png"], twins=True)
        forget_files(train, test, [0])
    assert split.forget_train.tolist() == [1] and [train.files[k] for k in both.forget_train] == [
        "train/cat/0001.png",
        "train/dog/0002.png",
        "train/rocket/zzz.png",
    ]


def test_every_kind_of_request_names_twins(folder, digit_sets):
    "Forgotten cats that lie in the folder of dogs as well: they go on teaching, whatever the request is."
    for k in (1, 2):
        Image.open(folder / f"train/cat/000{k}.png").save(folder / f"train/dog/twin{k}.png", compress_level=0)
    train, test = from_folder(folder)
    said = r"those of 2 of the retained training images \(train/dog/twin1.png, train/dog/twin2.png\): .* lists them"
    with pytest.warns(UserWarning, match=said) as told:
        forget_class(train, test, "cat")
    assert told[0].filename == __file__
    parts = [replace(s, coarse_labels=s.labels // 2, coarse_classes=("pet", "machine")) for s in (train, test)]
    with pytest.warns(UserWarning, match=said):
        forget_subclass(*parts, "cat")
    cats = (train.labels == train.classes.index("cat")).nonzero().flatten()
    with pytest.warns(UserWarning, match=said):
        forget_random(train, test, len(cats), among=cats)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        forget_class(train, test, ["cat", "dog"])
        forget_class(*digit_sets, 3)
        forget_random(*digit_sets, 700)


def test_twins_that_were_put_aside_are_named(loose):
    "A fifth of one folder is put aside for testing, and whoever trained on all of the folder learned from a copy there."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train, test = from_folder(loose)
        cat, dog, copy = train.files[0], next(f for f in train.files if f.startswith("dog/")), test.files[0]
        for place in (dog, copy):
            Image.open(loose / cat).save(loose / place, compress_level=0)
        train, test = from_folder(loose)
    with pytest.warns(UserWarning, match=rf"the same pixels as listed ones: 1 \({dog}\) and 1 put aside for testing \({copy}\)"):
        split = forget_files(train, test, [cat])
    assert copy in split.test.files
    network = Network("mine", small_network(torch.Generator()), loose / "mine", lambda m, f: f, small_network)
    said = [(a.path, a.what) for a in artefacts(network, split, str(loose), loose / "out") if "pixels of forgotten ones" in a.what]
    assert said == [(str(loose / f.split("/")[0]), f"1 other images with the pixels of forgotten ones ({f.split('/')[1]})") for f in (copy, dog)]
    both = forget_files(train, test, [cat], twins=True)
    assert {both.train.files[k] for k in both.forget_train} == {cat, dog, copy} and copy not in both.test.files
    with pytest.warns(UserWarning, match=rf"those of 1 of the retained training images \({dog}\) and 1 of those put aside .*\({copy}\)"):
        forget_random(train, test, 1, among=torch.tensor([0]))


def test_train_and_test_at_different_scales_are_refused(folder, digit_sets):
    "Test images of thrice the side: the network would be measured on what it never saw."
    train, test = from_folder(folder)
    large = replace(test, images=test.images.repeat_interleave(3, 2).repeat_interleave(3, 3))
    h, w = train.images.shape[-2:]
    with pytest.raises(MagaError, match=rf"training images are shown at {h}×{w} pixels, the test images shown at {3 * h}×{3 * w}.*--size"):
        forget_class(train, large, "cat")
    assert len(forget_class(train.resized(w), large.resized(w), "cat").forget_train)


def test_files_that_are_not_read_are_counted(folder):
    "A picture with another ending, and a part beside train and test: a forgotten image may be among them."
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train, test = from_folder(folder)
    Image.open(folder / "train/cat/0001.png").save(folder / "train/cat/0001.gif")
    shutil.copytree(folder / "test", folder / "val")
    (folder / "train/cat/.hidden.gif").write_bytes(b"")
    said = r"Files in class folders of .* are not read: 6 in val/, 1 .gif \(train/cat/0001.gif, val/cat/0000.png, val/cat/0001.png …\)"
    with pytest.warns(UserWarning, match=said):
        again, _ = from_folder(folder)
    assert again.digest == train.digest
    assert unread_files(folder, ["cat"], [*train.files, *test.files]) == ["train/cat/0001.gif", "val/cat/0000.png", "val/cat/0001.png"]
    assert unread_files(folder, ["rocket"], [*train.files, *test.files]) == ["val/rocket/0000.png", "val/rocket/0001.png"]


# Larger than memory


BUDGET = 40_000_000  # bytes that the process may take beside what it has after its imports


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    "Four classes of small files that are 123 MB when they are decoded at 160 × 160."
    place, rng = tmp_path_factory.mktemp("large"), np.random.default_rng(0)
    for c, name in enumerate(("cat", "dog", "rocket", "sea")):
        (place / "many" / name).mkdir(parents=True)
        for i in range(400):
            Image.fromarray(rng.integers(60 * c, 60 * c + 60, (6, 6, 3), dtype=np.uint8)).save(place / "many" / name / f"{i:04d}.bmp")
    return place / "many"


def limited(folder, cache, *more):
    command = [sys.executable, str(Path(__file__).with_name("limited.py")), str(folder), str(BUDGET), *more]
    given_back = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed counts no more: 30 MB are enough then, with gaps in a heap 40
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | given_back | {"MAGA_CACHE": str(cache)})


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the limit and its measurement are Linux's")
def test_images_three_times_as_large_as_memory_are_trained_on_and_forgotten(large, tmp_path, monkeypatch):
    done = limited(large, tmp_path / "cache")
    assert done.returncode == 0, done.stderr[-2000:]
    size, by_class, by_list, aside = done.stdout.splitlines()
    assert int(size.split()[0]) >= 3 * BUDGET
    a_r, a_f = (float(re.search(rf"\b{name} ([\d.]+)", by_class)[1]) for name in ("A_r", "A_f"))
    assert a_r > 80 and a_f <= 5, "a class is forgotten"
    assert "A_r" in by_list
    assert list(tmp_path.glob("cache/*")) == list(tmp_path.glob("cache/*.safetensors")), "nothing but the cache is left"
    monkeypatch.setenv("MAGA_CACHE", str(tmp_path / "cache"))
    with pytest.warns(UserWarning, match="put aside"):
        train, test = (s.resized(8) for s in from_folder(large, 160))
    digests = [forget_class(train, test, 0), forget_files(train, test, list(train.files[5:9])), *put_aside(train)]
    assert [s.digest for s in digests] == re.findall(r"\[(\w+)\]", by_class + by_list + aside), "bit for bit what memory would have held"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the limit and its measurement are Linux's")
def test_the_limit_is_one(large, tmp_path):
    done = limited(large, tmp_path / "cache", "blind")
    assert done.returncode != 0 and re.search("allocate|memory|MemoryError", done.stderr), done.stderr[-2000:]


def test_views_of_images_on_the_host_are_the_same_views(digit_sets):
    images, rows = digit_sets[0], torch.tensor([5, 2, 2, 700])
    views = Views(torch.tensor([[1, 0], [0, -1], [2, 2], [-1, 1]]), torch.tensor([True, False, True, False]))

    class Elsewhere(ImageSet):
        "Claims that its labels lie on another device than its images."

        device = property(lambda self: torch.device("cpu", 0))

    apart = Elsewhere(images.images, images.labels, images.classes)
    assert apart.device != apart.images.device
    assert torch.equal(apart.pixels(rows, views), crop_and_flip(images.images, rows, views))
    assert torch.equal(apart.pixels(rows), images.images[rows])


def test_a_subset_without_room_is_a_file_without_a_name(digit_sets, tmp_path, monkeypatch):
    images, rows = digit_sets[0], torch.randperm(1437, generator=torch.Generator().manual_seed(0))[:1000]
    whole = images.subset(rows)
    monkeypatch.setattr("maga.mapped.room", lambda device="cpu": 1000.0)
    (tmp_path / "cache").mkdir()
    part = images.subset(rows)
    assert part.digest == whole.digest and torch.equal(part.images, whole.images)
    assert torch.equal(part.batch(torch.arange(9)), whole.batch(torch.arange(9)))
    assert not list((tmp_path / "cache").iterdir())


def test_a_set_that_fits_nowhere_ends_in_one_sentence(folder, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.warns(UserWarning, match="is not kept"):
        assert len(from_folder(folder)[0]) == 18, "without a cache, in memory"
    monkeypatch.setattr("maga.cache.room", lambda device="cpu": 1000.0)
    with pytest.warns(UserWarning, match="is not kept"), pytest.raises(MagaError, match="name a folder with room for it as MAGA_CACHE"):
        from_folder(folder)


def test_what_stops_the_decoding_leaves_no_file(folder, tmp_path):
    (folder / "test/dog/0000.png").write_bytes(b"no image")
    with pytest.raises(MagaError, match=r"0000\.png cannot be decoded"):
        from_folder(folder)
    assert not list((tmp_path / "cache").iterdir())


# Said before the work


def test_a_file_whose_images_come_slowly_is_not_left_over(folder, monkeypatch):
    "A process that decodes gives its file a new time, however long nothing is written: no other one deletes it."
    monkeypatch.setattr(cache, "_BEAT", 0.02)
    train, test = (Undecoded.of(s.subset(torch.arange(3))) for s in digits())
    found = []

    def slow():
        (file,) = cache_folder().glob(".*")
        os.utime(file, (0, 0))
        time.sleep(0.3)
        found.extend(unfinished())
        yield from train.parts()

    cached([next(folder.rglob("*.png"))], lambda: (replace(train, parts=slow), test))
    assert not found and len(caches_of(folder)) == 1


def test_a_results_folder_that_cannot_be_is_said_before_any_work(tmp_path, monkeypatch, capsys):
    from maga.experiments import __main__ as command

    monkeypatch.setattr(command, "run_missing", lambda *a: pytest.fail("work began"))
    (tmp_path / "file").write_text("")
    for place in ("/proc/maga", str(tmp_path / "file")):
        assert command.main(["table1", "--preset", "smoke", "--results", place]) == 1
        said = capsys.readouterr().err.strip()
        assert said.startswith(f"{place} is no folder to write into") and "\n" not in said


def test_the_benchmarks_folder_is_checked_before_any_work(tmp_path, monkeypatch, capsys):
    from maga import benchmark

    monkeypatch.setattr(benchmark, "run_benchmark", lambda *a: pytest.fail("work began"))
    (tmp_path / "file").write_text("")
    assert benchmark.main(["--out", str(tmp_path / "file")]) == 1
    said = capsys.readouterr().err.strip()
    assert said.endswith("name another one.") and "\n" not in said


@pytest.mark.parametrize("bits", ("int8", 8.0, True, 1, 17, None))
def test_weights_are_rounded_to_whole_bits(bits, original):
    with pytest.raises(MagaError, match="rounded to 2 to 16 bits, not"):
        quantised(original, bits)


def test_the_papers_numbers_are_in_the_package():
    from importlib.resources import files

    import maga

    folder = files("maga.experiments") / "paper"
    assert sorted(f.name for f in folder.iterdir()) == [f"table{k}.csv" for k in range(1, 9)]
    assert paper_folder() == Path(maga.__file__).parent / "experiments" / "paper" and len(paper_numbers(1)) > 0
    root = Path(maga.__file__).parent.parent
    assert not list((root / "nbs").glob("experiments/paper/*.csv")), "one copy"
    assert '"experiments/paper/*.csv"' in (root / "setup.py").read_text()


def test_a_command_that_fills_a_line_can_be_copied(capsys):
    from maga.experiments.__main__ import print_result
    from maga.experiments.settings import Settings

    command = "python -m maga.experiments table1 --preset smoke --backbone resnet10 --target three --methods bad_teacher --results elsewhere"
    table = pd.DataFrame({"method": ["maga", "bad_teacher"], "A_r": [98.0, None], "note": ["", f"not run: {command}"]})
    print_result(SimpleNamespace(table=table, settings=Settings("laptop"), experiment=SimpleNamespace(name="t", title="T"), path="p"))
    assert command in (line.strip() for line in capsys.readouterr().out.splitlines())


def test_rows_that_were_restored_without_outputs_are_named(monkeypatch, tmp_path):
    from maga.experiments import opinions

    monkeypatch.setattr(opinions, "kept_outputs", lambda session, key: None)
    row = SimpleNamespace(key="k", spec=SimpleNamespace(method="maga", target="rocket", unlearning_seed=0))
    with pytest.raises(MagaError, match=r"outputs of a run \(maga, rocket, seed 0\) are not in .*restored without them: run it in another folder"):
        opinions.said_by(SimpleNamespace(store=SimpleNamespace(folder=tmp_path)), row)
    forgotten = torch.arange(6.0).view(2, 3)  # a restored retrain has the logits of what is forgotten
    monkeypatch.setattr(opinions, "kept_outputs", lambda session, key: {"forget_train": forgotten, "forget_test": -forgotten})
    assert [p.tolist() for p in opinions.said_by(None, row)] == [(-forgotten).softmax(1).tolist(), forgotten.softmax(1).tolist()]


# Caches of data behind links


def behind_links(place, kind):
    "The data of a folder under another name: its files are links, or its class folders, or itself."
    other, store = place / "linked", (place / "mine").rename(place / "store")
    if kind == "itself":
        other.symlink_to(store)
    for file in sorted(store.rglob("*.png")) if kind != "itself" else ():
        link = other / file.relative_to(store)
        source, link = (file.parent, link.parent) if kind == "classes" else (file, link)
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(source)
    return other, store


@pytest.mark.parametrize("kind", ["files", "classes", "itself"])
def test_the_cache_of_linked_images_is_found_by_every_name(kind, folder, tmp_path, monkeypatch):
    linked, store = behind_links(tmp_path, kind)
    from_folder(linked)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    for name in (linked, store, linked / "train", store / "train" / "cat"):
        assert len(caches_of(name)) == 1, name
    monkeypatch.chdir(tmp_path)
    assert len(caches_of("linked")) == len(caches_of("store")) == 1 and caches_of("elsewhere") == []
    (tmp_path / "third").symlink_to(linked)  # the folder with the links by a name of its own
    from_folder("third")
    assert purge_cache("third") and not list((tmp_path / "cache").iterdir())


def grouped(place, version, most, now=15):
    "A control group's files, as the kernel writes them."
    used, files = {"active_file": 3, "inactive_file": 2, "anon": 10}, ("memory.max", "memory.current")
    if version == 1:
        used |= {"hierarchical_memory_limit": 16} | {f"total_{kind}": n for kind, n in used.items()}
        files = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        used["active_file"] = 1  # of this group alone, without those below it
    place.mkdir(parents=True, exist_ok=True)
    (place / "memory.stat").write_text("".join(f"{kind} {n}\n" for kind, n in used.items()))
    for file, n in zip(files, (most, now), strict=True):
        (place / file).write_text(f"{n}\n")


@pytest.mark.parametrize(("version", "line", "root"), [(1, "4:memory:{}", "memory"), (2, "0::{}", ""), (2, "0::{}", "unified")])
@pytest.mark.parametrize("tightest", ["", "job", "job/step"])
def test_what_a_container_or_a_batch_job_leaves(version, line, root, tightest, tmp_path):
    "The tightest limit of the process's group and those above it, less what is held; files that are only mapped do not count, and count once."
    for name in ("", "job", "job/step", "other"):
        grouped(tmp_path / root / name, version, 16 if name == tightest else 11 if name == "other" else "max" if version == 2 else 1 << 62)
    (tmp_path / "self").write_text("7:pids,cpu:/elsewhere\n" + line.format("/job/step") + "\n")
    assert mapped._limit_of_groups(tmp_path, tmp_path / "self") == 16 - (15 - 5)
    (tmp_path / "self").write_text(line.format("/of/the/host") + "\n")  # a path that the container does not see: its own group is the root
    assert (mapped._limit_of_groups(tmp_path, tmp_path / "self") == 6) == (tightest == "")
    assert mapped._limit_of_groups(tmp_path / "none", tmp_path / "none") == math.inf


def test_a_cache_read_by_two_names_is_found_by_both(tmp_path):
    "Revisions of a data set link to the same files, as in the hub library's cache."
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["cat"]}}
    (tmp_path / "blobs").mkdir()
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save(buffer, "PNG")
    table = pa.table({"image": [{"bytes": buffer.getvalue(), "path": ""}], "label": [0]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "blobs/abc")
    for name in ("old", "new"):
        (tmp_path / "snapshots" / name).mkdir(parents=True)
        for part in ("train", "test"):
            (tmp_path / "snapshots" / name / f"{part}-0.parquet").symlink_to(tmp_path / "blobs/abc")
        from_parquet(tmp_path / "snapshots" / name)
    (whole,) = caches_of(tmp_path / "blobs")
    made = whole.stat().st_mtime_ns
    for name in ("old", "new"):
        from_parquet(tmp_path / "snapshots" / name)
        assert caches_of(tmp_path / "snapshots" / name) == [whole] and whole.stat().st_mtime_ns == made, "decoded again for no name that it knows"


def test_a_folder_whose_name_ends_as_a_tuning_split_is_itself(folder, tmp_path):
    "`photos_tuning` beside `photos`: the ending means a split only where no folder has it."
    seen = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    shutil.copytree(folder, tmp_path / "mine_tuning")
    shutil.rmtree(tmp_path / "mine_tuning/train/dog"), shutil.rmtree(tmp_path / "mine_tuning/test/dog")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train, test = load(f"folder:{folder}_tuning", **seen)
        assert train.classes == ("cat", "rocket") and (len(train), len(test)) == (12, 4)
        assert read_from(f"{folder}_tuning") == read_from(f"folder:{folder}_tuning") == (f"{folder}_tuning", "")
        shutil.rmtree(tmp_path / "mine_tuning")
        train, aside = load(f"folder:{folder}_tuning", **seen)
    assert (len(train), len(aside)) == (15, 3) and read_from(f"folder:{folder}_tuning") == (str(folder), "")


# One request after the other


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_listed_test_image_is_an_earlier_one_when_the_folder_is_read_again(loose):
    "It was put aside, and its request made a training image of it; in the same folder it is a test image again."
    train, test = from_folder(loose)
    first = forget_files(train, test, [test.files[0], train.files[0]])
    again = forget_class(*from_folder(loose), "rocket")
    second, known = after(again, first), in_force(again, [Entry.of(first, "restart", "2026-01-01")])
    assert second.earlier_train.tolist() == second.earlier_test.tolist() == [0] and 0 not in second.retain_test.tolist()
    assert second.digest == known.digest


def test_what_is_deleted_moves_other_images_by_their_hashes_alone():
    "Training images leave no training image in the test set; an image that was put aside leaves its place to the next one."
    files = [(f"/mine/cat/{i}.png", 0) for i in range(20)]

    def aside(some):
        return {path for (path, _), out in zip(some, aside_files(some, Path("/mine")), strict=True) if out}

    before = aside(files)
    for path, _ in files:
        rest = aside([f for f in files if f[0] != path])
        assert len(rest - before) == (path in before) and len(rest) == len(before) == 4
    assert aside([f for f in files if f[0] in before or f[0] > "/mine/cat/3"]) <= before


@pytest.mark.filterwarnings("ignore:.*the same pixels")
@pytest.mark.parametrize("task", ["files", "class"])
def test_a_twin_is_found_whether_or_not_the_data_are_loaded_again(digit_sets, task):
    "An image with the pixels of one that an earlier request forgot is left out of every later one, as by the ledger."
    train, test = digit_sets
    row, twin = ((train.labels == k).nonzero().flatten()[0].item() for k in (3, 5))
    train = replace(train, images=train.images.index_copy(0, torch.tensor([twin]), train.images[[row]]))
    first = forget_files(train, test, [row]) if task == "files" else forget_class(train, test, "three")
    same, loaded = (forget_class(t, test, "zero") for t in (train, replace(train, images=train.images.clone())))
    known = in_force(same, [Entry.of(first, "restart", "2026-01-01")])
    assert twin in known.earlier_train.tolist() and after(same, first).digest == after(loaded, first).digest == known.digest


@pytest.mark.parametrize("then", ["at once", "one after the other"])
def test_a_superclass_without_images_is_named(digit_sets, then):
    "Its last fine class goes, alone or after the other one; its label stays, which a class request would forbid."
    train, test = digit_sets
    if then == "at once":
        rows = (train.labels != 1).nonzero().flatten()
        with pytest.warns(UserWarning, match="No training image of zero or one is left"):
            forget_subclass(train.subset(rows), test, "zero")
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = (forget_subclass(train, test, name) for name in ("zero", "one"))
    with pytest.warns(UserWarning, match="No training image of zero or one is left") as said:
        after(second, first)
    assert len(said) == 1


def test_oblong_images_are_found_when_one_of_another_size_joins_them(tmp_path):
    "They were hashed as they are stored; all are decoded as squares now, so the files are looked at."
    for part, seed in (("train", 0), ("test", 50)):
        for k, name in enumerate(("cat", "dog")):
            for i in range(4):
                paint(tmp_path / "oblong" / part / name / f"{i}.png", seed + 10 * k + i, 4, 6)
    place = str(tmp_path / "oblong")
    wanted = Wanted(files=("train/cat/2.png", "train/dog/0.png"))
    entry = Entry.of(wanted.split(*from_folder(place)), "restart", "2026-01-01")
    paint(tmp_path / "oblong/train/cat/1a.png", 99, 9)
    again = forget_random(*from_folder(place, 5), 1, among=torch.tensor([0]))
    for data in (place, f"folder:{place}"):
        known = in_force(again, [entry], data)
        assert tuple(known.train.files[k] for k in known.earlier_train) == wanted.files and not len(known.earlier_test)
        assert gone_before(again.train, [entry], data).nonzero().flatten().equal(known.earlier_train)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        audited = carried_out(wanted, again.train, again.test, (), (entry,), place)
    assert audited.forget_train.equal(known.earlier_train) and not len(audited.earlier_train)
    square = Entry.of(forget_files(*from_folder(place, 3), [0]), "restart", "2026-01-01")
    for entries, data, advice in (([entry], "", "resize those that were added"), ([entry, square], place, "decode the images at that size")):
        with pytest.raises(MagaError, match=f"were hashed at .* and these have 5×5, so they are not found and would be shown; {advice}"):
            in_force(again, entries, data)


def test_digits_are_read_from_no_file(tmp_path):
    "A data set in the folder of local ones is none of theirs: its caches stay out of their lists, and out of `maga purge`."
    (tmp_path / "train-0.parquet").touch()
    assert read_from("digits", tmp_path) == ("", "")
    assert read_from("cifar20", tmp_path) == read_from("cifar100", tmp_path) == (str(tmp_path), tmp_path.name)


# Names in another Unicode form


@pytest.mark.parametrize("forms", [("NFD", "NFC"), ("NFC", "NFD")])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_name_is_found_in_either_unicode_form(tmp_path, forms):
    "A folder from a Mac spells ä as two signs, a keyboard as one."
    there, typed = (unicodedata.normalize(form, "Käse") for form in forms)
    for name, first in ((there, 0), ("Brot", 10)):
        for i in range(6):
            paint(tmp_path / "mine" / name / f"{i}.png", first + i)
    train, test = from_folder(tmp_path / "mine")
    by_class, whole = forget_class(train, test, typed), f"{there}/0.png"
    assert by_class.target == there and order_of([there, "Brot"], ["Brot", typed]) == [1, 0]
    by_file = forget_files(train, test, [f"{typed}/0.png"])
    assert [by_file.train.files[k] for k in by_file.forget_train] == [whole]


def test_names_that_differ_in_their_unicode_form_alone_are_two(digit_sets):
    both = tuple(unicodedata.normalize(form, "Käse") for form in ("NFC", "NFD"))
    train, test = (replace(s, classes=(*both, *s.classes[2:])) for s in digit_sets)
    assert [forget_class(train, test, name).forgotten for name in both] == [(0,), (1,)]


def test_parts_may_spell_their_classes_in_two_unicode_forms(tmp_path):
    "The names sort in different orders; labels and files that are not read are those of the class."
    composed, apart = (unicodedata.normalize(form, "Käse") for form in ("NFC", "NFD"))
    for part, name in (("train", composed), ("test", apart)):
        for i in range(2):
            paint(tmp_path / "mine" / part / name / f"{i}.png", i)
            paint(tmp_path / "mine" / part / "Kz" / f"{i}.png", 10 + i)
    (tmp_path / "mine/test" / apart / "more.gif").touch()
    with pytest.warns(UserWarning, match=r"1 \.gif"):
        train, test = from_folder(tmp_path / "mine")
    assert train.classes == test.classes == ("Kz", composed)
    assert all(images.labels[k] == ("Kz" not in f) for images in (train, test) for k, f in enumerate(images.files))
    assert sorted(train.images.flatten(1).tolist()) == sorted(test.images.flatten(1).tolist())
