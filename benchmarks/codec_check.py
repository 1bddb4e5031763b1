"""How many times real time is the codec check? ``python benchmarks/codec_check.py [--codec codec_mini] [--clips 12] [--rounds 3]``.

The whole check (reading, the codec, the untrained codec beside it, all figures, and with ``+ files`` the WAV pairs and
the picture) beside the codec alone on the same clips; untrained weights, synthetic noise, one thread of a CPU. The
ways take turns; CPU time of the best round. More is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy
import soundfile
import torch

from music_training import files
from music_training.musicgen import audiocraft_compat, models
from training_checks.codec_quality_check import check

RATE, SECONDS = 32000, 10


def build(folder: Path, codec: str, clips: int) -> Path:
    """An untrained codec in ``codec`` and a manifest of clips, below ``folder``; returns the manifest."""
    audiocraft_compat.install()
    from audiocraft.models import builders

    from music_training.musicgen.train import compose

    os.environ["MUSIC_OUTPUTS"] = str(folder)
    config = compose([f"model={codec}", "device=cpu"])
    model = builders.get_compression_model(config)
    model(torch.randn(1, 1, RATE))
    models.save_weights(folder / "codec", model.state_dict(), config)
    random, lines = numpy.random.default_rng(0), []
    for number in range(clips):
        path = folder / f"clip{number}_0000.wav"
        soundfile.write(path, 0.1 * random.standard_normal(SECONDS * RATE), RATE)
        lines.append(json.dumps({"path": files.relative(path)}) + "\n")
    return files.write_text(folder / "data.jsonl", "".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--codec", default="codec_mini")
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = build(folder, args.codec, args.clips)
        model = models.load_codec("codec")

        def codec_alone() -> None:
            for line in manifest.read_text().splitlines():
                audio, _ = soundfile.read(folder / json.loads(line)["path"], dtype="float32")
                with torch.no_grad():
                    model.decode(model.encode(torch.from_numpy(audio)[None, None])[0])

        ways = {
            "the codec alone": codec_alone,
            "check of a codec in memory (while it trains)": lambda: check(model, manifest, args.clips),
            "check of a weights folder": lambda: check("codec", manifest, args.clips),
            "check of a weights folder + files": lambda: check("codec", manifest, args.clips, folder / "pairs"),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.rounds + 1):  # the first round warms up
            for name, way in ways.items():
                begin = time.process_time()
                way()
                times[name].append(time.process_time() - begin)
    print(f"{args.codec}, {args.clips} clips of {SECONDS} s, CPU time, 1 thread")
    print(f"{'':48}{'seconds':>9}{'x real time':>13}{'the codec alone = 1':>21}")
    alone = min(times["the codec alone"][1:])
    for name, values in times.items():
        seconds = min(values[1:])
        print(f"{name:48}{seconds:9.2f}{args.clips * SECONDS / seconds:13.1f}{seconds / alone:21.2f}")


if __name__ == "__main__":
    main()
