"""How many tokens a second with the key-value cache, without it, and in ONNX? ``python benchmarks/midi_generation_speed.py``.

An untrained generator of the mini profile's size; tokens are fixed, so that all ways compute the same. One thread, CPU time,
the ways by turns, the best of some rounds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from music_training import config
from music_training.emotion_bridges import export
from music_training.emotion_bridges.config import MidiSettings
from music_training.emotion_bridges.midi_generator.model import MidiTransformer

SIZE = {"width": 128, "heads": 4, "layers": 3, "dropout": 0.0, "context": 320, "bigrams": False}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-onnx", action="store_true")
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    settings = config.load(MidiSettings, SIZE)
    model = MidiTransformer(settings).eval()
    tokens, emotion, context = torch.randint(0, 388, (1, parsed.tokens)), torch.randn(1, 64), torch.rand(1, 5)

    @torch.inference_mode()
    def cached() -> None:
        caches, (_, state) = model.caches(1, parsed.tokens), model.beginning(1)
        for place in range(parsed.tokens):
            _, state = model.step(tokens[:, place : place + 1], emotion, context, caches, state)

    @torch.inference_mode()
    def whole() -> None:
        for place in range(parsed.tokens):
            model(tokens[:, : place + 1], emotion, context)

    ways = {"cache": cached, "no cache": whole}
    if not parsed.no_onnx:
        import onnxruntime

        folder = tempfile.TemporaryDirectory()
        path = next(iter(export.to_onnx(model, settings, Path(folder.name))))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

        def onnx() -> None:
            past, state = (part.detach().numpy() for part in model.beginning(1))
            for place in range(parsed.tokens):
                given = {"tokens": tokens[:, place : place + 1].numpy(), "emotion": emotion.numpy(), "context": context.numpy()}
                _, past, state = session.run(None, {**given, "past": past, "state": state})

        ways["ONNX, cache"] = onnx
    print(f"{parsed.tokens} tokens, batch 1, {sum(parameter.numel() for parameter in model.parameters()) / 1e6:.2f} M parameters")
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(parsed.rounds):
        for name, way in ways.items():
            start = time.process_time()
            way()
            seconds[name].append(time.process_time() - start)
    least = {name: min(values) for name, values in seconds.items()}
    for name, value in least.items():
        print(
            f"{name:14s}{parsed.tokens / value:8.0f} tokens a CPU second{least['no cache'] / value:8.2f} times as fast as without a cache"
        )


if __name__ == "__main__":
    main()
