"""Ways to train on a few seconds of synthetic tones, in a process of its own."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from music_training import files

TINY = [
    "datasource.train=egs/tones/train",
    "datasource.valid=egs/tones/valid",
    "dataset.valid.num_samples=4",
    "dataset.segment_duration=1",
    "dataset.batch_size=2",
    "optim.epochs=3",
    "optim.updates_per_epoch=6",
    "logging.every=1",
]


@pytest.fixture(scope="session")
def codec_overrides() -> list[str]:
    """Hydra overrides of a codec that trains in seconds."""
    return ["model=codec_tiny", "adversarial.adversaries=[]", "optim.ema.decay=0.9", "quantize_after=8", *TINY]


@pytest.fixture(scope="session")
def language_model_overrides() -> list[str]:
    """Hydra overrides of a text-conditioned language model that trains in seconds; the codec is still to be named."""
    return ["solver=musicgen", "model=lm_tiny", "conditioner=lut", *TINY]


@pytest.fixture
def train(outputs):
    """Starts training with Hydra overrides as a process; ``wait=False`` returns it running."""

    def start(*overrides: str, wait: bool = True):
        command = [sys.executable, str(files.REPOSITORY / "scripts" / "train_audiocraft.py"), *overrides]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        if not wait:
            return process
        output, _ = process.communicate(timeout=900)
        return subprocess.CompletedProcess(command, process.returncode, output)

    return start


@pytest.fixture(scope="session")
def training_server():
    """The process that ``trainings.py`` describes."""
    environment = {**os.environ, "PYTHONPATH": str(files.REPOSITORY), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(Path(__file__).with_name("trainings.py"))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    yield process
    process.stdin.close()
    process.wait(timeout=60)


@pytest.fixture
def forked(outputs, training_server):
    """Trains with Hydra overrides in a forked process; returns the exit codes of its ``ranks`` and what they wrote."""

    def start(*overrides: str, ranks: int = 1, **job) -> tuple[list[int], str]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        outputs.mkdir(exist_ok=True)
        log = outputs / "forked.log"
        log.unlink(missing_ok=True)
        job = {"argv": list(overrides), "outputs": str(outputs), "log": str(log), "ranks": ranks, "port": port, **job}
        training_server.stdin.write(json.dumps(job) + "\n")
        training_server.stdin.flush()
        return json.loads(training_server.stdout.readline()), log.read_text()

    return start


FINE = ["checkpoint.every_steps=4", "checkpoint.every_minutes=null"]
ADVERSARIAL = ["msstftd.filters=2", "msstftd.n_ffts=[256]", "msstftd.hop_lengths=[64]", "msstftd.win_lengths=[256]"]


@pytest.fixture(scope="session")
def gan_overrides(codec_overrides) -> list[str]:
    """The tiny codec with a small discriminator, a learning-rate schedule and a quantiser that joins later."""
    plain = [override for override in codec_overrides if not override.startswith("adversarial")] + ["msspec.range_end=8"]
    schedule = ["schedule.lr_scheduler=cosine", "schedule.cosine.warmup=3"]
    return [*plain, *FINE, *schedule, *ADVERSARIAL, "adversarial.every=2"]


@pytest.fixture
def speaks(language_model_overrides, codec) -> list[str]:
    plain = [override for override in language_model_overrides if not override.startswith("conditioner")]
    return [*plain, *FINE, f"compression_model_checkpoint={codec}"]


@pytest.fixture
def speakers(outputs, codec) -> str:
    """A random language model on text, as a weights folder whose codec is the weights folder ``codec``; its reference."""
    from music_training.musicgen import audiocraft_compat, models

    audiocraft_compat.install()
    import torch
    from audiocraft.models import builders

    from music_training.musicgen.train import compose

    torch.manual_seed(0)
    speaks = ["solver=musicgen", "model=lm_tiny", "conditioner=lut", f"compression_model_checkpoint={codec}", "dataset.segment_duration=1"]
    config = compose([*speaks, "device=cpu", "datasource.train=egs/tones/train", "datasource.valid=egs/tones/valid"])
    models.save_weights(outputs / "speaker", builders.get_lm_model(config).state_dict(), config)
    return "speaker"
