"""A tiny annotated library, made of clicks and noise, and a model that was trained on it for a moment."""

import numpy
import pytest
import soundfile

from music_training import config
from music_training.edm_structure import train
from music_training.edm_structure.config import EdmSettings

LABELS = ("intro", "drop", "outro")
SMALL = [
    "backbone=cnn", "label=true", "duration=6", "crops=2", "cnn.channels=8", "cnn.layers=3", "training.epochs=2", "training.batch_size=2",
    "training.performance={num_workers: 0, threads: 1}", "training.logging={interval: 2, tensorboard: false}", "training.optimizer.lr=3e-3",
]  # fmt: skip


def write_track(folder, name: str, bpm: float, artist: str, rate: int = 32000) -> None:
    """Three sections of four bars that differ in loudness and sound, a click on each beat."""
    beat = 60 / bpm
    seconds = 48 * beat
    rng = numpy.random.default_rng(sum(map(ord, name)))
    samples = rng.normal(0, 1, int(seconds * rate)).astype(numpy.float32) * 0.003
    for number in range(48):
        place = round(number * beat * rate)
        samples[place : place + 300] += 0.8 if number % 4 == 0 else 0.5
    for number, gain in enumerate((0.0, 0.3, 0.05)):
        low, high = (round(16 * (number + step) * beat * rate) for step in (0, 1))
        samples[low:high] += gain * numpy.sin(2 * numpy.pi * 60 * numpy.arange(len(samples[low:high])) / rate)
    soundfile.write(folder / f"{name}.wav", samples.clip(-1, 1), rate)
    sections = "\n".join(f"  - {{bar: {1 + 4 * n}, label: {label}, time: {16 * n * beat:.6f}}}" for n, label in enumerate(LABELS))
    audio = f"{{file: {name}.wav, duration: {seconds:.6f}, bpm: {bpm}, downbeat: 0.0}}"
    (folder / f"{name}.yaml").write_text(f"metadata: {{artist: {artist}}}\naudio: {audio}\nstructure:\n{sections}\n")


@pytest.fixture
def annotated(tmp_path):
    """A folder of four annotated tracks by four artists."""
    folder = tmp_path / "annotated"
    folder.mkdir()
    for number, bpm in enumerate((120.0, 126.0, 132.0, 140.0)):
        write_track(folder, f"track{number}", bpm, f"artist{number}")
    return folder


@pytest.fixture
def small(annotated) -> EdmSettings:
    """Settings that train in two seconds."""
    return config.load(EdmSettings, {}, [*SMALL, f"annotations={annotated}"])


@pytest.fixture
def trained(small):
    """A run of the small settings."""
    return train.train(small, run_name="small").run
