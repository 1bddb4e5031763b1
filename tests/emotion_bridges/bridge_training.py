"""Trains the model of a configuration: ``python bridge_training.py CONFIG RUN_NAME`` (also under torchrun).

``$DIE_AT`` kills the process with SIGKILL after that update.
"""

import os
import signal
import sys
from pathlib import Path

from music_training import config
from music_training.emotion_bridges import train
from music_training.errors import run_command
from music_training.trainer.callbacks import Callback


class Death(Callback):
    """Comes after an update, before anything that follows it."""

    order = 0

    def on_step_end(self, trainer, step, metrics):
        if step == int(os.environ.get("DIE_AT", 0)):
            os.kill(os.getpid(), signal.SIGKILL)


def main():
    path, name = sys.argv[1:]
    settings = config.load(train.KINDS[config.read_yaml(Path(path))["model"]], Path(path))
    outcome = train.train(settings, run_name=name, callbacks=[Death()])
    print("outcome", outcome.step, outcome.reason)


if __name__ == "__main__":
    run_command(main)
