"""Scores as mir_eval computes them. Times in seconds; boundaries include a track's start and end, as in the literature.

``HR.5F`` and ``HR3F``: F-measure of boundaries hit within 0.5 and 3 s; ``PWF``: pairwise frame clustering;
``label_accuracy``: share of time with the right label; ``beat_F1``, ``downbeat_F1``: within 70 ms, nothing trimmed.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy

TEMPO_RATIOS = (0.5, 2.0, 1 / 3, 3.0, 2 / 3, 1.5)


def segments(reference: numpy.ndarray, reference_labels: list[str], estimate: numpy.ndarray, labels: list[str]) -> dict[str, float]:
    """HR.5F, HR3F, PWF and label accuracy of estimated intervals ``[n, 2]`` with their labels."""
    import mir_eval

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, _, half = mir_eval.segment.detection(reference, estimate, window=0.5, trim=False)
        _, _, three = mir_eval.segment.detection(reference, estimate, window=3.0, trim=False)
        fitted, fitted_labels = mir_eval.util.adjust_intervals(estimate, list(labels), t_min=0.0, t_max=reference.max())
        aligned, aligned_labels = mir_eval.util.adjust_intervals(reference, list(reference_labels), t_min=0.0)
        _, _, pairwise = mir_eval.segment.pairwise(aligned, aligned_labels, fitted, fitted_labels)
    accuracy = _label_accuracy(aligned, aligned_labels, fitted, fitted_labels)
    return {"HR.5F": half, "HR3F": three, "PWF": pairwise, "label_accuracy": accuracy}


def beats(reference: numpy.ndarray, estimate: numpy.ndarray) -> float:
    """F-measure of beats (or downbeats) within 70 ms; 1 where there are none to find and none were found."""
    import mir_eval

    if not len(reference) and not len(estimate):
        return 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(mir_eval.beat.f_measure(numpy.asarray(reference, float), numpy.asarray(estimate, float)))


def beat_errors(reference: numpy.ndarray, estimate: numpy.ndarray) -> dict[str, bool]:
    """Whether an estimate fails in one of the two usual ways: another metrical level, or half a beat off."""
    if min(len(reference), len(estimate)) < 3 or beats(reference, estimate) > 0.8:
        return {"tempo_octave_error": False, "half_beat_error": False}
    ratio = numpy.median(numpy.diff(reference)) / numpy.median(numpy.diff(estimate))
    octave = any(abs(ratio / other - 1) < 0.04 for other in TEMPO_RATIOS)
    shifted = estimate[:-1] + numpy.diff(estimate) / 2
    return {"tempo_octave_error": bool(octave), "half_beat_error": not octave and beats(reference, shifted) > 0.8}


def summarise(rows: list[Mapping[str, float]], seed: int = 0, draws: int = 2000) -> dict[str, dict[str, float]]:
    """Mean of each metric over tracks with its 95% confidence interval (bootstrap over tracks): ``mean``, ``low``, ``high``, ``tracks``."""
    rng = numpy.random.default_rng(seed)
    names = {name: None for row in rows for name, value in row.items() if isinstance(value, (int, float, numpy.floating))}
    result = {}
    for name in names:
        values = numpy.array([float(row[name]) for row in rows if row.get(name) is not None and row[name] == row[name]])
        if len(values):
            means = values[rng.integers(0, len(values), (draws, len(values)))].mean(1)
            low, high = numpy.percentile(means, [2.5, 97.5])
            result[name] = {"mean": float(values.mean()), "low": float(low), "high": float(high), "tracks": len(values)}
    return result


def _label_accuracy(reference: numpy.ndarray, reference_labels: list[str], estimate: numpy.ndarray, labels: list[str]) -> float:
    """Share of the reference's time in which both carry the same label."""
    edges = numpy.unique(numpy.concatenate([reference.ravel(), estimate.ravel()]))
    edges = edges[(edges >= reference.min()) & (edges <= reference.max())]
    middles, lengths = (edges[1:] + edges[:-1]) / 2, numpy.diff(edges)
    wanted = [reference_labels[place] for place in _containing(reference, middles)]
    found = [labels[place] for place in _containing(estimate, middles)]
    same = numpy.array([one == other for one, other in zip(wanted, found, strict=True)])
    return float((same * lengths).sum() / lengths.sum()) if len(lengths) else 0.0


def _containing(intervals: numpy.ndarray, times: numpy.ndarray) -> numpy.ndarray:
    return numpy.clip(numpy.searchsorted(intervals[:, 0], times, side="right") - 1, 0, len(intervals) - 1)
