"""Fixtures of the LoRA Demucs tests."""

import numpy
import pytest
import torch
from stem_examples import RATE, small, write_track


@pytest.fixture
def model():
    return small()


@pytest.fixture(scope="session")
def mixture():
    return torch.from_numpy(0.1 * numpy.random.default_rng(0).standard_normal((1, 2, RATE)).astype(numpy.float32))


@pytest.fixture(scope="session")
def stem_folder(tmp_path_factory):
    """train/ with three tracks and valid/ with one."""
    root = tmp_path_factory.mktemp("stems")
    for number in range(3):
        write_track(root / "train" / f"track{number}", number)
    write_track(root / "valid" / "track9", 9)
    return root
