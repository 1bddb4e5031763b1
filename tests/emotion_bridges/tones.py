"""Tones as a small data set of audio."""

from pathlib import Path

import numpy
import soundfile

from music_training import files
from music_training.emotion_bridges import manifests
from music_training.emotion_bridges.manifests import Entry
from music_training.emotion_bridges.spectocloud import mel


def tone(frequency, seconds=3.0, rate=mel.SAMPLE_RATE, begin=0.0):
    time = numpy.arange(int(seconds * rate)) / rate
    return (0.5 * numpy.sin(2 * numpy.pi * frequency * time) * (time >= begin)).astype(numpy.float32)


def write_manifests(folder: Path) -> dict[str, str]:
    """Manifests of four files of tones, one of them held out."""
    rows = []
    for number, frequency in enumerate((220, 440, 880, 1760)):
        path = folder / "sounds" / f"{number}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, tone(frequency, begin=0.5 * number), mel.SAMPLE_RATE)
        rows.append(Entry([0.8 - 0.5 * number, 0.3, 0.5], audio_path=files.relative(path), id=str(number)))
    manifests.write(folder / "train.jsonl", rows[:3])
    manifests.write(folder / "val.jsonl", rows[3:])
    return {"train_manifest": str(folder / "train.jsonl"), "val_manifest": str(folder / "val.jsonl")}
