"Data and checkpoints in pieces: what is unpacked is what was packed, in one journey or in several, and damage is noticed."

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
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


def test_what_cannot_be_read_is_said(tmp_path, capsys):
    assert main(["pack", str(tmp_path / "parcels"), str(tmp_path / "nothing")]) == 1
    assert main(["unpack", str(tmp_path / "nowhere"), str(tmp_path)]) == 1
    assert "expected what `pack` reads" in capsys.readouterr().err
