"""A few seconds of synthetic tones as segments with manifests, for trainings that take seconds."""

import json

import numpy
import pytest
import soundfile

from music_training import files


@pytest.fixture
def tones(outputs) -> str:
    """Writes 6 training and 2 validation clips of 2 s (synthetic chords) and returns the data set's name."""
    random = numpy.random.default_rng(0)
    time = numpy.arange(2 * 32000) / 32000
    for split, count in (("train", 6), ("valid", 2)):
        lines = []
        for number in range(count):
            chord = sum(numpy.sin(2 * numpy.pi * pitch * time) for pitch in random.uniform(100, 2000, 4))
            path = outputs / "segments" / "tones" / f"{split}{number}_0000.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, 0.1 * chord + 0.01 * random.standard_normal(len(time)), 32000, subtype="FLOAT")
            sidecar = dict(title="", artist="", key="", bpm=120, genre="tones", moods=[], description="four tones", name="", instrument="")
            files.write_json(path.with_suffix(".json"), {**sidecar, "keywords": []})
            line = dict(path=files.relative(path), duration=2.0, sample_rate=32000, amplitude=None, weight=None, info_path=None)
            lines.append(json.dumps(line) + "\n")
        files.write_text(outputs / "egs" / "tones" / split / "data.jsonl", "".join(lines))
    return "tones"
