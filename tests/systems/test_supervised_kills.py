"""Every training of profile tiny is killed once on its way; the supervised pipeline ends with the weights of an undisturbed one."""

import contextlib
import os
import shutil
import signal
import threading
import time

import pytest
from whole_runs import pipeline

from music_training import files, heartbeat, runs

WEIGHTS = {"codec": "best", "musicgen": "best", "cnn": "last"}  # the last: EDM structure on the shared trainer


def run_of(outputs, system: str):
    """The one run folder of a system."""
    found = [path for path in (outputs / "training").glob("run_*") if f"_{system}" in path.name]
    assert len(found) <= 1, found
    return found[0] if found else None


def weights(outputs) -> dict[str, str]:
    return {name: files.digest(run_of(outputs, name) / "ckpt" / which / "model.safetensors") for name, which in WEIGHTS.items()}


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_killed_trainings_end_with_the_same_weights(spine, outputs, number):
    outputs.mkdir()
    for name in ("library", "segments", "egs", "notebooks", ".stages"):
        shutil.copytree(spine.outputs / name, outputs / name)
    killed = {}

    def kill() -> None:
        """Each training in its turn, as soon as it has logged an update; it is held meanwhile, however busy the machine is."""
        for system in WEIGHTS:
            while not (run := run_of(outputs, system)) or not (sign := files.read_json(run / heartbeat.NAME)) or not runs.read_metrics(run):
                time.sleep(0.01)
            with contextlib.suppress(ProcessLookupError):
                os.kill(sign["process"], signal.SIGSTOP)
                if (run / heartbeat.NAME).exists():  # else it is done already
                    os.kill(sign["process"], number)
                    killed[system] = runs.read_metrics(run)[-1]["step"]
                os.kill(sign["process"], signal.SIGCONT)

    threading.Thread(target=kill, daemon=True).start()
    ended = pipeline(outputs, "--to", "06", "--retry", "3")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert set(killed) == set(WEIGHTS), killed
    assert ended.stdout.count("starting again") == len(WEIGHTS)
    assert weights(outputs) == weights(spine.outputs)
