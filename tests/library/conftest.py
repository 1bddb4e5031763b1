"""Small synthetic audio folders for the tests of the library."""

import numpy as np
import pytest
import soundfile

from music_training.library import manifests, segments
from music_training.library.sources import folder

RATE = 32000


def noise(seconds, seed=0, level=0.1, rate=RATE):
    return (level * np.random.default_rng(seed).standard_normal(int(seconds * rate))).astype(np.float32)


@pytest.fixture
def library(tmp_path):
    """Write ``{relative path: samples}`` below a folder, and segment it."""

    class Library:
        folder = tmp_path / "audio"
        dataset = "mine"
        noise = staticmethod(noise)

        def write(self, name, x, rate=RATE, **options):
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, x, rate, **options)
            return path

        def artists(self, count, tracks=1, seconds=2.0):
            for number in range(count * tracks):
                self.write(f"artist {number % count}/track {number}.wav", noise(seconds, number))

        def segment(self, **settings):
            given = segments.SegmentSettings(**{"segment_seconds": 1.0, "workers": 1, **settings})
            folder.catalogue_folder(self.folder, self.dataset, "test")
            return segments.segment(self.dataset, "test", given, originals=folder.roots(self.folder))

        def build(self, **settings):
            return manifests.build(self.dataset, "test", manifests.ManifestSettings(**settings))

        def rows(self):
            return manifests.read_lines(manifests.index_of(self.dataset))

        def rejects(self):
            import csv

            with open(segments.rejects_of(self.dataset), encoding="utf-8", newline="") as stream:
                return list(csv.DictReader(stream))

    return Library()
