"""Shared fixtures: a private outputs folder for every test, and the real data where it is present."""

import json
import os
import signal
from pathlib import Path

import pytest
from namespaces import pods  # noqa: F401 (a fixture)
from small_disk import small_disk  # noqa: F401 (a fixture)

from music_training import files

# A shell starts its background jobs with SIGINT ignored, and their children inherit that: the tests that send one to
# a child need it to arrive.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def outputs(tmp_path, monkeypatch) -> Path:
    """Everything a test writes lies in its own folder."""
    root = tmp_path / "outputs"
    monkeypatch.setenv("MUSIC_OUTPUTS", str(root))
    return root


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real audio and annotations."""
    folder = Path(os.environ.get("REAL_DATA_DIR") or files.REPOSITORY.parent / "shared" / "real")
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}; set REAL_DATA_DIR")
    return folder.resolve()


@pytest.fixture
def egs(outputs) -> str:
    """Writes 6 training and 2 validation clips of 2 s (synthetic chords) and returns the data set's name."""
    import numpy
    import soundfile

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


@pytest.fixture
def codec(outputs) -> str:
    """A codec with random weights, for language models to listen through; its weights folder."""
    from music_training.musicgen import audiocraft_compat

    audiocraft_compat.install()
    import torch
    from audiocraft.models import builders

    from music_training.musicgen.models import save_weights
    from music_training.musicgen.train import compose

    torch.manual_seed(0)
    config = compose(["model=codec_tiny", "device=cpu"])
    made = builders.get_compression_model(config)
    made(torch.randn(4, 1, 32000))  # starts the codebooks, so that music is not one code over and over
    save_weights(files.outputs_root() / "codec", made.state_dict(), config)
    return "codec"
