"""Loaders on files as users have them, and what they say when the files are not as they should be."""

import hashlib
import io
import json
import os
import pickle
import sys
import time
import warnings
from collections import Counter
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from maga import cache
from maga.cache import Undecoded, cached
from maga.data import ImageSet, MagaError, forget_class, forget_random, forget_subclass
from maga.decoding import Crop, decode
from maga.device import pick_device, seeded_generator
from maga.requests import forget_files
from maga.sources import CIFAR20_NAMES, CIFAR100_COARSE, from_folder, from_hub, from_parquet, from_torchvision, load
from maga.training import FitConfig

from .conftest import raising


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MAGA_CACHE", str(tmp_path / "cache"))


def encoded(seed, size=6, kind="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return buffer.getvalue(), pixels


def write_parquet(path, n, start, labels=None, names=("a", "b", "c")):
    features = {
        "img": {"_type": "Image"},
        "fine_label": {"names": names, "_type": "ClassLabel"},
        "coarse_label": {"names": ["x", "y"], "_type": "ClassLabel"},
    }
    fine = [i % 3 for i in range(n)] if labels is None else labels
    table = pa.table(
        {
            "img": [{"bytes": encoded(start + i, kind="WEBP")[0], "path": None} for i in range(n)],
            "fine_label": pa.array(fine, pa.int64()),
            "coarse_label": pa.array([f // 2 % 2 for f in fine], pa.int64()),
        }
    )
    pq.write_table(table.replace_schema_metadata({b"huggingface": json.dumps({"info": {"features": features}}).encode()}), path)


@pytest.fixture
def parquet(tmp_path):
    folder = tmp_path / "hub"
    folder.mkdir()
    write_parquet(folder / "train-00000-of-00002.parquet", 9, 0)
    write_parquet(folder / "train-00001-of-00002.parquet", 6, 9)
    write_parquet(folder / "test-00000-of-00001.parquet", 6, 100)
    return folder


def test_parquet_keeps_pixels_order_and_names(parquet):
    train, test = from_parquet(parquet)
    for i in range(15):
        assert torch.equal(train.images[i], torch.from_numpy(encoded(i)[1]).permute(2, 0, 1))
    assert train.classes == ("a", "b", "c") and train.coarse_classes == ("x", "y")
    assert train.labels.tolist() == [i % 3 for i in range(9)] + [i % 3 for i in range(6)]
    assert len(test) == 6 and train.coarse().labels.max() == 1


def test_second_load_comes_from_the_cache(parquet, monkeypatch):
    first = from_parquet(parquet)
    monkeypatch.setattr("maga.sources.decoded", lambda *a: pytest.fail("decoded a second time"))
    again = from_parquet(parquet)
    assert [s.digest for s in first] == [s.digest for s in again]


def test_two_data_sets_of_one_store_of_files_keep_their_caches(parquet, tmp_path, monkeypatch):
    "As in a cache of the hub, where the folders of a repository hold links into one folder."
    store = tmp_path / "store"
    parquet.rename(store)
    write_parquet(store / "other.parquet", 3, 50)
    for name, train in (("one", "train-00000-of-00002"), ("two", "other")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train-0.parquet").symlink_to(store / f"{train}.parquet")
        (tmp_path / name / "test-0.parquet").symlink_to(store / "test-00000-of-00001.parquet")
    first = [from_parquet(tmp_path / name)[0].digest for name in ("one", "two")]
    monkeypatch.setattr("maga.sources.decoded", lambda *a: pytest.fail("decoded a second time"))
    assert [load(tmp_path / name, mean=(0, 0, 0), std=(1, 1, 1))[0].digest for name in ("one", "two")] == first


def test_a_damaged_cache_is_made_again(parquet, tmp_path):
    first = from_parquet(parquet)[0].digest
    (file,) = (tmp_path / "cache").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    assert from_parquet(parquet)[0].digest == first


def test_changed_files_are_decoded_again(parquet):
    first = from_parquet(parquet)
    write_parquet(parquet / "test-00000-of-00001.parquet", 6, 200)
    assert from_parquet(parquet)[1].digest != first[1].digest


def test_truncated_parquet(parquet):
    file = parquet / "train-00001-of-00002.parquet"
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(MagaError, match=r"train-00001-of-00002\.parquet cannot be read"):
        from_parquet(parquet)


def test_truncated_image(tmp_path):
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "pets" / part / name).mkdir(parents=True)
            (tmp_path / "pets" / part / name / "1.png").write_bytes(encoded(1)[0])
    good = from_folder(tmp_path / "pets")
    assert good[0].classes == ("cat", "dog") and good[0].labels.tolist() == [0, 1]
    broken = tmp_path / "pets" / "train" / "dog" / "2.png"
    broken.write_bytes(encoded(2)[0][:60])
    with pytest.raises(MagaError, match=r"2\.png cannot be decoded"):
        from_folder(tmp_path / "pets")
    broken.write_bytes(encoded(2, size=9)[0])
    with pytest.raises(MagaError, match="different sizes"):
        from_folder(tmp_path / "pets")
    assert from_folder(tmp_path / "pets", size=8)[0].images.shape == (3, 3, 8, 8)


NAMELESS = '{"info": {"features": {"img": {"_type": "Image"}, "label": {"names": null, "_type": "ClassLabel"}}}}'


@pytest.mark.parametrize("metadata", ["no JSON", "[1]", '{"fingerprint": 1}', '{"info": {}}', '{"info": {"features": null}}', NAMELESS])
def test_metadata_of_another_writer_are_no_description(parquet, metadata):
    for file in parquet.iterdir():
        pq.write_table(pq.read_table(file).replace_schema_metadata({b"huggingface": metadata.encode()}), file)
    with pytest.raises(MagaError, match="none described as an image and a class label: the hub's metadata is missing"):
        from_parquet(parquet)


@pytest.mark.parametrize("labels, odd", [(["a", "b"], "'a'"), ([0.0, 1.7], "0.0"), ([1, 2**63], "9223372036854775808"), ([float("nan")], "nan")])
def test_a_label_is_a_whole_number(parquet, labels, odd):
    file = parquet / "test-00000-of-00001.parquet"
    table, kind = pq.read_table(file).slice(0, len(labels)), pa.uint64() if 2**63 in labels else None
    pq.write_table(table.set_column(1, "fine_label", pa.array(labels, kind)).replace_schema_metadata(table.schema.metadata), file)
    with pytest.raises(MagaError, match=rf"The label {odd} of hub \(fine_label\) is no whole number from 0 to 2"):
        from_parquet(parquet)


def test_labels_out_of_range(parquet):
    write_parquet(parquet / "test-00000-of-00001.parquet", 3, 0, labels=[0, 1, 7])
    with pytest.raises(MagaError, match="Labels run from 0 to 7, but 3 classes have names"):
        from_parquet(parquet)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("file", ["train-00001-of-00002.parquet", "test-00000-of-00001.parquet"])
def test_one_label_has_one_name_in_all_parquet_files(parquet, file, known):
    "Label 0 of files that were encoded one by one is the first class of each: no order of reading them makes that one class."
    if known:
        from_parquet(parquet)
    write_parquet(parquet / file, 6, 100, names=("b", "c", "d"))
    with pytest.raises(MagaError, match=f"{file} of .* other names than train-00000"):
        from_parquet(parquet)


def test_train_and_test_of_one_cache_have_the_same_classes(parquet, digit_sets):
    train, test = map(Undecoded.of, digit_sets)
    files = list(parquet.iterdir())
    with pytest.raises(MagaError, match="differ between train and test"):
        cached(files, lambda: (train, replace(test, classes=train.classes[::-1])))
    assert cached(files, lambda: (train, test))[0].digest == digit_sets[0].digest


@pytest.mark.parametrize("name", ["cifar10", "cifar10_small", "cifar100", "cifar20"])
def test_parquet_files_of_another_data_set_are_not_cifar(parquet, name):
    with pytest.raises(MagaError, match=r"holds 3 classes, not the 100? of cifar100?: "):
        load(name, parquet)


@pytest.mark.parametrize("first", ["real", "link"])
def test_images_are_called_as_the_folder_that_was_asked_for(tmp_path, first, parquet):
    "Whatever name it had when it was decoded: files are named by it."
    image_folder(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "other").symlink_to(parquet)
    for name in (first, "link", "real", "link"):
        train, test = from_folder(tmp_path / name)
        assert train.name == test.name == name
        assert forget_files(train, test, [f"{name}/train/a/0.png"]).forget_train.tolist() == [0]
    assert [from_parquet(tmp_path / name)[0].name for name in ("hub", "other", "hub")] == ["hub", "other", "hub"]


def test_two_processes_that_decode_the_same_images(tmp_path, monkeypatch):
    "The second began when there was no cache: it does not delete what the first has just finished. A third finds other images, and does."
    photos, plain, look = image_folder(tmp_path / "photos"), cache.write_whole, cache._said
    others = [None]

    def second(path, write):
        plain(path, write)
        if others:
            lookups = others[:]
            others.clear()
            with monkeypatch.context() as late, pytest.warns(UserWarning, match="full disk"):
                late.setattr(cache, "_said", lambda p: lookups.pop() if lookups else look(p))
                late.setattr(cache, "write_whole", raising(MagaError("full disk")))
                from_folder(photos)

    monkeypatch.setattr(cache, "write_whole", second)
    first = from_folder(photos)
    assert not others and len(cache.caches_of(photos)) == 1
    cache.purge_cache()
    monkeypatch.setattr(cache, "write_whole", lambda path, write: plain(path, write).unlink())
    with pytest.warns(UserWarning, match="is not kept"):
        assert [s.digest for s in from_folder(photos)] == [s.digest for s in first]


def test_missing_data_folder(tmp_path):
    with pytest.raises(MagaError, match="cifar100 was not found"):
        load("cifar100", tmp_path / "nowhere")
    with pytest.raises(MagaError, match=r"holds no train-\*\.parquet"):
        from_parquet(tmp_path)
    with pytest.raises(MagaError, match="no folder of class folders"):
        from_folder(tmp_path)
    with pytest.raises(MagaError, match="There is no data set 'cifar11'"):
        load("cifar11")


def test_torchvision_folder(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR100

    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    rng = np.random.default_rng(0)
    files = {}
    for part, n in (("train", 200), ("test", 100)):
        entry = {"data": rng.integers(0, 256, (n, 3072), dtype=np.uint8), "fine_labels": [i % 100 for i in range(n)]}
        (folder / part).write_bytes(pickle.dumps(entry))
        files[part] = entry
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"class {i}" for i in range(100)]}))
    md5 = {p: hashlib.md5((folder / p).read_bytes()).hexdigest() for p in ("train", "test", "meta")}
    monkeypatch.setattr(CIFAR100, "train_list", [["train", md5["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", md5["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", {"filename": "meta", "key": "fine_label_names", "md5": md5["meta"]})
    train, _ = load("cifar100", tmp_path)
    assert torch.equal(train.images[7].flatten(), torch.from_numpy(files["train"]["data"][7]))
    assert train.coarse_labels[:100].tolist() == list(CIFAR100_COARSE) and train.coarse_classes == CIFAR20_NAMES
    coarse, _ = load("cifar20", tmp_path)
    assert coarse.name == "cifar20" and len(coarse.classes) == 20
    with pytest.raises(MagaError, match="fetch it: load\\('cifar10'"):
        from_torchvision("cifar10", tmp_path)


def test_hub_without_network_or_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MagaError, match=r"pip install -e '\.\[datasets\]'"):
        load("hub:nobody/nothing")


def hub(**labels):
    "What the hub's library returns: parts of grey images with these labels."
    described = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a", "b"]}}

    class Part(dict):
        features, column_names, cache_files = SimpleNamespace(to_dict=lambda: described, items={}.items), list(described), ()

        def __len__(self):
            return len(self["label"])

        def __getitem__(self, key):
            return {k: self[k][key] for k in described} if isinstance(key, slice) else super().__getitem__(key)

    parts = {name: Part(label=given, image=[encoded(k)[0] for k in range(len(given))]) for name, given in labels.items()}
    return SimpleNamespace(Image=SimpleNamespace, load_dataset=lambda name: parts)


@pytest.mark.parametrize(
    ("parts", "tested"),
    [
        ({"test": [1, 1], "validation": [0]}, [1, 1]),
        ({"validation": [0, 1, 0], "test": [-1, -1]}, [0, 1, 0]),
        ({"test": [0, None], "validation": [-1, 1], "valid": [0]}, [0]),
        ({"validation": [0, 1]}, [0, 1]),
    ],
)
def test_a_hubs_images_are_tested_where_they_have_labels(parts, tested, monkeypatch):
    "Challenges keep the labels of their test images secret, and write -1 for them."
    monkeypatch.setitem(sys.modules, "datasets", hub(train=[0, 1], **parts))
    train, test = from_hub("some/name")
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1], tested)
    monkeypatch.setitem(sys.modules, "datasets", hub(train=[0, 1], **{part: [-1] for part in parts}))
    with pytest.raises(MagaError, match=f"without a label in .*{next(iter(parts))}"):
        from_hub("some/name")


def test_superclass_table():
    assert Counter(CIFAR100_COARSE) == Counter(dict.fromkeys(range(20), 5))


def test_no_such_device():
    with pytest.raises(MagaError, match="is no device"):
        pick_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(MagaError, match="sees 0 CUDA devices"):
            pick_device("cuda")


@pytest.mark.parametrize(
    "make", [lambda a, b: forget_class(a, b, 3), lambda a, b: forget_subclass(a, b, 3), lambda a, b: forget_random(a, b, 17, seed=4)]
)
def test_splits_are_disjoint_and_complete(digit_sets, make):
    split = make(*digit_sets)
    for n, forget, retain in ((len(split.train), split.forget_train, split.retain_train), (len(split.test), split.forget_test, split.retain_test)):
        assert sorted(forget.tolist() + retain.tolist()) == list(range(n))
    images, indices = split.forgotten_rows
    assert images is (split.train if split.task == "random" else split.test) and len(indices) > 0
    assert torch.equal(indices, split.forget_train if split.task == "random" else split.forget_test)
    again = make(*digit_sets)
    assert split.digest == again.digest and "\n" not in str(split) and split.digest in str(split)


def test_overlapping_indices_are_refused(digit_sets):
    from dataclasses import replace

    split = forget_class(*digit_sets, 3)
    with pytest.raises(MagaError, match="distinct"):
        replace(split, forget_train=torch.tensor([1, 1]))
    with pytest.raises(MagaError, match="distinct"):
        replace(split, forget_train=torch.tensor([len(split.train)]))


def test_numbers_of_numpy_are_numbers(digit_sets):
    "The same request, and the same configuration with the same key; True is none of them either."
    a, b = digit_sets
    for make, given in ((forget_class, 3), (forget_subclass, 7), (forget_random, 5), (forget_files, [4, 2])):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert make(a, b, given).digest == make(a, b, np.int64(given) if isinstance(given, int) else list(np.array(given))).digest
    assert forget_class(a, b, list(np.array([1, 2]))).forgotten == (1, 2)
    assert forget_random(a, b, 5, seed=np.uint32(7)).digest == forget_random(a, b, 5, seed=7).digest
    config = FitConfig(epochs=np.int64(2), lr=np.float32(0.5), milestones=tuple(np.array([3, 4])))
    assert json.dumps(asdict(config)) == json.dumps(asdict(FitConfig(epochs=2, lr=0.5, milestones=(3, 4))))
    assert replace(a, size=np.int64(16), mean=list(np.array([0.5] * 3, np.float32))).mean == (0.5, 0.5, 0.5)
    assert torch.equal(torch.rand(3, generator=seeded_generator("x", np.int64(3))), torch.rand(3, generator=seeded_generator("x", 3)))
    for wrong in (np.bool_(True), np.float64(3), np.array([3])):
        with pytest.raises(MagaError, match="expected its name or its number"):
            forget_class(a, b, wrong)
        with pytest.raises(MagaError, match="expected a whole number"):
            FitConfig(epochs=wrong)


def test_images_must_be_bytes():
    with pytest.raises(MagaError, match="must be uint8"):
        ImageSet(torch.zeros(1, 3, 2, 2), torch.zeros(1, dtype=torch.long), ("a",))


def test_real_cifar(real_data, monkeypatch):
    monkeypatch.delenv("MAGA_CACHE")
    load("cifar100", real_data)
    start = time.perf_counter()
    train, test = load("cifar100", real_data)
    assert time.perf_counter() - start < 2, "a cached data set loads in under 2 s"
    assert (len(train), len(test)) == (50_000, 10_000)
    assert torch.equal(torch.tensor(CIFAR100_COARSE)[train.labels], train.coarse_labels)
    assert train.classes.index("rocket") == 69 and train.coarse_classes[19] == "vehicles_2"
    assert (train.images.float().mean((0, 2, 3)) / 255 - torch.tensor(train.mean)).abs().max() < 1e-3
    assert str(forget_class(train, test, "rocket")).startswith(
        "cifar100, class task, forget rocket: train 500 forget + 49,500 retain, test 100 + 9,900"
    )


def test_superclasses_in_use_are_known_after_a_selection():
    "A part of the images has the same labels twice, in two tensors: its superclasses are no fine classes."
    from maga.judges.controls import superclass_judge
    from maga.sources import digits

    train, test = (images.coarse() for images in digits())
    some = train.subset(torch.arange(300))
    assert train.superclasses_in_use and some.superclasses_in_use and not digits()[0].superclasses_in_use
    with pytest.raises(MagaError, match="one of the fine classes"):
        forget_subclass(some, test, 0)
    with pytest.raises(MagaError, match="no superclasses"):
        superclass_judge(some)


def image_folder(path):
    "Two classes of two images, for training and for testing."
    for part in ("train", "test"):
        for n, name in enumerate(("a", "b")):
            (path / part / name).mkdir(parents=True)
            for i in range(2):
                (path / part / name / f"{i}.png").write_bytes(encoded(10 * n + i)[0])
    return path


def test_a_cache_that_cannot_be_cleaned_stops_nothing(tmp_path, monkeypatch):
    "Of somebody else's, on a machine that is shared: a folder that changed is read anew, and what stays is named."
    from maga.cache import purge_cache

    photos = image_folder(tmp_path / "photos")
    assert len(from_folder(photos)[0]) == 4
    (photos / "train/a/0.png").unlink()

    plain = type(photos).unlink

    def refused(path, **more):
        if path.suffix == ".safetensors":
            raise PermissionError(13, "Permission denied", str(path))
        plain(path, **more)

    with monkeypatch.context() as locked:
        locked.setattr(type(photos), "unlink", refused)
        assert len(from_folder(photos)[0]) == 3
        with pytest.raises(MagaError, match=r"Not deleted: \S+safetensors, \S+safetensors; 0 others are gone"):
            purge_cache(photos)
    assert len(purge_cache(photos)) == 2 and purge_cache(photos) == []


def test_half_a_normalisation_is_warned_about(tmp_path):
    photos = f"folder:{image_folder(tmp_path / 'photos')}"
    for half in ({"mean": (0.5,) * 3}, {"std": (0.5,) * 3}):
        with pytest.warns(UserWarning, match="CIFAR's mean and std"):
            load(photos, **half)
    with pytest.raises(MagaError, match=r"mean is 0\.5"):
        load("digits", mean=0.5, std=0.5)


def test_an_image_that_is_far_too_large_is_named(tmp_path, monkeypatch):
    photos = image_folder(tmp_path / "photos")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # these have 36
    with pytest.raises(MagaError, match=r"a/0\.png cannot be decoded .*far too large"):
        from_folder(photos)


def test_an_image_that_is_far_too_large_once_it_is_resized_is_named(tmp_path, monkeypatch):
    "A file of 40 pixels whose shorter side, of 1, would be resized to 8: 2,560 pixels."
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000)
    Image.new("RGB", (1, 40)).save(tmp_path / "strip.png")
    with pytest.raises(MagaError, match=r"strip\.png cannot be decoded .*8 × 320, more than 2,000.*far too large"):
        decode(tmp_path / "strip.png", Crop(8))
    assert decode(tmp_path / "strip.png", Crop(4)).shape == (4, 4, 3)


