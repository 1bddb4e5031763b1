"""A few seconds of synthetic tones as segments with manifests, and a way to train on them in a process of its own."""

import json
import os
import subprocess
import sys

import numpy
import pytest
import soundfile

from music_training import files


@pytest.fixture
def egs(outputs):
    """Writes 6 training and 2 validation clips of 2 s (synthetic chords) and returns the data set's name."""
    random = numpy.random.default_rng(0)
    time = numpy.arange(2 * 32000) / 32000
    for split, count in (("train", 6), ("valid", 2)):
        lines = []
        for number in range(count):
            tones = sum(numpy.sin(2 * numpy.pi * pitch * time) for pitch in random.uniform(100, 2000, 4))
            path = outputs / "segments" / "tones" / f"{split}{number}_0000.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, 0.1 * tones + 0.01 * random.standard_normal(len(time)), 32000, subtype="PCM_16")
            sidecar = dict(title="", artist="", key="", bpm=120, genre="tones", moods=[], description="four tones", name="", instrument="")
            files.write_json(path.with_suffix(".json"), {**sidecar, "keywords": []})
            line = dict(path=files.relative(path), duration=2.0, sample_rate=32000, amplitude=None, weight=None, info_path=None)
            lines.append(json.dumps(line) + "\n")
        files.write_text(outputs / "egs" / "tones" / split / "data.jsonl", "".join(lines))
    return "tones"


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
        output, _ = process.communicate(timeout=300)
        return subprocess.CompletedProcess(command, process.returncode, output)

    return start
