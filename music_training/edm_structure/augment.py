"""Random changes of a crop of features; those that move time move the targets along (they are made after it)."""

from __future__ import annotations

import numpy
from scipy.signal import lfilter

from .config import Augmentation
from .features import MELS, mel_bank

DECIBEL = numpy.log(10) / 20  # a decibel in natural log of magnitude


def draw_speed(settings: Augmentation, rng: numpy.random.Generator) -> float:
    """A change of speed: 1.1 plays a tenth faster; 1 for the crops that stay as they are."""
    return float(1 + settings.tempo * rng.uniform(-1, 1)) if settings.tempo and rng.random() < settings.share else 1.0


def resample(frames: numpy.ndarray, start: float, speed: float, count: int) -> numpy.ndarray:
    """``count`` frames of ``frames`` ``[T, F]`` from ``start`` on at ``speed`` (linear interpolation); edges are repeated."""
    if speed == 1.0 and start == int(start) and 0 <= start <= len(frames) - count:
        return numpy.array(frames[int(start) : int(start) + count], numpy.float32)
    places = numpy.clip(start + speed * numpy.arange(count), 0, len(frames) - 1)
    low = places.astype(int)
    first = int(low[0])
    part = numpy.asarray(frames[first : min(int(low[-1]) + 2, len(frames))], numpy.float32)
    low -= first
    share = (places - first - low).astype(numpy.float32)[:, None]
    return part[low] * (1 - share) + part[numpy.minimum(low + 1, len(part) - 1)] * share


def colour(mel: numpy.ndarray, settings: Augmentation, rng: numpy.random.Generator) -> numpy.ndarray:
    """Change pitch, spectrum, noise floor and level of log-mel ``[T, MELS]``, and mask stripes of it."""
    if rng.random() >= settings.share:
        return mel
    if settings.pitch:
        mel = _shift(mel, 2 ** (rng.uniform(-settings.pitch, settings.pitch) / 12))
    if settings.equaliser:
        mel = mel + (_slope(settings.equaliser, rng) * DECIBEL).astype(numpy.float32)
    if settings.noise:
        loudness = numpy.log(numpy.sqrt(numpy.mean(numpy.exp(2 * mel))) + 1e-9)
        mel = numpy.logaddexp(mel, numpy.float32(loudness - (settings.noise + 40 * rng.random()) * DECIBEL))
    for _ in range(rng.integers(0, settings.masks + 1)):
        begin, size = rng.integers(0, max(1, len(mel) - 20)), rng.integers(2, 20)
        low, high = rng.integers(0, MELS - 8), rng.integers(2, 12)
        mel[begin : begin + size] = mel.mean()
        mel[:, low : low + high] = mel.mean()
    return mel


def remix(stems: list[numpy.ndarray], settings: Augmentation, rng: numpy.random.Generator) -> numpy.ndarray:
    """Stems ``[T, MELS]`` at new levels, colours, pitches and with tails, added as uncorrelated sounds: their powers add up."""
    power = numpy.zeros_like(stems[0])
    for stem in stems:
        change = rng.uniform(-settings.remix, settings.remix / 2) + _slope(settings.equaliser, rng)
        moved = _shift(stem, 2 ** (rng.uniform(-2, 2) * settings.pitch / 12)) if settings.pitch else stem
        loud = numpy.exp(2 * (moved + (change * DECIBEL).astype(numpy.float32)))
        if settings.tail:
            loud = lfilter([1.0], [1.0, -settings.tail * rng.random()], loud, axis=0).astype(numpy.float32)
        power += loud
    return numpy.log(power.clip(1e-10)) / 2


def _slope(reach: float, rng: numpy.random.Generator) -> numpy.ndarray:
    """A smooth random spectrum of gains, dB, ``[MELS]``."""
    return numpy.interp(numpy.linspace(0, 4, MELS), numpy.arange(5), rng.uniform(-reach, reach, 5))


def _shift(mel: numpy.ndarray, factor: float) -> numpy.ndarray:
    places = numpy.interp(_centres() / factor, _centres(), numpy.arange(MELS))
    low = numpy.minimum(places.astype(int), MELS - 2)
    share = (places - low).astype(numpy.float32)
    return mel[:, low] * (1 - share) + mel[:, low + 1] * share


def _centres() -> numpy.ndarray:
    bank = mel_bank().numpy()
    return (bank * numpy.arange(len(bank))[:, None]).sum(0) / bank.sum(0)