def test_labels_without_their_pixels_have_no_twins(recwarn):
    "Published rows are drawn with one picture in the place of all."
    images, labels = torch.zeros(1, 3, 4, 4, dtype=torch.uint8).expand(40, -1, -1, -1), torch.arange(40) % 2
    bare = ImageSet(images, labels, ("a", "b"))
    forget_class(bare, bare, "a")
    assert not recwarn.list
    with pytest.warns(UserWarning, match="20 of the retained training images"):
        forget_class(replace(bare, images=images.clone()), bare, "a")


def test_files_that_change_places_are_read_again(tmp_path, monkeypatch):
    "They have one size and one time, as an archive leaves them."
    monkeypatch.setenv("MAGA_CACHE", str(tmp_path / "cache"))
    for part in ("train", "test"):
        for k, name in enumerate(("cat", "dog")):
            place = tmp_path / "photos" / part / name
            place.mkdir(parents=True)
            Image.fromarray(np.full((4, 4, 3), 100 * k, np.uint8)).save(place / "0.bmp")
            os.utime(place / "0.bmp", (1e9, 1e9))
    assert from_folder(tmp_path / "photos")[0].images[:, 0, 0, 0].tolist() == [0, 100]
    cat, dog, aside = (tmp_path / p for p in ("photos/train/cat/0.bmp", "photos/train/dog/0.bmp", "0.bmp"))
    cat.rename(aside), dog.rename(cat), aside.rename(dog)
    assert from_folder(tmp_path / "photos")[0].images[:, 0, 0, 0].tolist() == [100, 0]


