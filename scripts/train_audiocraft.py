"""Trains a codec or MusicGen with AudioCraft; the arguments are those of ``music_training.musicgen.train``.

With $CODEC_CHECK_EVERY=N (and $CODEC_CHECK_SAMPLES) a codec is checked after every N epochs. The stability monitor looks
before every update (``guard=null``: nobody does); ``guard_options.skips=5`` and the like change what it bears.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from music_training.errors import run_command
from music_training.musicgen.train import main


def arguments() -> list[str]:
    """What was given, the stability monitor, and the check of a codec where it is asked for."""
    given = sys.argv[1:]
    if given and not any(argument.lstrip("+").startswith("guard=") or argument in ("-h", "--help") for argument in given):
        given = [*given, "guard=training_checks.stability_hooks:guard"]
    if os.environ.get("CODEC_CHECK_EVERY", "0") == "0" or "solver=musicgen" in sys.argv:
        return given
    return [*given, "each_epoch=training_checks.codec_quality_check:after_epoch"]


if __name__ == "__main__":
    run_command(lambda: main(arguments()))
