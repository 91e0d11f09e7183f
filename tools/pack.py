"""Files in pieces, for a machine that takes small parcels: data sets and checkpoints on their way to a GPU.

    python tools/pack.py pack parcels data checkpoints
    python tools/pack.py unpack parcels .

`pack` cuts files, or the files of folders, into pieces of at most 60 MiB beside a list with their SHA-256; again, it adds to the list.
A file is unpacked under its own name, those of a folder below the folder's. `unpack` joins the files whose pieces are all there and keeps
the pieces of the others, so that parcels may arrive in several journeys. Only Python is needed.
"""

import argparse
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

PIECE = 60 * 2**20  # bytes, at most
LIST = "packed.json"
PARTS = {"piece": str, "sha256": str, "bytes": int}  # what the list holds of each piece


def files_of(sources: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    "Every file with the name under which it is unpacked: a folder's files below the folder's own name."
    for source in map(Path, map(os.path.abspath, sources)):
        if source.is_dir():
            yield from ((p, p.relative_to(source.parent).as_posix()) for p in sorted(source.rglob("*")) if p.is_file())
        else:
            yield source, source.name


def listed(parcels: Path) -> dict[str, list[dict[str, Any]]]:
    "The list: name -> pieces in their order; `ValueError` where it is none, or names something outside of the folders."
    path = parcels / LIST
    try:
        found = {name: [{k: kind(p[k]) for k, kind in PARTS.items()} for p in pieces] for name, pieces in json.loads(path.read_text()).items()}
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise ValueError(f"{path} is no list that `pack` writes; pack again.") from e
    for name in [*found, *(p["piece"] for pieces in found.values() for p in pieces)]:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"{path} names {name}, which lies outside of the folder; expected names below it.")
    return found


def pack(parcels: Path, sources: Sequence[Path], piece: int = PIECE) -> dict[str, list[dict[str, Any]]]:
    "Write the pieces and add them to the list; `OSError` where a source cannot be read, `ValueError` where a name is there twice."
    packed, added = listed(parcels) if (parcels / LIST).exists() else {}, list(files_of(sources))
    if not added:
        raise ValueError(f"There is no file in {', '.join(map(str, sources))}.")
    names = Counter([*packed, *(name for _, name in added)])
    if twice := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"Two files would be unpacked as {twice[0]}; pack the folders that they lie in, or use another folder of parcels.")
    parcels.mkdir(parents=True, exist_ok=True)
    for path, name in added:
        packed[name] = []
        with path.open("rb") as file:
            while (part := file.read(piece)) or not packed[name]:
                own = f"{hashlib.sha256(name.encode()).hexdigest()[:32]}-{len(packed[name]):03d}"
                (parcels / own).write_bytes(part)
                packed[name].append({"piece": own, "sha256": hashlib.sha256(part).hexdigest(), "bytes": len(part)})
    (parcels / LIST).write_text(json.dumps(packed, indent=1))
    return {name: packed[name] for _, name in added}


def holds(path: Path, pieces: Sequence[dict[str, Any]]) -> bool:
    "Whether a file is these pieces and nothing more."
    with path.open("rb") as file:
        return all(hashlib.sha256(file.read(p["bytes"])).hexdigest() == p["sha256"] for p in pieces) and not file.read(1)


def unpack(parcels: Path, into: Path) -> list[str]:
    """Join the files whose pieces are all there and whole, and delete these pieces; returns the names that still wait for some.

    A file that is there already stays; `ValueError` where it has other content, before anything is written.
    """
    waiting, packed = [], listed(parcels)
    there = {name for name in packed if (into / name).exists()}
    if others := [name for name in there if not holds(into / name, packed[name])]:
        raise ValueError(f"{into / min(others)} is not the file that was packed; move it away, or unpack into another folder.")
    for name, pieces in packed.items():
        target = into / name
        if name in there:
            continue
        parts = [parcels / p["piece"] for p in pieces]
        if not all(part.exists() and holds(part, [p]) for part, p in zip(parts, pieces, strict=True)):
            waiting.append(name)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        half = target.with_name(f".{target.name}.half")
        with half.open("wb") as file:
            for part in parts:
                file.write(part.read_bytes())
        os.replace(half, target)
        for part in parts:
            part.unlink()
    return waiting


def main(arguments: Sequence[str]) -> int:
    "0 when everything is packed, or unpacked; 1 when pieces are missing or damaged, or a file or name cannot be used."
    p = argparse.ArgumentParser(prog="tools/pack.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("pack", "unpack"))
    p.add_argument("parcels", type=Path, help="folder of the pieces")
    p.add_argument("places", type=Path, nargs="+", help="pack: files and folders; unpack: the folder to unpack into")
    a = p.parse_args(arguments)
    if a.what == "unpack" and len(a.places) > 1:
        p.error("unpack takes one folder to unpack into")
    try:
        if a.what == "pack":
            packed = pack(a.parcels, a.places)
            print(f"{len(packed)} files in {sum(map(len, packed.values()))} pieces of at most {PIECE // 2**20} MiB.")
            return 0
        waiting = unpack(a.parcels, a.places[0])
    except (OSError, ValueError) as e:
        print(e, file=sys.stderr)
        return 1
    print(f"Pieces of {', '.join(waiting)} are missing or damaged." if waiting else "All files are there.")
    return int(bool(waiting))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
