"""Annotated tracks, and the training examples cut from them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch

from . import augment, features, targets
from .config import EdmSettings

OFF_BEAT = ("bass", "hihat")  # stems that much of the music plays between the beats


@dataclass(frozen=True)
class AnnotatedTrack:
    """A track with its truth: section ``starts`` (s) with ``labels``, ``beats`` and ``downbeats`` (s); ``stems`` add up to the audio."""

    id: str
    audio: Path
    artist: str
    duration: float
    starts: numpy.ndarray
    labels: list[str]
    beats: numpy.ndarray
    downbeats: numpy.ndarray
    bpm: float | None = None
    stems: tuple[Path, ...] = ()

    @property
    def boundaries(self) -> numpy.ndarray:
        """Boundaries inside the track: section starts but the one at its very beginning."""
        return self.starts[self.starts > 0.5]

    @property
    def intervals(self) -> numpy.ndarray:
        """Sections ``[n, 2]`` in seconds, from 0 to the end of the track."""
        edges = numpy.append(self.starts, self.duration)
        edges[0] = 0.0
        return numpy.stack([edges[:-1], edges[1:]], 1)


def split(tracks: Sequence[AnnotatedTrack], settings: EdmSettings) -> tuple[list[AnnotatedTrack], list[AnnotatedTrack]]:
    """Training and held-out tracks, divided by artist: by ``train_split``, or into ``folds`` of which ``fold`` is held out."""
    artists = sorted(
        {track.artist for track in tracks}, key=lambda name: (zlib.crc32(f"{settings.training.random_seed}{name}".encode()), name)
    )
    if settings.fold is not None:
        held = set(artists[settings.fold :: settings.folds])
    else:
        held = set(artists[: max(1, round(len(artists) * (1 - settings.train_split)))])
    return [track for track in tracks if track.artist not in held], [track for track in tracks if track.artist in held]


class Example:
    """Makes crops of tracks whose features are in memory, with targets at ``frame_rate``."""

    def __init__(self, tracks: Sequence[AnnotatedTrack], settings: EdmSettings):
        self.tracks, self.settings = tracks, settings
        self.frames = round(settings.duration * features.FRAME_RATE)
        self.features = [numpy.asarray(features.of_file(track.audio)) for track in tracks]
        self.stems = [self._stems(track) for track in tracks]
        self.energy = [features.energy(frames[:, features.MELS :]) for frames in self.features]

    def crop(self, number: int, rng: numpy.random.Generator) -> dict[str, torch.Tensor]:
        """A random crop of a track anywhere in it, changed at random, with its targets and the ``mask`` of real frames."""
        settings, source = self.settings, self.features[number]
        speed = augment.draw_speed(settings.augmentation, rng)
        room = len(source) - 1 - speed * (self.frames - 1)
        start = float(round(rng.uniform(0, room))) if room > 0 else 0.0
        stems, change = self.stems[number], settings.augmentation
        if stems and rng.random() < change.share:
            late = self._late(self.tracks[number], rng)
            parts = [augment.resample(stem, start - shift, speed, self.frames) for stem, shift in zip(stems, late, strict=True)]
            mel = augment.remix(parts, change, rng)
        else:
            mel = augment.resample(source[:, : features.MELS], start, speed, self.frames)
        mel = augment.colour(mel, settings.augmentation, rng)
        made = {"inputs": mel, "energy": augment.resample(self.energy[number], start, speed, self.frames)}
        made |= event_targets(self.tracks[number], settings, start / features.FRAME_RATE, speed, self.frames, features.FRAME_RATE)
        made["mask"] = (start + speed * numpy.arange(self.frames) < len(source)).astype(numpy.float32)
        made["beat_mask"] = made["mask"] * float(len(self.tracks[number].beats) > 0)
        return {name: torch.from_numpy(numpy.ascontiguousarray(value)) for name, value in made.items()}

    def _late(self, track: AnnotatedTrack, rng: numpy.random.Generator) -> list[float]:
        """By how many frames each stem is to be played late: half a beat, or not at all."""
        if len(track.beats) < 2:
            return [0.0] * len(track.stems)
        half = float(numpy.median(numpy.diff(track.beats))) / 2 * features.FRAME_RATE
        share = self.settings.augmentation.syncopation
        return [half * (path.stem in OFF_BEAT and rng.random() < share) for path in track.stems]

    def _stems(self, track: AnnotatedTrack) -> list[numpy.ndarray]:
        """Mel frames of a track's stems, where they are to be mixed anew."""
        if not self.settings.augmentation.remix:
            return []
        return [numpy.array(features.of_file(path)[:, : features.MELS]) for path in track.stems]

    def whole(self, number: int) -> dict[str, torch.Tensor]:
        """A whole track with its targets, as a batch of one."""
        source = self.features[number]
        made = {"inputs": numpy.asarray(source[:, : features.MELS], numpy.float32), "energy": self.energy[number]}
        made |= event_targets(self.tracks[number], self.settings, 0.0, 1.0, len(source), features.FRAME_RATE)
        made["mask"] = numpy.ones(len(source), numpy.float32)
        made["beat_mask"] = made["mask"] * float(len(self.tracks[number].beats) > 0)
        return {name: torch.from_numpy(numpy.ascontiguousarray(value)).unsqueeze(0) for name, value in made.items()}


def event_targets(
    track: AnnotatedTrack, settings: EdmSettings, start: float, speed: float, frames: int, frame_rate: float
) -> dict[str, numpy.ndarray]:
    """Targets of a crop from ``start`` (s) played at ``speed``, ``[frames]`` each, for the heads that are switched on."""

    def moved(times: numpy.ndarray) -> numpy.ndarray:
        return (times - start) / speed

    made = {}
    if settings.boundary:
        made["boundary"] = targets.events(moved(track.boundaries), frames, frame_rate, targets.BOUNDARY_WIDTH)
    if settings.beat:
        made["beat"] = targets.events(moved(track.beats), frames, frame_rate)
    if settings.downbeat:
        made["downbeat"] = targets.events(moved(track.downbeats), frames, frame_rate)
    if settings.label:
        end = float(moved(numpy.array([track.duration]))[0])
        made["label"] = targets.labels(moved(track.starts), track.labels, end, frames, frame_rate)
    return made
