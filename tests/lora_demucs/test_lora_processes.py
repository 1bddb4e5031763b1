"""Kills and several processes: an adapter ends with the bits of an undisturbed training."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from stem_examples import STEMS, small

from music_training import config, files, runs
from music_training.lora_demucs import base, train
from music_training.lora_demucs.config import LoraDemucsSettings

pytestmark = pytest.mark.long


@pytest.fixture
def settings(tmp_path, stem_folder):
    base.write(small(), tmp_path / "base.safetensors")
    content = {
        "base": str(tmp_path / "base.safetensors"), "dset": {"wav": str(stem_folder), "sources": list(STEMS)}, "steps_per_epoch": 3,
        "loss": "log_ratio", "valid_seconds": 1, "augment": {"repitch": 0.5},
        "htdemucs": {"lora_rank_adaptation": True, "adaptation": {"interval": 2, "share": 0.3, "start": 0.0, "end": 1.0}},
        "training": {
            "epochs": 2, "batch_size": 2, "mixed_precision": False, "optimizer": {"lr": 3e-3}, "scheduler": {"warmup_steps": 0},
            "ema": 0.9, "checkpoint": {"interval": 2}, "logging": {"interval": 1, "tensorboard": False},
            "performance": {"num_workers": 0, "threads": 1},
        },
    }  # fmt: skip
    config.save(config.load(LoraDemucsSettings, content), tmp_path / "settings.yaml")
    return tmp_path / "settings.yaml"


def trained(run: str, settings: Path, processes: int = 1, die_at: int = 0) -> int:
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", str(random.randint(20000, 40000))]
    command += [str(Path(__file__).with_name("trained.py")), run, str(settings)]
    environment = {**os.environ, "PYTHONPATH": str(files.REPOSITORY), "OMP_NUM_THREADS": "1", "DIE_AT": str(die_at)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert die_at or done.returncode == 0, done.stderr[-3000:]
    return done.returncode


def adapter(run: str) -> dict[str, torch.Tensor]:
    return load_file(runs.find(run) / train.ADAPTER / "adapter.safetensors")


def same(one: str, other: str) -> None:
    first, second = adapter(one), adapter(other)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    rows = [[{**row, "examples_per_second": 0} for row in runs.read_metrics(runs.find(run))] for run in (one, other)]
    assert rows[0] == rows[1] and len(rows[0]) >= 6


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_training_goes_on_to_the_same_bits(settings, processes):
    trained("whole", settings, processes)
    assert trained("killed", settings, processes, die_at=3) != 0
    assert not (runs.find("killed") / train.ADAPTER).exists()
    trained("killed", settings, processes)
    same("whole", "killed")


def test_two_processes_train_as_one_with_twice_the_batch(settings):
    """The same examples an update: the losses differ by the order in which sums are rounded."""
    content = config.read_yaml(settings)
    content["htdemucs"] |= {"lora_rank_adaptation": False, "lora_dropout": 0.0}
    rows = []
    for run, processes, batch in (("one", 1, 4), ("two", 2, 2)):
        content["training"]["batch_size"], content["steps_per_epoch"] = batch, 12 // batch
        config.save(config.load(LoraDemucsSettings, content), settings)
        trained(run, settings, processes)
        rows.append([row["loss"] for row in runs.read_metrics(runs.find(run)) if "loss" in row])
    assert len(rows[0]) == 6 and rows[0] == pytest.approx(rows[1], rel=1e-3)
