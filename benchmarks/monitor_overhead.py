"""What the stability monitor costs: ``python benchmarks/monitor_overhead.py [--steps 40]``

Training steps of the mini codec and the mini language model (random input), and of the EDM model of ``mini`` in the
shared trainer, by turns with the monitor asked before the update and without it. Processor time of this process, one
thread; the share is that of the monitor's own calls in the steps they belong to (the norm of the gradients is measured
with it and without), and beside it the difference of the two medians.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40, help="of each kind and model (default: %(default)s)")
    args = parser.parse_args()
    import torch

    from music_training.musicgen import audiocraft_compat

    audiocraft_compat.install()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{'model':16}{'step ms':>10}{'with it':>10}{'difference':>12}{'its calls ms':>14}{'share':>9}")
    for name, step in (("lm_mini", language_model()), ("codec_mini", codec())):
        report(name, *measure(step, args.steps))
    report("edm (trainer)", *measure_trainer(args.steps))


def language_model():
    """A step of the language model on 4 x 5 s of random codes: loss and model."""
    import torch
    from audiocraft.models import builders
    from torch.nn import functional

    from music_training.musicgen.train import compose

    cfg = compose(["solver=musicgen", "model=lm_mini", "device=cpu"])
    model = builders.get_lm_model(cfg)

    def loss():
        codes = torch.randint(0, 256, (4, 8, 250))
        predicted = model.compute_predictions(codes, [])
        value = functional.cross_entropy(predicted.logits[predicted.mask], codes[predicted.mask])
        return {"loss": value}

    return model, loss


def codec():
    """A step of the codec on 8 x 0.5 s of noise, with two of its losses."""
    import torch
    from audiocraft.models import builders

    from music_training.musicgen.train import compose

    cfg = compose(["model=codec_mini", "device=cpu"])
    model = builders.get_compression_model(cfg)

    def loss():
        audio = 0.1 * torch.randn(8, 1, 16000)
        made = model(audio).x
        parts = {"l1": (made - audio).abs().mean(), "l2": (made - audio).square().mean()}
        return {"loss": parts["l1"] + parts["l2"], **parts}

    return model, loss


def measure(step, count: int) -> tuple[list[float], list[float], list[float]]:
    """Seconds of the steps without and with the monitor, and of its calls alone."""
    import torch

    from music_training.guard import Update
    from training_checks.stability_hooks import MonitorGuard
    from training_checks.stability_monitor import StabilityMonitor

    model, loss = step
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    guard = MonitorGuard(StabilityMonitor())
    guard.start_epoch(1, 2 * count)
    plain, watched, calls = [], [], []
    for number in range(2 * count + 6):
        began = time.process_time()
        losses = loss()
        losses["loss"].backward()
        norm = torch.nn.utils.get_total_norm([value.grad for value in model.parameters() if value.grad is not None])
        spent = 0.0
        if number % 2:
            asked = time.process_time()
            values = {name: float(value.detach()) for name, value in losses.items()}
            guard.before_step(Update("model", number, 1, values, float(norm), model.named_parameters, optimizer))
            spent = time.process_time() - asked
        optimizer.step()
        optimizer.zero_grad()
        took = time.process_time() - began
        if number >= 6:  # the first ones warm up
            (watched if number % 2 else plain).append(took)
            if number % 2:
                calls.append(spent)
    return plain, watched, calls


def measure_trainer(count: int) -> tuple[list[float], list[float], list[float]]:
    """The same three in the shared trainer: the EDM model on 4 x 20 s of random features, its mean square as loss."""
    import torch

    from music_training import runs
    from music_training.edm_structure import features, model
    from music_training.edm_structure.config import EdmSettings
    from music_training.trainer.config import Training
    from music_training.trainer.loop import Trainer
    from music_training.trainer.system import System
    from training_checks.stability_hooks import StabilityCallback

    class Random(System):
        def __init__(self):
            self.model = model.build(EdmSettings(backbone="cnn"))

        def __len__(self):
            return 4 * (2 * count + 6)

        def example(self, index, rng):
            return torch.from_numpy(rng.standard_normal((20 * 50, features.MELS), "float32"))

        def loss(self, network, batch):
            return {"loss": sum(value.square().mean() for value in network(batch).values())}

    class ByTurns(StabilityCallback):
        def __init__(self):
            super().__init__()
            self.plain, self.watched, self.calls, self.began = [], [], [], time.process_time()

        def on_gradients(self, trainer):
            if trainer.step % 2:
                norm = trainer.measure_gradients()
                trainer.measure_gradients = lambda: norm  # for the monitor; without it the clipping measures
                began = time.process_time()
                super().on_gradients(trainer)
                self.spent = time.process_time() - began
                del trainer.measure_gradients

        def on_step_end(self, trainer, step, metrics):
            now = time.process_time()
            if step > 6:
                (self.plain if step % 2 else self.watched).append(now - self.began)
                if not step % 2:
                    self.calls.append(self.spent)
            self.began = now

    by_turns = ByTurns()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MUSIC_OUTPUTS"] = folder
        settings = Training(
            epochs=1,
            batch_size=4,
            validation={"interval": 10**6},
            checkpoint={"interval": 10**6},
            logging={"interval": 10**6, "tensorboard": False},
            performance={"threads": 1},
        )
        Trainer(Random(), settings, runs.create("overhead"), [by_turns]).fit()
    return by_turns.plain, by_turns.watched, by_turns.calls


def report(name: str, plain: list[float], watched: list[float], calls: list[float]) -> None:
    """One row: medians, and the share of the monitor's calls."""
    before, after, own = (statistics.median(values) for values in (plain, watched, calls))
    share = sum(calls) / sum(watched)
    print(f"{name:16}{1e3 * before:10.1f}{1e3 * after:10.1f}{after / before - 1:12.2%}{1e3 * own:14.3f}{share:9.3%}")


if __name__ == "__main__":
    main()
