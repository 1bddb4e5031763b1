"""Emotion vectors: ``[valence, arousal, intensity]`` or 64 numbers of which these are the first three.

Valence and arousal lie in [-1, 1] (negative to positive, calm to excited), intensity in [0, 1] (subtle to
overwhelming); the other 61 numbers of a long vector lie in [-1, 1] and are a person's own embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy

from ..errors import UserError

DIMENSIONS = ("valence", "arousal", "intensity")
RANGES = {"valence": (-1.0, 1.0), "arousal": (-1.0, 1.0), "intensity": (0.0, 1.0)}
SIZE = 64  # of the vector that the models take
QUADRANTS = {"Q1": (0.6, 0.6), "Q2": (-0.6, 0.6), "Q3": (-0.6, -0.6), "Q4": (0.6, -0.6)}  # EMOPIA's: valence, arousal


def checked(emotion: Sequence[float] | Mapping[str, float], where: str = "emotion") -> list[float]:
    """The vector as a list of 3 or 64 floats; UserError that names ``where`` for a wrong length or range.

    A mapping may leave ``intensity`` out: it is then the distance from neutral.
    """
    if isinstance(emotion, Mapping):
        strange = sorted(set(emotion) - set(DIMENSIONS))
        if strange or not {"valence", "arousal"} <= set(emotion):
            raise UserError(f"{where}: an emotion is {{valence, arousal, intensity}}, got {sorted(emotion)}")
        pair = [emotion["valence"], emotion["arousal"]]
        emotion = [*pair, emotion["intensity"] if emotion.get("intensity") is not None else strength(*map(_number, pair))]
    if isinstance(emotion, str) or not hasattr(emotion, "__len__") or len(emotion) not in (3, SIZE):
        size = len(emotion) if hasattr(emotion, "__len__") and not isinstance(emotion, str) else repr(emotion)
        raise UserError(f"{where}: an emotion has 3 numbers (valence, arousal, intensity) or {SIZE}, got {size}")
    values = [_number(value) for value in emotion]
    for number, value in enumerate(values):
        name = DIMENSIONS[number] if number < 3 else f"number {number + 1}"
        low, high = RANGES.get(name, (-1.0, 1.0))
        if not low <= value <= high:
            raise UserError(f"{where}: {name} {emotion[number]!r} is not in [{low:g}, {high:g}]")
    return values


def padded(emotion: Sequence[float]) -> numpy.ndarray:
    """The vector as the models take it: float32 ``[64]``, a short one filled with zeros."""
    values = numpy.zeros(SIZE, numpy.float32)
    values[: len(emotion)] = emotion
    return values


def strength(valence: float, arousal: float) -> float:
    """Intensity of an emotion of which only valence and arousal are known: its distance from neutral, at most 1."""
    return min(1.0, math.hypot(valence, arousal))


def quadrant(name: str) -> list[float]:
    """The middle of one of EMOPIA's four quadrants (Hung et al. 2021): Q1 happy, Q2 angry, Q3 sad, Q4 calm."""
    if name.upper() not in QUADRANTS:
        raise UserError(f"quadrant {name!r}: known are {', '.join(QUADRANTS)}")
    valence, arousal = QUADRANTS[name.upper()]
    return [valence, arousal, strength(valence, arousal)]


def _number(value: object) -> float:
    if isinstance(value, (bool, str)) or not hasattr(value, "__float__"):
        return math.nan
    return float(value)
