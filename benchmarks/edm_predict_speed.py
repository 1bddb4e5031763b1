"""How fast is ``predict`` with the CNN, and does its memory grow? ``python benchmarks/edm_predict_speed.py [RUN]``.

Tracks of 3 and 120 minutes are written as 16-bit WAV at 44.1 kHz and predicted on one core, each in a process of its
own, decoding included; the peer is the decoding and resampling alone. Without RUN the model's weights are random.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def write(path: Path, minutes: float) -> None:
    """A click track with pink-ish noise whose level changes every 30 s, in stereo."""
    import numpy
    import soundfile

    rate, rng = 44100, numpy.random.default_rng(0)
    with soundfile.SoundFile(path, "w", rate, 2, "PCM_16") as target:
        for number in range(int(minutes * 2)):
            block = rng.normal(0, 0.02 * (1 + number % 3), 30 * rate).astype(numpy.float32)
            for start in range(0, len(block) - 2000, round(60 / 128 * rate)):
                block[start : start + 2000] += 0.5 * numpy.exp(-numpy.arange(2000) / 300)
            target.write(numpy.stack([block, block], 1))


def measure(path: Path, run: str) -> None:
    """In a process of its own: print CPU seconds of the decoding and of the prediction, and the peak memory in MiB."""
    import torch

    from music_training.edm_structure import features, inference, model
    from music_training.edm_structure.config import EdmSettings
    from music_training.library import audio

    torch.set_num_threads(1)
    settings = EdmSettings(backbone="cnn", label=True)
    predictor = inference.load(run) if run else inference.Predictor(model.build(settings).eval(), settings)
    began = time.process_time()
    with audio.open_stream(path) as opened:
        for _ in audio.mono(opened, features.SAMPLE_RATE):
            pass
    decoded = time.process_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    inference.predict(predictor, path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(decoded - began, time.process_time() - decoded, before, peak)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", default="")
    parser.add_argument("--minutes", type=float, nargs="+", default=[3.0, 120.0])
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        return measure(arguments.measure, arguments.run)
    print(f"{'minutes':>8s} {'decode s':>9s} {'predict s':>10s} {'x real time':>12s} {'of decode':>10s} {'MiB before':>11s} {'peak':>6s}")
    with tempfile.TemporaryDirectory() as folder:
        for minutes in arguments.minutes:
            path = Path(folder) / f"{minutes:g}.wav"
            write(path, minutes)
            command = [sys.executable, __file__, *([arguments.run] if arguments.run else []), "--measure", str(path)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            decode, predict, before, peak = map(float, done.stdout.split()[-4:])
            speed = minutes * 60 / predict
            print(
                f"{minutes:8g} {decode:9.2f} {predict:10.2f} {speed:12.0f} {predict / decode:10.1f} {before:11.0f} {peak:6.0f}", flush=True
            )


if __name__ == "__main__":
    main()
