"""Separation quality of one stem, in dB, on numpy arrays ``[C, n]``; each metric is named, for they differ by decibels.

``nsdr``      energy ratio over the whole track (the measure of the Music Demixing Challenges, also called uSDR)
``sdr_chunks`` museval's SDR: the same ratio in windows of 1 s, median over those in which the stem sounds
``si_sdr``    invariant to the estimate's scale (Le Roux et al. 2019)

A stem that is silent in the reference has no ratio: NaN, and ``leak`` says how loud the estimate is against the mixture.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy

SILENT = 1e-7  # mean square under which a reference counts as silent (-70 dB)
METRICS = ("nsdr", "sdr_chunks", "si_sdr")


def nsdr(reference: numpy.ndarray, estimate: numpy.ndarray) -> float:
    """10 log10 of the reference's energy over the error's; NaN for a silent reference. A silent estimate has 0 dB."""
    if silent(reference):
        return math.nan
    return _ratio(_energy(reference), _energy(reference - estimate))


def sdr_chunks(reference: numpy.ndarray, estimate: numpy.ndarray, sample_rate: int, seconds: float = 1.0) -> float:
    """Median over windows of the energy ratio, as museval gives it; windows where either signal is all zero are left out.

    BSS Eval's SDR of images (Vincent et al. 2007) has the whole error in its denominator, so its filters do not matter.
    """
    size = int(seconds * sample_rate)
    values = []
    for start in range(0, reference.shape[1] - size + 1, size):
        true, found = reference[:, start : start + size], estimate[:, start : start + size]
        if true.any() and found.any():
            values.append(_ratio(_energy(true), _energy(true - found)))
    return float(numpy.median(values)) if values else math.nan


def si_sdr(reference: numpy.ndarray, estimate: numpy.ndarray) -> float:
    """Energy ratio after the best scaling of the reference; NaN for a silent reference."""
    if silent(reference):
        return math.nan
    scale = float(numpy.vdot(reference, estimate).real) / _energy(reference)
    return _ratio(scale * scale * _energy(reference), _energy(scale * reference - estimate))


def silent(samples: numpy.ndarray) -> bool:
    """Whether a stem counts as silent."""
    return _energy(samples) / max(samples.size, 1) < SILENT


def score(true: numpy.ndarray, found: numpy.ndarray, sources: Sequence[str], sample_rate: int) -> list[dict]:
    """A row for each source of a track, stems ``[S, C, n]``: the metrics, whether it is silent, and its leak in dB."""
    loudness = _energy(true.sum(0))
    rows = []
    for name, reference, estimate in zip(sources, true, found, strict=True):
        row = {"source": name, "nsdr": nsdr(reference, estimate), "sdr_chunks": sdr_chunks(reference, estimate, sample_rate)}
        row |= {"si_sdr": si_sdr(reference, estimate), "silent": silent(reference)}
        row["leak"] = _ratio(_energy(estimate), loudness) if row["silent"] else math.nan
        rows.append(row)
    return rows


def means(rows: Iterable[dict], metric: str = "nsdr") -> dict[str, float]:
    """Mean over tracks of each source's metric; silent stems do not count."""
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(row["source"], [])
        if not math.isnan(row[metric]):
            values[row["source"]].append(row[metric])
    return {name: float(numpy.mean(found)) if found else math.nan for name, found in values.items()}


def split_bands(samples: numpy.ndarray, sample_rate: int, crossover: float) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Below and above ``crossover`` (Hz), zero phase; both add up to the samples. A cheap way to part kick and hi-hat."""
    from scipy.signal import butter, sosfiltfilt

    low = sosfiltfilt(butter(4, crossover, fs=sample_rate, output="sos"), samples, axis=-1).astype(numpy.float32)
    return low, samples - low


def _energy(samples: numpy.ndarray) -> float:
    flat = samples.astype(numpy.float64, copy=False).ravel()
    return float(flat @ flat)


def _ratio(signal: float, error: float) -> float:
    return 10 * math.log10((signal + 1e-12) / (error + 1e-12))
