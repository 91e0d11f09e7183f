"""Shared by all tests: two small networks on the digits, and the folder with real CIFAR where there is one."""

import os
from pathlib import Path

import pytest
import torch

from maga.data import forget_class
from maga.judges.contract import FeatureJudge, draw_exemplars
from maga.judges.transition import estimate_transition
from maga.methods.workbench import digits_bench
from maga.sources import digits

torch.set_num_threads(1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def raising(error):
    "A function that raises the error, whatever it is given."

    def call(*given, **named):
        raise error

    return call


@pytest.fixture(scope="session")
def digit_sets():
    return digits()


@pytest.fixture(scope="session")
def split(digit_sets):
    return forget_class(*digit_sets, "three")


@pytest.fixture(scope="session")
def original():
    return digits_bench().original


@pytest.fixture(scope="session")
def transition(digit_sets, original):
    exemplars = draw_exemplars(digit_sets[0], 5, generator())
    return estimate_transition(FeatureJudge(original, exemplars), exemplars)


@pytest.fixture(scope="session")
def real_data():
    folder = Path(os.environ.get("MAGA_DATA", "data"))
    if not any((folder / "cifar100").glob("*.parquet")):
        pytest.skip(f"{folder}/cifar100 holds no parquet files: set MAGA_DATA to a folder that does")
    return folder
