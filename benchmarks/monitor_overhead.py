"""What the stability monitor costs: ``python benchmarks/monitor_overhead.py [--steps 40]``

Training steps of the mini codec and the mini language model (random input), by turns with the monitor asked before the
update and without it. Processor time of this process, one thread; the share is that of the monitor's own calls in the
steps they belong to, and beside it the difference of the two medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
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


def report(name: str, plain: list[float], watched: list[float], calls: list[float]) -> None:
    """One row: medians, and the share of the monitor's calls."""
    before, after, own = (statistics.median(values) for values in (plain, watched, calls))
    share = sum(calls) / sum(watched)
    print(f"{name:16}{1e3 * before:10.1f}{1e3 * after:10.1f}{after / before - 1:12.2%}{1e3 * own:14.3f}{share:9.3%}")


if __name__ == "__main__":
    main()