def saved(pixels, kind):
    Image.fromarray(pixels).save(held := io.BytesIO(), kind)
    return held.getvalue()


def test_integers_of_32_bits_do_not_turn_black(tmp_path):
    "Up to 65,535 they are read as 16 bits; up to 255 they may be either, and are refused. A file of 16 bits says what it is."
    pixels = np.arange(256, dtype=np.int32).reshape(16, 16)
    for kind in ("TIFF", "PPM", "PNG"):
        assert (decode(saved((pixels * 257).astype(np.uint16), kind))[..., 0] == pixels).all(), kind
        assert decode(saved(pixels.astype(np.uint16), kind)).max() == 1, kind
    assert (decode(saved(pixels * 257, "TIFF"))[..., 0] == pixels).all()
    assert decode(saved(0 * pixels, "TIFF")).max() == 0
    for some in (pixels, pixels.clip(0, 1)):
        with pytest.raises(MagaError, match=r"32 bits .* save it with 8 or with 16 bits"):
            decode(saved(some, "TIFF"))


def test_whatever_pillow_raises_on_a_damaged_image_is_said(monkeypatch):
    "Damaged TIFFs end in a `TypeError` inside of Pillow, others in errors that it documents."
    (content := io.BytesIO()).name = "a.tiff"
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(content)
    for kind in (TypeError, ValueError, SyntaxError, OSError):
        monkeypatch.setattr(Image.Image, "load", raising(kind("damaged")))
        with pytest.raises(MagaError, match="damaged"):
            decode(content.getvalue())
