"""How much faster are epochs on cached embeddings? ``python benchmarks/edm_frozen_cache.py [--tracks 3]``.

MERT-95M at its real size with random weights, frozen; noise tracks; the same crops with and without the cache. The
table has seconds (CPU) per epoch, their ratio and the largest difference of the losses.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy
import soundfile
import torch

from music_training.edm_structure.config import EdmSettings
from music_training.edm_structure.data import AnnotatedTrack
from music_training.edm_structure.mert import MertSystem
from music_training.trainer.system import Batches


class Uncached(MertSystem):
    """The same system without its cache."""

    use_cache = False


def main() -> None:
    """Measure and print."""
    from transformers import HubertConfig, HubertModel

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tracks", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rng = numpy.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["MUSIC_OUTPUTS"] = str(root / "outputs")
        torch.manual_seed(0)
        HubertModel(HubertConfig()).save_pretrained(root / "mert")  # the defaults are the base size: 12 layers of 768
        tracks = []
        for number in range(arguments.tracks + 1):
            soundfile.write(root / f"{number}.wav", rng.normal(0, 0.1, int(arguments.seconds * 24000)), 24000)
            beats = numpy.arange(0, arguments.seconds, 0.5)
            starts = numpy.array([0.0, arguments.seconds / 2])
            track = AnnotatedTrack(
                str(number), root / f"{number}.wav", str(number), arguments.seconds, starts, ["intro", "drop"], beats, beats[::4]
            )
            tracks.append(track)
        settings = EdmSettings(
            backbone="mert-95m", backbone_model=str(root / "mert"), freeze_backbone=True, duration=30.0, train_split=1 - 1.2 / len(tracks),
            training={"batch_size": 1, "performance": {"num_workers": 0}},
        )  # fmt: skip
        results = {}
        for name, kind in (("uncached", Uncached), ("filling", MertSystem), ("cached", MertSystem)):
            torch.manual_seed(1)
            system = kind(settings, tracks)
            batches = Batches(system, settings.training, 0, 1, pin=False)
            optimizer = torch.optim.AdamW([value for value in system.model.parameters() if value.requires_grad], lr=1e-4)
            system.model.eval()
            losses, began = [], time.process_time()
            for _, own in batches.updates(0, 0):
                loss = system.loss(system.model, own[0][0])["loss"]
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
            results[name] = (time.process_time() - began, numpy.array(losses))
    print(f"{arguments.tracks} tracks, one 30 s crop of each to an epoch\n{'epoch':10s} {'CPU s':>8s}")
    for name, (seconds, _) in results.items():
        print(f"{name:10s} {seconds:8.2f}")
    print(f"cached is {results['uncached'][0] / results['cached'][0]:.1f} times faster")
    print(f"largest difference of losses {numpy.abs(results['uncached'][1] - results['cached'][1]).max():.2g}")


if __name__ == "__main__":
    main()
