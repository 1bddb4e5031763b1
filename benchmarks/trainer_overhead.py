"""What does the trainer cost over a bare PyTorch loop? ``python benchmarks/trainer_overhead.py [--steps 60] [--rounds 5]``.

The same model, data, optimizer and clipping, steps of 20 ms or more, on one thread. Bare and trained stretches take
turns, so that a busy machine slows both alike; the table has the medians of the stretches and their ratio.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn

from music_training import runs
from music_training.trainer.callbacks import Callback
from music_training.trainer.config import Training
from music_training.trainer.loop import Trainer
from music_training.trainer.system import System


class Work(System):
    """A network whose update takes some tens of milliseconds on a core."""

    def __init__(self, examples: int):
        torch.manual_seed(0)
        self.data = torch.randn(examples, 256)
        self.model = nn.Sequential(nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 1024), nn.GELU(), nn.Linear(1024, 1))

    def __len__(self):
        return len(self.data)

    def example(self, index, rng):
        return self.data[index]

    def loss(self, model, batch):
        return {"loss": model(batch).square().mean()}


class Alternate(Callback):
    """After each stretch of the trainer's steps, a stretch of bare ones; both are timed."""

    order = 99

    def __init__(self, system: Work, steps: int, batch_size: int):
        self.bare, self.steps, self.batch_size = system, steps, batch_size
        self.optimizer = torch.optim.AdamW(system.model.parameters(), lr=1e-4)
        self.trained_times, self.bare_times = [], []

    def on_step_end(self, trainer, step, metrics):
        if step % self.steps == 0:
            now = time.process_time()
            if step > self.steps:  # the first stretch warms up
                self.trained_times.append((now - self.began) / self.steps)
            self.run_bare(step)
            self.began = time.process_time()

    def run_bare(self, seed: int) -> None:
        """The same work in the plainest loop: a DataLoader, forward, backward, clip, step, zero."""
        loader = torch.utils.data.DataLoader(self.bare.data, self.batch_size, shuffle=True)
        done, began = 0, time.process_time()
        while done < self.steps:
            for batch in loader:
                self.bare.loss(self.bare.model, batch)["loss"].backward()
                nn.utils.clip_grad_norm_(self.bare.model.parameters(), 1.0)
                self.optimizer.step()
                self.optimizer.zero_grad()
                done += 1
                if done == self.steps:
                    break
        self.bare_times.append((time.process_time() - began) / self.steps)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60, help="updates to a stretch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=256)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MUSIC_OUTPUTS"] = folder
        system, bare = Work(16 * arguments.batch_size), Work(16 * arguments.batch_size)
        settings = Training(
            epochs=10**6, max_steps=arguments.steps * (arguments.rounds + 1), batch_size=arguments.batch_size,
            checkpoint={"interval": 10**6}, validation={"interval": 10**6}, logging={"interval": 20},
        )  # fmt: skip
        alternate = Alternate(bare, arguments.steps, arguments.batch_size)
        Trainer(system, settings, runs.create("overhead"), [alternate]).fit()
    trained, plain = statistics.median(alternate.trained_times), statistics.median(alternate.bare_times[1:])
    ratios = [one / other for one, other in zip(alternate.trained_times, alternate.bare_times[1:], strict=False)]
    print(f"\n{'loop':10s} {'ms/step (CPU)':>14s}\n{'bare':10s} {plain * 1e3:14.2f}\n{'trainer':10s} {trained * 1e3:14.2f}")
    print(f"ratio of medians {trained / plain:.4f}, of neighbours {statistics.median(ratios):.4f}")


if __name__ == "__main__":
    main()
