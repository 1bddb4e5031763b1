"""What Spectocloud hears: log-mel frames, 25 a second, from 22.05 kHz audio; no torch here.

Frame ``i`` is centred on sample ``i * HOP``. Frames of a file are kept in ``outputs/cache/spectrograms`` under the hash of
its content.
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path

import numpy

from ... import files
from ...library import audio

SAMPLE_RATE = 22050  # Hz
HOP = 882
FRAME_RATE = SAMPLE_RATE / HOP
WINDOW = 2048
BANDS = 64
LOWEST, HIGHEST = 40.0, 10000.0  # Hz
FLOOR = 1e-10  # of a power, -100 dB


@functools.cache
def bank() -> numpy.ndarray:
    """Triangular filters ``[WINDOW / 2 + 1, BANDS]``, equally spaced in mel, each with peak 1: wide bands of treble weigh more."""
    mel = numpy.linspace(_mel(LOWEST), _mel(HIGHEST), BANDS + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    frequencies = numpy.linspace(0, SAMPLE_RATE / 2, WINDOW // 2 + 1)
    rising = (frequencies[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies[:, None]) / (edges[2:] - edges[1:-1])
    found = numpy.clip(numpy.minimum(rising, falling), 0, None)
    empty = found.sum(0) == 0  # the lowest triangles can fall between two bins: they take the nearest one
    found[numpy.abs(frequencies[:, None] - edges[1:-1]).argmin(0)[empty], empty.nonzero()[0]] = 1.0
    return found.astype(numpy.float32)


def frames(samples: numpy.ndarray) -> numpy.ndarray:
    """Natural log of mel powers, float32 ``[T, BANDS]`` with ``T = n // HOP + 1``; the edges are padded with silence."""
    count = len(samples) // HOP + 1
    padded = numpy.zeros((count - 1) * HOP + WINDOW, numpy.float32)
    kept = min(len(samples), len(padded) - WINDOW // 2)
    padded[WINDOW // 2 : WINDOW // 2 + kept] = samples[:kept]
    cut = numpy.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    window = numpy.hanning(WINDOW + 1)[:-1].astype(numpy.float32)
    found = []
    for start in range(0, count, 512):  # blocks that stay in the cache
        spectrum = numpy.fft.rfft(cut[start : start + 512] * window).astype(numpy.complex64)
        power = (spectrum.real**2 + spectrum.imag**2) * numpy.float32((2 / WINDOW) ** 2)
        found.append(numpy.log(numpy.maximum(power @ bank(), FLOOR)))
    return numpy.concatenate(found)


def of_file(path: Path | str) -> numpy.ndarray:
    """Frames of an audio file, float16 ``[T, BANDS]``, from the cache where they are."""
    identity = [files.digest(path), SAMPLE_RATE, HOP, WINDOW, BANDS, LOWEST, HIGHEST, 1]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    cached = files.outputs_root() / "cache" / "spectrograms" / f"{key}.npy"
    if not cached.is_file():
        samples, _ = audio.read(path, SAMPLE_RATE)
        with files.atomic(cached) as temporary, open(temporary, "wb") as stream:
            numpy.save(stream, frames(samples).astype(numpy.float16))
    return numpy.load(cached, mmap_mode="r")


def clip(whole: numpy.ndarray, start: int, count: int) -> numpy.ndarray:
    """``count`` frames from ``start`` on, float32, filled with silence where the file ends."""
    cut = numpy.full((count, BANDS), numpy.log(FLOOR), numpy.float32)
    part = whole[start : start + count]
    cut[: len(part)] = part
    return cut


def _mel(frequency: float) -> float:
    return 2595 * float(numpy.log10(1 + frequency / 700))
