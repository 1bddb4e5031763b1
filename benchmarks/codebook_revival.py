"""Do dead codes come back? ``python benchmarks/codebook_revival.py [--steps 600] [--seeds 3] [--mini]``

Vectors of 64 clusters (synthetic, 8 dimensions) and a codebook of 256 codes, in AudioCraft's default setting (k-means
from the first batch, decay 0.99, threshold 2, 3,200 vectors a step as 64 clips of 1 s at 50 frames give) and others:
upstream's codebook against ours on the same batches. "Used" are the codes that win any of 8,192 fresh vectors; the error
is the mean square of what remains of them. Two minutes on one core.

``--mini``: the codec of the mini profile with both codebooks, the same steps; usage and mel distance on held-out artists
of its composed library (synthetic). Three minutes a seed more on one quiet core; goes on where it was stopped.
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
DEFAULTS = dict(kmeans_init=True, kmeans_iters=50, decay=0.99, threshold_ema_dead_code=2)
SETTINGS = {
    "AudioCraft's defaults": DEFAULTS,
    "AudioCraft's defaults, 512": {**DEFAULTS, "batch": 512},
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
    batch = setting.pop("batch", batch)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed + 100)
    book = kind(SIZE, codebook_size=CODES, **setting).train()
    for _ in range(steps):
        book(vectors(batch, generator))
    book.eval()
    fresh = vectors(8192, generator)
    rebuilt, codes = book(fresh)
    return len(codes.unique()), float((rebuilt - fresh).square().mean())


def compare_in_codec(seeds: int) -> None:
    """Train the mini codec with both codebooks and print what they make of held-out artists."""
    from ours_vs_stock import Notes, prepare, train

    from music_training import files, profiles, runs
    from music_training.musicgen.training import CodecSettings
    from training_checks.codec_quality_check import check, held_out

    dataset = profiles.dataset("mini")
    (files.outputs_root() / "benchmarks").mkdir(parents=True, exist_ok=True)
    notes = Notes(files.outputs_root() / "benchmarks" / "codebook_revival.json")
    prepare(dataset)
    codec = profiles.settings(CodecSettings, "04_train_codec", "mini", workers=0).overrides(dataset)

    def measure(run: str) -> dict[str, float]:
        found = check(runs.folder() / run / "ckpt" / "best", held_out(dataset), 10).figures
        return {"codes used": statistics.fmean(found["codes_used"]), "mel distance": found["mel"], "SDR, dB": found["sdr"]}

    print(f"\nthe codec of mini, {seeds} seeds: mean (range)\n{'':<16}{'codes used of 256':>24}{'mel distance':>24}{'SDR, dB':>24}")
    for way, living in {"upstream's": False, "ours": True}.items():
        rows = []
        for seed in range(seeds):
            run = f"bench_codebooks_{'living' if living else 'upstream'}_{seed}"
            notes.get(f"{run} seconds", train, [*codec, f"living_codebooks={str(living).lower()}", f"seed={seed}"], run)
            rows.append(notes.get(run, measure, run))
        columns = [[row[name] for row in rows] for name in rows[0]]
        print(f"{way:<16}" + "".join(f"{f'{statistics.fmean(v):.3f} ({min(v):.3f} .. {max(v):.3f})':>24}" for v in columns), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=3200, help="vectors a step")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--mini", action="store_true", help="train the mini codec with both, too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{CLUSTERS} clusters, {CODES} codes, {arguments.steps} steps of {arguments.batch} vectors or as named, "
        f"means of {arguments.seeds} seeds"
    )
    print(f"{'setting':<26}{'used, upstream':>15}{'used, ours':>12}{'error, upstream':>17}{'error, ours':>13}{'ratio':>8}")
    for name, setting in SETTINGS.items():
        found = {}
        for kind in (EuclideanCodebook, LivingCodebook):
            runs = [train(kind, dict(setting), arguments.steps, arguments.batch, seed) for seed in range(arguments.seeds)]
            found[kind] = [statistics.fmean(column) for column in zip(*runs, strict=True)]
        (stock_used, stock_error), (used, error) = found[EuclideanCodebook], found[LivingCodebook]
        print(f"{name:<26}{stock_used:>15.0f}{used:>12.0f}{stock_error:>17.3f}{error:>13.3f}{stock_error / error:>8.1f}")
    if arguments.mini:
        compare_in_codec(arguments.seeds)


if __name__ == "__main__":
    main()
