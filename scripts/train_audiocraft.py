"""Trains a codec or MusicGen with AudioCraft; the arguments are those of ``music_training.musicgen.train``.

With $CODEC_CHECK_EVERY=N (and $CODEC_CHECK_SAMPLES) a codec is checked after every N epochs.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from music_training.errors import run_command
from music_training.musicgen.train import main


def arguments() -> list[str]:
    """What was given, and the check of a codec where it is asked for."""
    if os.environ.get("CODEC_CHECK_EVERY", "0") == "0" or "solver=musicgen" in sys.argv:
        return sys.argv[1:]
    return [*sys.argv[1:], "each_epoch=training_checks.codec_quality_check:after_epoch"]


if __name__ == "__main__":
    run_command(lambda: main(arguments()))
