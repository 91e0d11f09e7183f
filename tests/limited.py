"""Run by test_own_data in a process of its own: trains on, and forgets from, images that are larger than the memory it may take.

    python tests/limited.py FOLDER BUDGET [blind]

The folder holds class folders of small files that are decoded at 160 × 160 pixels. Everything is imported and done once on digits first;
then the process may allocate BUDGET bytes more (RLIMIT_DATA). That limit counts all memory that is the process's own, also what is only
reserved, and no read-only views of files: what copies the images whole fails, what reads parts of a file does not. `blind` loads only,
with a package that believes that there is always room: it must fail, or the limit is none.
"""

import os
import re
import resource
import sys
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import scipy.linalg
import torch

import maga.mapped
from maga import forget_class, forget_files, get_method, load, measure
from maga.data import ImageSet
from maga.judges.contract import FeatureJudge, draw_exemplars
from maga.judges.transition import estimate_transition
from maga.models import ModelSpec
from maga.sources import put_aside
from maga.training import Examples, FitConfig, fit


def own_bytes() -> int:
    return 1024 * int(re.findall(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text())[0])


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def everything(train: ImageSet, test: ImageSet, listed: list[str | int]) -> list[str]:
    "Train, forget a class with MaGA and a list with fine-tuning, measure; what came out."
    said = []
    config = FitConfig(1, 16, lr=0.02, pad=2)
    model = fit(ModelSpec.of("small_cnn", train).make(generator()), Examples.of(train), config, generator())
    split = forget_class(train, test, 0)
    exemplars = draw_exemplars(train, 3, generator())
    method = get_method("maga")
    settings = method.preset("digits", noise=replace(method.preset("digits").noise, size=2, steps=2), retain_images=60)
    settings = replace(
        settings, transition=estimate_transition(FeatureJudge(model, exemplars), exemplars), fit=replace(settings.fit, epochs=1, batch_size=16, pad=2)
    )
    said.append(f"class: {measure(method.run(model, split, settings, generator()), split)} [{split.digest}]")
    few = forget_files(train, test, listed)
    finetune = get_method("finetune")
    tuned = replace(next(iter(finetune.presets.values())), fit=FitConfig(1, 16, lr=0.01, pad=0))
    said.append(f"files: {measure(finetune.run(model, few, tuned, generator()), few)} [{few.digest}]")
    rest, aside = put_aside(train)
    said.append(f"put aside: {len(rest)} and {len(aside)} [{rest.digest}] [{aside.digest}]")
    return said


if __name__ == "__main__":
    folder, budget = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(1)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])  # a thread of decoding takes memory, and there are more on a machine with more cores
    threading.stack_size(2**19)  # of the threads that decode
    warnings.simplefilter("ignore")
    if "blind" in sys.argv:
        maga.mapped.room = lambda device="cpu": float("inf")
    else:
        everything(*(s.subset(torch.arange(n)) for s, n in zip(load("digits"), (200, 50), strict=True)), [3, 4])
        for cholesky in (scipy.linalg.cholesky, np.linalg.cholesky):  # OpenBLAS keeps a workspace, of 32 MB on some processors, and tries for ever where it gets none
            cholesky(np.eye(256))
    resource.setrlimit(resource.RLIMIT_DATA, (own_bytes() + budget, resource.RLIM_INFINITY))
    train, test = (s.resized(8) for s in load(f"folder:{folder}", size=160, mean=(0.5,) * 3, std=(0.2,) * 3))
    if "blind" not in sys.argv:
        print(f"{train.images.nbytes + test.images.nbytes} bytes of images", *everything(train, test, list(train.files[5:9])), sep="\n")
