"""Generates music with a trained model; the arguments are those of ``music_training.musicgen.generate``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from music_training.errors import run_command
from music_training.musicgen.generate import main

if __name__ == "__main__":
    run_command(main)
