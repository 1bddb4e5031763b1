"""AudioCraft trainings that are killed under supervision end with the weights of undisturbed ones."""

import os
import signal
import subprocess
import sys
import time

import pytest

from music_training import files, heartbeat, runs

SCRIPT = files.REPOSITORY / "scripts" / "train_audiocraft.py"


def weights(run: str) -> str:
    return files.digest(runs.folder() / run / "ckpt" / "best" / "model.safetensors")


def supervised(run: str, number: int, *overrides: str) -> None:
    """Train under supervision; the training process gets a signal once, some updates on its way."""
    command = [sys.executable, "-m", "music_training.supervision", "--pause", "0", sys.executable, str(SCRIPT), *overrides, f"run={run}"]
    environment = {**os.environ, "PYTHONPATH": str(files.REPOSITORY), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    folder = runs.folder() / run
    while not folder.is_dir() or len(runs.read_metrics(folder)) < 8:  # into the second epoch
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    os.kill(files.read_json(folder / heartbeat.NAME)["process"], number)
    said, _ = process.communicate(timeout=1800)
    assert process.returncode == 0 and said.count("starting again") == 1, said
    assert ("exit code 75" in said) == (number == signal.SIGTERM)


@pytest.mark.long
@pytest.mark.timeout(3600)  # eight trainings, one after the other; a busy machine takes its time
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_codec_and_language_model(egs, train, codec_overrides, language_model_overrides, number):
    assert train(*codec_overrides, "run=whole").returncode == 0
    supervised("killed", number, *codec_overrides)
    assert weights("killed") == weights("whole")
    speaks = [*language_model_overrides, "compression_model_checkpoint=training/whole/ckpt/best"]
    assert train(*speaks, "run=lm_whole").returncode == 0
    supervised("lm_killed", number, *speaks)
    assert weights("lm_killed") == weights("lm_whole")
