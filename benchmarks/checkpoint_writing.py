"""How long does a training's checkpoint take to write? ``python benchmarks/checkpoint_writing.py [--size 4] [--folder DIR]``

A pod that is taken away gives SIGTERM and then seconds. For a state of ``--size`` GB in tensors: :func:`checkpoints.save`
(written under another name, flushed to the disk, renamed, old ones removed) against a bare ``torch.save`` of the same
state, in turns. The full training states of the shipped models, from their parameter counts, are printed beside it: with
weights, their average and AdamW's two moments, and for the codec its discriminator with the same moments.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from music_training import files
from music_training.musicgen import audiocraft_compat, checkpoints

audiocraft_compat.install()

from audiocraft.solvers.builders import get_adversary  # noqa: E402

from music_training.musicgen.train import compose  # noqa: E402


def sizes() -> dict[str, float]:
    """The training state of each model, GB."""
    from audiocraft.models import builders

    found = {}
    with torch.device("meta"):
        for name in ("lm_small", "lm_medium", "lm_large"):
            speaks = ["solver=musicgen", f"model={name}", "conditioner=none", "device=meta", "compression_model_checkpoint=none"]
            config = compose([*speaks, "datasource.train=a", "datasource.valid=a"])
            found[name] = 4 * 4 * sum(p.numel() for p in builders.get_lm_model(config).parameters()) / 1e9
    config = compose(["model=codec_large_32khz", "device=cpu"])
    codec = sum(p.numel() for p in builders.get_compression_model(config).parameters())
    judges = sum(p.numel() for p in get_adversary("msstftd", config).parameters())
    found["codec_large_32khz"] = 4 * (4 * codec + 3 * judges) / 1e9
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=float, default=4.0, help="GB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk in question (default: outputs/)")
    arguments = parser.parse_args()
    state = {f"tensor {number}": torch.randn(int(arguments.size * 1e9 / 4 / 64)) for number in range(64)}
    parent = arguments.folder or files.outputs_root()
    parent.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, list[float]] = {"bare torch.save": [], "checkpoint": []}
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        for number in range(arguments.rounds):
            start = time.monotonic()
            torch.save(state, Path(folder) / "bare.th")
            seconds["bare torch.save"].append(time.monotonic() - start)
            (Path(folder) / "bare.th").unlink()
            start = time.monotonic()
            checkpoints.save(Path(folder) / "ckpt", number, state, keep=2)
            seconds["checkpoint"].append(time.monotonic() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"{name:<18}{median:>8.1f} s for {arguments.size:g} GB ({arguments.size / median:.2f} GB/s)")
    print(f"ratio {medians['checkpoint'] / medians['bare torch.save']:.2f}")
    for name, size in sizes().items():
        print(f"{name:<20}{size:>6.1f} GB, {size * medians['checkpoint'] / arguments.size:.1f} s at this rate")


if __name__ == "__main__":
    main()
