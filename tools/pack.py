"""Files in pieces, for a machine that takes small parcels: data sets and checkpoints on their way to a GPU.

    python tools/pack.py pack parcels data/cifar100 checkpoints/resnet18-cifar100.safetensors
    python tools/pack.py unpack parcels data

`pack` cuts files, or the files of folders, into pieces of at most 60 MiB beside a list with their SHA-256. `unpack` joins those whose
pieces are all there and keeps the pieces of the others, so that parcels may arrive in several journeys. Only Python is needed.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

PIECE = 60 * 2**20  # bytes, at most
LIST = "packed.json"


def files_of(sources: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    "Every file with the name under which it is unpacked: a folder's files below the folder's own name."
    for source in sources:
        if source.is_dir():
            yield from ((p, p.relative_to(source.parent).as_posix()) for p in sorted(source.rglob("*")) if p.is_file())
        else:
            yield source, source.name


def pack(parcels: Path, sources: Sequence[Path], piece: int = PIECE) -> dict[str, list[dict[str, str]]]:
    "Write the pieces and their list; `OSError` where a source cannot be read."
    parcels.mkdir(parents=True, exist_ok=True)
    packed: dict[str, list[dict[str, str]]] = {}
    for path, name in files_of(sources):
        packed[name] = []
        with path.open("rb") as file:
            while (part := file.read(piece)) or not packed[name]:
                own = f"{hashlib.sha256(name.encode()).hexdigest()[:8]}-{len(packed[name]):03d}"
                (parcels / own).write_bytes(part)
                packed[name].append({"piece": own, "sha256": hashlib.sha256(part).hexdigest()})
    (parcels / LIST).write_text(json.dumps(packed, indent=1))
    return packed


def unpack(parcels: Path, into: Path) -> list[str]:
    "Join the files whose pieces are all there and whole, and delete these pieces; returns the names that still wait for some."
    waiting = []
    for name, pieces in json.loads((parcels / LIST).read_text()).items():
        target = into / name
        if target.exists():
            continue
        parts = [parcels / p["piece"] for p in pieces]
        if not all(part.exists() and hashlib.sha256(part.read_bytes()).hexdigest() == p["sha256"] for part, p in zip(parts, pieces, strict=True)):
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
    "0 when everything is packed, or unpacked; 1 when pieces are missing or damaged, or a file cannot be read."
    p = argparse.ArgumentParser(prog="tools/pack.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("pack", "unpack"))
    p.add_argument("parcels", type=Path, help="folder of the pieces")
    p.add_argument("places", type=Path, nargs="+", help="pack: files and folders; unpack: the folder to unpack into")
    a = p.parse_args(arguments)
    try:
        if a.what == "pack":
            packed = pack(a.parcels, a.places)
            print(f"{len(packed)} files in {sum(map(len, packed.values()))} pieces of at most {PIECE // 2**20} MiB.")
            return 0
        waiting = unpack(a.parcels, a.places[0])
    except (OSError, ValueError) as e:
        print(f"{e}; expected what `pack` reads and writes.", file=sys.stderr)
        return 1
    print(f"Pieces of {', '.join(waiting)} are missing or damaged." if waiting else "All files are there.")
    return int(bool(waiting))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
