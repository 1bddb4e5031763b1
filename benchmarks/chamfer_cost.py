"""What does the Chamfer distance cost beside the naive one? ``python benchmarks/chamfer_cost.py [--batch 4] [--points 1200]``.

Forward and backward, in turns, CPU time, best of ``--rounds``; the memory is what autograd keeps for the backward pass.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from music_training.emotion_bridges.spectocloud.chamfer import chamfer


def naive(cloud: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Through the full matrix of distances, with its gradient."""
    far = torch.cdist(cloud, other).square()
    return far.amin(2).mean(1) + far.amin(1).mean(1)


def measure(function, cloud: torch.Tensor, other: torch.Tensor) -> tuple[float, int]:
    """CPU seconds of one forward and backward pass, and the bytes saved for the latter."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    cloud = cloud.clone().requires_grad_()
    start = time.process_time()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = function(cloud, other).mean()
    loss.backward()
    return time.process_time() - start, sum(kept.values())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--points", type=int, default=1200)
    parser.add_argument("--rounds", type=int, default=5)
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(0)
    cloud, other = (torch.rand(parsed.batch, parsed.points, 3, generator=rng) for _ in range(2))
    found = {"matched pairs (ours)": (float("inf"), 0), "full matrix": (float("inf"), 0)}
    for _ in range(parsed.rounds):
        for name, function in zip(found, (chamfer, naive), strict=True):
            found[name] = min(found[name], measure(function, cloud, other))
    print(f"{parsed.batch} pairs of {parsed.points} points, forward and backward, one thread")
    print(f"{'':24s}{'CPU ms':>10s}{'MiB kept':>10s}")
    for name, (seconds, kept) in found.items():
        print(f"{name:24s}{1000 * seconds:10.1f}{kept / 2**20:10.2f}")
    (ours, small), (full, large) = found.values()
    print(f"ratio {full / ours:.1f} in time, {large / max(small, 1):.0f} in memory")


if __name__ == "__main__":
    main()
