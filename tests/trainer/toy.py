"""A toy system, and a command that trains it: ``python toy.py RUN_NAME key=value ...`` (also under torchrun).

``$TOY_DIE_AT`` kills the process with SIGKILL in the middle of that update, ``$TOY_TERM_AT`` sends it SIGTERM, and
``$TOY_SLEEP`` makes each update take that many seconds.
"""

import os
import signal
import sys
import time

import torch
from torch import nn
from torch.nn import functional

from music_training import config, runs
from music_training.errors import run_command
from music_training.trainer import command
from music_training.trainer.config import Training
from music_training.trainer.system import System


class ToySettings(config.Settings):
    system: str = "toy"
    size: int = 24
    training: Training = Training(epochs=3, batch_size=4, optimizer={"lr": 0.01}, logging={"interval": 2}, performance={"threads": 1})


class Toy(System):
    """Regression with dropout and a random shift of the input, so that any slip of the randomness shows."""

    def __init__(self, settings: ToySettings):
        torch.manual_seed(0)
        self.size, self.calls = settings.size, 0
        self.model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 1))
        self.data = torch.randn(settings.size, 5, generator=torch.Generator().manual_seed(1))
        self.die, self.term = int(os.environ.get("TOY_DIE_AT", 0)), int(os.environ.get("TOY_TERM_AT", 0))

    def __len__(self):
        return self.size

    def example(self, index, rng):
        return self.data[index] + 0.1 * torch.from_numpy(rng.standard_normal(5)).float(), self.data[index].sum()

    def loss(self, model, batch):
        self.calls += 1
        time.sleep(float(os.environ.get("TOY_SLEEP", 0)))
        if self.calls == self.die:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.calls == self.term:
            os.kill(os.getpid(), signal.SIGTERM)
        inputs, targets = batch
        error = functional.mse_loss(model(inputs).squeeze(-1), targets)
        return {"loss": error, "half": error / 2}

    def validate(self, trainer):
        errors = [(trainer.model(row) - row.sum()).pow(2).item() for row in trainer.share(list(self.data))]
        errors = trainer.gather(errors)
        return {"val_loss": sum(errors) / len(errors)}


def main():
    name, *overrides = sys.argv[1:]
    settings = config.load(ToySettings, {}, overrides)
    known = (runs.folder() / name).is_dir()
    outcome = command.train(Toy, settings, system="toy", run_name=name, resume=name if known else None)
    print("outcome", outcome.step, outcome.reason)


if __name__ == "__main__":
    run_command(main)
