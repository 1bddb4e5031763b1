"""The truth of a cloud: a density over time, frequency and energy, coloured by emotion; a cloud is a seeded draw from it.

A clip's mel frames become levels in [0, 1]: 0 at 60 dB below its loudest cell. The density over time and frequency is
``level ** SHARPNESS``, so that points gather at beats, basses and chords; the third coordinate is the level itself.
Points are drawn systematically along time (every time gets its share exactly, to one point), spread evenly within their
cell. Positions lie in [-1, 1]: time, frequency (mel), energy. No torch here.

Colour: the hue turns with the angle of valence and arousal (joy orange, anger red, sadness blue, calm green), a little
with frequency; saturation grows with intensity, brightness with the level. RGB in [0, 1].
"""

from __future__ import annotations

import zlib

import numpy

RANGE = 60.0  # dB
SHARPNESS = 6.0
ANGLES = (-45.0, 45.0, 135.0, 225.0, 315.0)  # degrees on the circumplex: calm, joy, anger, sadness, calm
HUES = (140.0, 40.0, 0.0, -140.0, -220.0)


def levels(mel: numpy.ndarray) -> numpy.ndarray:
    """Log powers ``[T, F]`` to levels in [0, 1], 1 at the clip's loudest cell; silence is all 0."""
    decibels = mel.astype(numpy.float32) * numpy.float32(10 / numpy.log(10))
    top = decibels.max()
    if top < -90:
        return numpy.zeros_like(decibels)
    return numpy.clip((decibels - top) / RANGE + 1, 0, 1)


def density(level: numpy.ndarray) -> numpy.ndarray:
    """The probability of each cell ``[T, F]``; the same everywhere in silence."""
    weight = level.astype(numpy.float64) ** SHARPNESS
    total = weight.sum()
    return weight / total if total > 0 else numpy.full(level.shape, 1 / level.size)


def content_seed(mel: numpy.ndarray) -> int:
    """The seed of a clip's own draw: it follows from its content."""
    return zlib.crc32(numpy.ascontiguousarray(mel, numpy.float16).tobytes())


def draw(level: numpy.ndarray, points: int, rng: numpy.random.Generator, share: numpy.ndarray | None = None) -> numpy.ndarray:
    """A cloud of ``points`` positions, float32 ``[points, 3]``, in the order of time; ``share`` replaces the density."""
    steps, bands = level.shape
    chance = (density(level) if share is None else share).ravel()
    edges = numpy.cumsum(chance)
    at = (numpy.arange(points) + rng.random()) / points * edges[-1]
    cell = numpy.minimum(numpy.searchsorted(edges, at), len(chance) - 1)
    time = (cell // bands + rng.random(points)) / steps
    frequency = (cell % bands + rng.random(points)) / bands
    energy = level.ravel()[cell]
    return (2 * numpy.stack([time, frequency, energy], 1) - 1).astype(numpy.float32)


def colours(cloud: numpy.ndarray, emotion: numpy.ndarray) -> numpy.ndarray:
    """The colours ``[n, 3]`` of positions ``[n, 3]`` under an emotion (its first three numbers count), float32 RGB."""
    valence, arousal, intensity = (float(value) for value in emotion[:3])
    hue = numpy.interp(_angle(valence, arousal), ANGLES, HUES) + 25.0 * cloud[:, 1]
    saturation = 0.15 + 0.75 * intensity
    value = 0.4 + 0.3 * (cloud[:, 2] + 1)
    return _rgb(hue % 360, numpy.full(len(cloud), saturation), value).astype(numpy.float32)


def target(mel: numpy.ndarray, emotion: numpy.ndarray, points: int, seed: int | None = None) -> tuple[numpy.ndarray, numpy.ndarray]:
    """A clip's cloud and its colours, both ``[points, 3]``; without a seed the one of its content, the same every time."""
    rng = numpy.random.default_rng(content_seed(mel) if seed is None else seed)
    cloud = draw(levels(mel), points, rng)
    return cloud, colours(cloud, emotion)


def _angle(valence: float, arousal: float) -> float:
    """Degrees from -45 to 315."""
    angle = float(numpy.degrees(numpy.arctan2(arousal, valence)))
    return angle + 360 if angle < -45 else angle


def _rgb(hue: numpy.ndarray, saturation: numpy.ndarray, value: numpy.ndarray) -> numpy.ndarray:
    """HSV (degrees, [0, 1], [0, 1]) to RGB ``[n, 3]``."""
    place = (numpy.array([5.0, 3.0, 1.0]) + hue[:, None] / 60) % 6
    return value[:, None] * (1 - saturation[:, None] * numpy.clip(numpy.minimum(place, 4 - place), 0, 1))
