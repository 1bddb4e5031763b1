"""Frame-level targets from event times, at the frame rate of the backbone that is trained."""

from __future__ import annotations

import numpy

from . import LABELS

BOUNDARY_WIDTH = 0.25  # seconds, of the Gaussian around a boundary
IGNORE = -100  # label of frames that no section names


def events(times: numpy.ndarray, frames: int, frame_rate: float, width: float = 0.0) -> numpy.ndarray:
    """Targets ``[frames]`` of event ``times`` (s; some may lie outside).

    ``width`` 0: 1 at the nearest frame and 0.5 at its neighbours (Boeck 2020). Else a Gaussian of that width in
    seconds, also of events just outside, so that an event at the edge of a crop looks as it does anywhere.
    """
    target = numpy.zeros(frames, numpy.float32)
    if width:
        grid = numpy.arange(frames) / frame_rate
        for time in times[(times > -3 * width) & (times < frames / frame_rate + 3 * width)]:
            numpy.maximum(target, numpy.exp(-0.5 * ((grid - time) / width) ** 2), out=target)
        return target
    places = numpy.round(times * frame_rate).astype(int)
    for offset, value in ((-1, 0.5), (1, 0.5), (0, 1.0)):
        inside = places + offset
        inside = inside[(inside >= 0) & (inside < frames)]
        target[inside] = numpy.maximum(target[inside], value)
    return target


def labels(starts: numpy.ndarray, names: list[str], end: float, frames: int, frame_rate: float) -> numpy.ndarray:
    """The label's number for each frame ``[frames]``; IGNORE before the first section, after ``end`` and for unknown labels."""
    numbers = numpy.array([IGNORE, *(LABELS.index(name) if name in LABELS else IGNORE for name in names)])
    grid = (numpy.arange(frames) + 0.5) / frame_rate
    target = numbers[numpy.searchsorted(starts, grid, side="right")]
    target[grid >= end] = IGNORE
    return target
