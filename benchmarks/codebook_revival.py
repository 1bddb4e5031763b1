"""Do dead codes come back? ``python benchmarks/codebook_revival.py [--steps 600] [--seeds 3]``: half a minute on one core.

Vectors of 64 clusters (synthetic, 8 dimensions) and a codebook of 256 codes, in AudioCraft's default setting (k-means
from the first batch, decay 0.99, threshold 2) and two others: upstream's codebook against ours on the same batches.
"Used" are the codes that win any of 8,192 fresh vectors; the error is the mean square of what remains of them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from music_training.musicgen import audiocraft_compat

audiocraft_compat.install()

from audiocraft.quantization.core_vq import EuclideanCodebook  # noqa: E402

from music_training.musicgen.codebooks import LivingCodebook  # noqa: E402

CLUSTERS, CODES, SIZE = 64, 256, 8
SETTINGS = {
    "AudioCraft's defaults": dict(kmeans_init=True, kmeans_iters=50, decay=0.99, threshold_ema_dead_code=2),
    "faster average": dict(kmeans_init=True, kmeans_iters=10, decay=0.9, threshold_ema_dead_code=0.5),
    "random start, no k-means": dict(kmeans_init=False, decay=0.99, threshold_ema_dead_code=2),
}


def vectors(count: int, generator: torch.Generator) -> torch.Tensor:
    """Vectors ``[N, 8]`` around fixed centres."""
    centres = torch.randn(CLUSTERS, SIZE, generator=torch.Generator().manual_seed(1)) * 3
    chosen = torch.randint(CLUSTERS, (count,), generator=generator)
    return centres[chosen] + 0.3 * torch.randn(count, SIZE, generator=generator)


def train(kind: type, setting: dict, steps: int, batch: int, seed: int) -> tuple[int, float]:
    """Codes used and the mean squared error of fresh vectors after ``steps`` batches."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed + 100)
    book = kind(SIZE, codebook_size=CODES, **setting).train()
    for _ in range(steps):
        book(vectors(batch, generator))
    book.eval()
    fresh = vectors(8192, generator)
    rebuilt, codes = book(fresh)
    return len(codes.unique()), float((rebuilt - fresh).square().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=1024, help="vectors a step")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{CLUSTERS} clusters, {CODES} codes, {arguments.steps} steps of {arguments.batch} vectors, means of {arguments.seeds} seeds")
    print(f"{'setting':<26}{'used, upstream':>15}{'used, ours':>12}{'error, upstream':>17}{'error, ours':>13}{'ratio':>8}")
    for name, setting in SETTINGS.items():
        found = {}
        for kind in (EuclideanCodebook, LivingCodebook):
            runs = [train(kind, setting, arguments.steps, arguments.batch, seed) for seed in range(arguments.seeds)]
            found[kind] = [statistics.fmean(column) for column in zip(*runs, strict=True)]
        (stock_used, stock_error), (used, error) = found[EuclideanCodebook], found[LivingCodebook]
        print(f"{name:<26}{stock_used:>15.0f}{used:>12.0f}{stock_error:>17.3f}{error:>13.3f}{stock_error / error:>8.1f}")


if __name__ == "__main__":
    main()
