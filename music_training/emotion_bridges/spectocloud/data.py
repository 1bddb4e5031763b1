"""Clips of audio with their clouds as training and validation examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy

from ... import files, parallel
from ...errors import UserError
from ...progress import progress
from .. import emotions
from ..config import SpectocloudSettings
from ..manifests import Entry
from . import clouds, mel, targets


@dataclass(frozen=True)
class Clip:
    """A stretch of one row's audio: its mel frames, emotion ``[64]``, cloud and colours; ``start`` in seconds."""

    entry: Entry
    start: float
    mel: numpy.ndarray
    emotion: numpy.ndarray
    cloud: numpy.ndarray
    colours: numpy.ndarray


class Clips:
    """Rows with their mel frames (memory-mapped), and the clips cut from them."""

    def __init__(self, entries: Sequence[Entry], settings: SpectocloudSettings):
        self.entries, self.settings = list(entries), settings
        self.frames = round(settings.seconds * mel.FRAME_RATE)
        paths = [files.absolute(entry.audio_path) for entry in self.entries]
        missing = [str(path) for path in paths if not path.is_file()]
        if missing:
            raise UserError(f"{missing[0]}: no such audio file ({len(missing)} of {len(paths)} are missing); build the manifests again")
        workers = min(parallel.cores(), len(paths)) if len(paths) > 50 else 1
        warm = parallel.map_processes(_warm, paths, workers)
        for _ in progress(warm, "spectrograms", total=len(paths), unit="files"):
            pass
        self.mels = [mel.of_file(path) for path in paths]

    def random(self, index: int, rng: numpy.random.Generator) -> Clip:
        """A changed clip from anywhere in row ``index`` with a fresh draw of its cloud; where that is precomputed, it as it is.

        Changes of the sound move the target along, and so does another emotion the colours, which a share of the clips gets.
        """
        if self.entries[index].target_pointcloud_path:
            return self.at(index, self.entries[index].start)
        last = max(0, len(self.mels[index]) - self.frames)
        cut = changed(mel.clip(self.mels[index], int(rng.integers(last + 1)), self.frames), rng)
        emotion = emotions.padded(self.entries[index].emotion)
        if rng.random() < self.settings.recolour:
            emotion = emotions.padded([*rng.uniform(-1, 1, 2), rng.random()])
        cloud, tint = targets.target(cut, emotion, self.settings.points, int(rng.integers(1 << 31)))
        return Clip(self.entries[index], 0.0, cut, emotion, cloud, tint)

    def at(self, index: int, start: float) -> Clip:
        """The clip of row ``index`` at ``start`` (s), with the cloud of its content."""
        entry = self.entries[index]
        cut = mel.clip(self.mels[index], round(start * mel.FRAME_RATE), self.frames)
        if entry.target_pointcloud_path:
            cloud, tint = clouds.read(Path(entry.target_pointcloud_path), self.settings.points, entry.emotion)
        else:
            cloud, tint = targets.target(cut, numpy.asarray(entry.emotion), self.settings.points)
        return Clip(entry, start, cut, emotions.padded(entry.emotion), cloud, tint)

    def all(self, most: int = 12) -> list[Clip]:
        """The clips of all rows, one after the other; at most ``most`` of a row."""
        found = []
        for index, frames in enumerate(self.mels):
            if self.entries[index].target_pointcloud_path:
                found.append(self.at(index, self.entries[index].start))
                continue
            for number in range(min(most, max(1, len(frames) // self.frames))):
                found.append(self.at(index, number * self.settings.seconds))
        return found


def changed(cut: numpy.ndarray, rng: numpy.random.Generator) -> numpy.ndarray:
    """A clip as if played higher or lower (up to four bands) and through a smooth equaliser (up to 9 dB)."""
    steps = int(rng.integers(-4, 5))
    cut = numpy.roll(cut, steps, axis=1)
    if steps > 0:
        cut[:, :steps] = cut[:, steps : steps + 1]
    elif steps < 0:
        cut[:, steps:] = cut[:, steps - 1 : steps]
    curve = numpy.interp(numpy.arange(mel.BANDS), numpy.linspace(0, mel.BANDS - 1, 5), rng.uniform(-1, 1, 5))
    return cut + (curve * (9 * numpy.log(10) / 10)).astype(numpy.float32)


def _warm(path: Path) -> None:
    mel.of_file(path)  # a memory map does not travel between processes
