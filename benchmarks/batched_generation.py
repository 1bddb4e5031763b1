"""What do clips cost drawn together, alone, and by AudioCraft? ``python benchmarks/batched_generation.py [--lm lm_mini] [--rounds 3]``.

Eight texts of different lengths with guidance, each from its own seed, on one thread of a CPU; untrained weights (the
time does not depend on them). The ways take turns; the table has CPU time (the best round), so that a busy machine
matters little. Real-time factor: seconds of computing for a second of audio, lower is better. AudioCraft's own batch
has one seed for all clips.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from music_training.musicgen import audiocraft_compat, generate, models
from music_training.musicgen.prompts import Prompt, Sampling

CLIPS = 8
TEXTS = [
    "a house track",
    "dark techno",
    "an uplifting trance track with a soaring lead",
    "",
    "a heavy dubstep track",
    "slow",
    "drum and bass",
]


def build(folder: Path, language_model: str, codec: str):
    """An untrained codec and language model that fit each other, as a model that generates."""
    audiocraft_compat.install()
    from audiocraft.models import builders

    from music_training.musicgen.train import compose

    os.environ["MUSIC_OUTPUTS"] = str(folder)
    torch.manual_seed(0)
    config = compose([f"model={codec}", "device=cpu"])
    models.save_weights(folder / "codec", builders.get_compression_model(config).state_dict(), config)
    quantisers = [f"transformer_lm.n_q={config.rvq.n_q}", f"transformer_lm.card={config.rvq.bins}"]
    overrides = ["device=cpu", "solver=musicgen", f"model={language_model}", "conditioner=lut", "dataset.segment_duration=10", *quantisers]
    config = compose([*overrides, "compression_model_checkpoint=codec"])
    models.save_weights(folder / "lm", builders.get_lm_model(config).state_dict(), config)
    return models.load_musicgen(folder / "lm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lm", default="lm_mini")
    parser.add_argument("--codec", default="codec_mini")
    parser.add_argument("--duration", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    prompts = [Prompt(f"clip {index}", TEXTS[index % len(TEXTS)] or "techno", index) for index in range(CLIPS)]
    together, alone = (Sampling(duration=args.duration, rows=rows) for rows in (CLIPS, 1))
    with tempfile.TemporaryDirectory() as folder:
        model = build(Path(folder), args.lm, args.codec)

        def audiocraft(some: list[Prompt]) -> list[torch.Tensor]:
            top_k = min(together.top_k, model.compression_model.cardinality)
            model.set_generation_params(duration=args.duration, top_k=top_k, cfg_coef=together.guidance)
            torch.manual_seed(some[0].seed)
            with torch.no_grad():
                return list(model.generate([prompt.text for prompt in some]))

        ways = {
            "AudioCraft, one by one": lambda: [audiocraft([prompt])[0] for prompt in prompts],
            "AudioCraft, a batch of 8 (one seed)": lambda: audiocraft(prompts),
            "ours, one by one (1 row)": lambda: [generate.generate(model, prompt, alone) for prompt in prompts],
            "ours, one by one with the batch's bits (8 rows)": lambda: [generate.generate(model, prompt, together) for prompt in prompts],
            "ours, a batch of 8": lambda: generate.generate_all(model, prompts, together),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        clips = {}
        for _ in range(args.rounds + 1):  # the first round warms up
            for name, way in ways.items():
                begin = time.process_time()
                clips[name] = way()
                times[name].append(time.process_time() - begin)
    best = {name: min(values[1:]) for name, values in times.items()}
    parameters = sum(weight.numel() for weight in model.lm.parameters()) / 1e6
    print(f"{args.lm} ({parameters:.1f} M parameters), {args.codec}, {CLIPS} clips of {args.duration:g} s, CPU time, 1 thread")
    print(f"{'':48}{'s a clip':>9}{'real-time factor':>18}{'clips a second, AudioCraft one by one = 1':>44}")
    for name, seconds in best.items():
        print(f"{name:48}{seconds / CLIPS:9.3f}{seconds / CLIPS / args.duration:18.3f}{best['AudioCraft, one by one'] / seconds:44.2f}")
    names = list(ways)
    print(f"a batch against one by one, both ours: {best[names[2]] / best[names[4]]:.2f} times as fast a clip")
    same = all(torch.equal(one, other) for one, other in zip(clips[names[3]], clips[names[4]], strict=True))
    print(f"one by one with 8 rows and the batch: {'the same bits' if same else 'DIFFERENT bits'}")


if __name__ == "__main__":
    main()
