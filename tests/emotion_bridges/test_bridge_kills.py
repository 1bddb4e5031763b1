"""Both bridges, killed on their way or spread over two processes, train as one undisturbed process does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tones

from music_training import config, files, runs

SCRIPT = Path(__file__).with_name("bridge_training.py")


@pytest.fixture(params=["spectocloud", "midi_generator"])
def settings(request, tmp_path, cloud_settings, midi_settings):
    """Settings of a model on a little data."""
    if request.param == "midi_generator":
        return midi_settings
    return cloud_settings.model_copy(update={"data": cloud_settings.data.model_copy(update=tones.write_manifests(tmp_path))})


def changed(settings, **training):
    """The same with other settings of the training."""
    content = settings.model_dump(mode="json")
    return config.load(type(settings), {**content, "training": {**content["training"], **training}})


def run(settings, name: str, path: Path, processes: int = 1, **environment) -> subprocess.CompletedProcess:
    config.save(settings, path / f"{name}.yaml")
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, str(SCRIPT), str(path / f"{name}.yaml"), name]
    known = {**os.environ, "PYTHONPATH": str(files.REPOSITORY), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, env=known, capture_output=True, text=True)


def history(name: str) -> list[dict]:
    rows = runs.read_metrics(runs.find(name))
    return [{key: value for key, value in row.items() if key != "examples_per_second"} for row in rows]


@pytest.mark.long
def test_killed_and_stopped_early_as_if_undisturbed(settings, tmp_path):
    """The stop comes from early stopping, whose count of bad epochs has to outlive the kills."""
    stopping = {"patience": 2, "min_delta": 100.0, "min_epochs": 3}  # nothing counts as better: it ends after epoch 3
    long = changed(settings, epochs=40, max_steps=None, early_stopping=stopping, validation={"interval": None})
    whole = run(long, "whole", tmp_path)
    assert whole.returncode == 0, whole.stderr[-2000:]
    last = runs.read_metadata(runs.find("whole"))["step"]
    assert runs.read_metadata(runs.find("whole"))["epoch"] == 3 and "has not improved" in whole.stdout
    for step in (2, last // 3 + 1, last - 1):
        assert run(long, "killed", tmp_path, DIE_AT=str(step)).returncode == -9
    ended = run(long, "killed", tmp_path)
    assert ended.returncode == 0 and ended.stdout.splitlines()[-1] == whole.stdout.splitlines()[-1]
    assert history("killed") == history("whole")
    for name in ("best", "last"):
        one, other = (files.digest(runs.find(which) / "ckpt" / name / "model.safetensors") for which in ("whole", "killed"))
        assert one == other


@pytest.mark.long
def test_two_processes_train_as_one(settings, tmp_path):
    two = changed(settings, batch_size=2)
    one = changed(two, gradient_accumulation_steps=2)  # the same batches: those of the MIDI generator are made by length
    for name, given, processes in (("one", one, 1), ("two", two, 2)):
        ended = run(given, name, tmp_path, processes)
        assert ended.returncode == 0, ended.stderr[-2000:]
    pairs = list(zip(history("one"), history("two"), strict=True))
    assert len(pairs) >= 3
    for first, second in pairs:
        assert first == pytest.approx(second, rel=1e-3, abs=1e-5)
