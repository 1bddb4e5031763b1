"""A command for tests: ``python trained.py RUN SETTINGS.yaml``, also under torchrun; ``$DIE_AT`` kills it after that update."""

import os
import signal
import sys
from pathlib import Path

from music_training import config
from music_training.errors import run_command
from music_training.lora_demucs import train
from music_training.lora_demucs.config import LoraDemucsSettings
from music_training.trainer.callbacks import Callback


class Die(Callback):
    def on_step_end(self, trainer, step, metrics) -> None:
        if step == int(os.environ.get("DIE_AT", 0)):
            os.kill(os.getpid(), signal.SIGKILL)


def main():
    train.train(config.load(LoraDemucsSettings, Path(sys.argv[2])), run_name=sys.argv[1], callbacks=[Die()])


if __name__ == "__main__":
    run_command(main)
