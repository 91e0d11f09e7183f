"Data and checkpoints in pieces: what is unpacked is what was packed, in one journey or in several, and damage is noticed."

import json
import random
import re
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import pack as script
from pack import LIST, main, pack, unpack


def packed(folder: Path) -> dict[str, bytes]:
    "Two files, one of them in a folder, in pieces of at most 100 bytes."
    files = {"data/train": random.Random(0).randbytes(250), "data/empty": b"", "model": random.Random(1).randbytes(100)}
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    pieces = pack(folder / "parcels", [folder / "data", folder / "model"], 100)
    assert {name: len(parts) for name, parts in pieces.items()} == {"data/train": 3, "data/empty": 1, "model": 1}
    assert max(p.stat().st_size for p in (folder / "parcels").iterdir() if p.name != LIST) <= 100
    return files


def test_what_is_unpacked_is_what_was_packed(tmp_path):
    files = packed(tmp_path)
    assert unpack(tmp_path / "parcels", tmp_path / "there") == []
    assert {name: (tmp_path / "there" / name).read_bytes() for name in files} == files
    assert [p.name for p in (tmp_path / "parcels").iterdir()] == [LIST]
    assert unpack(tmp_path / "parcels", tmp_path / "there") == []  # again: everything is there


def test_parcels_arrive_in_several_journeys_and_damage_is_noticed(tmp_path, capsys):
    files = packed(tmp_path)
    parcels, late = tmp_path / "parcels", {}
    for piece in sorted(parcels.iterdir()):
        if piece.name != LIST and piece.read_bytes() in (files["data/train"][200:],):
            late[piece] = piece.read_bytes()
            piece.unlink()
    assert main(["unpack", str(parcels), str(tmp_path / "there")]) == 1
    assert "data/train" in capsys.readouterr().out and not (tmp_path / "there" / "data" / "train").exists()
    (piece, content), = late.items()
    piece.write_bytes(content[:-1])  # cut off on the way
    assert unpack(parcels, tmp_path / "there") == ["data/train"]
    piece.write_bytes(content)
    assert main(["unpack", str(parcels), str(tmp_path / "there")]) == 0
    assert (tmp_path / "there" / "data" / "train").read_bytes() == files["data/train"]


def test_names_that_begin_alike_in_hash_are_two(tmp_path):
    "Of sixty thousand names two may share eight digits, as these do."
    for name in ("018024.png", "026507.png"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).write_text(name)
    pack(tmp_path / "parcels", [tmp_path / "data"])
    assert len({*(tmp_path / "parcels").iterdir()}) == 3


def test_what_cannot_be_read_is_said(tmp_path, capsys):
    assert main(["pack", str(tmp_path / "parcels"), str(tmp_path / "nothing")]) == 1
    assert main(["unpack", str(tmp_path / "nowhere"), str(tmp_path)]) == 1
    assert str(tmp_path / "nowhere" / LIST) in capsys.readouterr().err


@pytest.fixture
def models(tmp_path, monkeypatch):
    "Two files of one name in two folders, and an empty folder; the working folder."
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.bin").write_bytes(name.encode())
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_name_stands_for_one_file(models, capsys):
    assert main(["pack", "parcels", "a/model.bin", "b/model.bin"]) == 1
    assert "Two files would be unpacked as model.bin" in capsys.readouterr().err and not (models / "parcels").exists()
    assert main(["pack", "parcels", "a/model.bin"]) == 0
    assert main(["pack", "parcels", "b/model.bin"]) == 1
    assert main(["unpack", "parcels", "there"]) == 0 and (models / "there/model.bin").read_bytes() == b"a"


def test_a_second_journey_adds_to_the_list(models):
    assert main(["pack", "parcels", "a"]) == main(["pack", "parcels", "b"]) == main(["unpack", "parcels", "there"]) == 0
    assert [(models / "there" / name / "model.bin").read_bytes() for name in "ab"] == [b"a", b"b"]


def test_a_folder_has_its_own_name(models, monkeypatch):
    monkeypatch.chdir(models / "a")
    assert list(pack(models / "parcels", [Path("."), Path("../b")])) == ["a/model.bin", "b/model.bin"]


def test_a_file_of_other_content_is_no_success(models, capsys):
    main(["pack", "parcels", "a", "b"])
    assert main(["unpack", "parcels", "a/.."]) == 0
    for content in (b"c", b"bc", b""):
        (models / "b/model.bin").write_bytes(content)
        assert main(["unpack", "parcels", "."]) == 1 and "b/model.bin is not the file that was packed" in capsys.readouterr().err
        assert (models / "b/model.bin").read_bytes() == content
    with pytest.raises(SystemExit):
        main(["unpack", "parcels", "one", "two"])


def test_nothing_to_pack_is_said(models, capsys):
    assert main(["pack", "parcels", "empty"]) == 1 and "There is no file in empty." in capsys.readouterr().err


PIECES = [{"piece": "0-000", "sha256": "", "bytes": 0}]
OUTSIDE = ({"../evil": PIECES}, {"/evil": PIECES}, {"a": [PIECES[0] | {"piece": "../model"}]})


@pytest.mark.parametrize("listed, says", [*((x, "outside") for x in OUTSIDE), ([], "no list"), ({"a": [{}]}, "no list"), ({"a": 1}, "no list")])
def test_a_list_is_checked(tmp_path, capsys, listed, says):
    (tmp_path / LIST).write_text(json.dumps(listed))
    assert main(["unpack", str(tmp_path), str(tmp_path / "there")]) == 1 and says in capsys.readouterr().err


def test_the_example_of_the_help(models):
    commands = [line.split() for line in re.findall(r"python tools/pack\.py (.*)", script.__doc__)]
    for folder, name in zip(commands[0][2:], "ab", strict=True):
        (models / name).rename(folder)
    before = {folder: (models / folder / "model.bin").read_bytes() for folder in commands[0][2:]}
    assert main(commands[0]) == 0
    for folder in before:
        shutil.rmtree(folder)
    assert main(commands[1]) == 0 and {folder: (models / folder / "model.bin").read_bytes() for folder in before} == before
