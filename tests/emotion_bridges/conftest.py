"""Small data: scores composed on the spot, settings of models that train in a second."""

import pytest

from music_training import config
from music_training.emotion_bridges.config import MidiSettings, SpectocloudSettings

STUDIO = {"artists": 4, "tracks_per_artist": 1, "seconds": [20, 24]}
TRAINING = {
    "epochs": 100, "max_steps": 6, "batch_size": 4, "optimizer": {"lr": 3e-3}, "early_stopping": None, "performance": {"num_workers": 0},
    "logging": {"interval": 2, "tensorboard": False}, "validation": {"interval": 1000},
}  # fmt: skip


@pytest.fixture
def midi_settings() -> MidiSettings:
    return config.load(
        MidiSettings,
        {
            "bars": 1, "hop": 4, "context": 120, "drums": False, "merge": True, "velocity_step": 16, "width": 32, "heads": 2, "layers": 2,
            "dropout": 0.0, "data": {"dataset": "none", "val_split": 0.3, "studio": STUDIO}, "training": TRAINING,
        },
    )  # fmt: skip


@pytest.fixture
def cloud_settings() -> SpectocloudSettings:
    return config.load(SpectocloudSettings, {"seconds": 2.0, "points": 120, "width": 16, "layers": 1, "training": TRAINING})
