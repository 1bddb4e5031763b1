"""Scores of a model on annotated tracks: a row per track, a summary with confidence intervals."""

from __future__ import annotations

import numpy

from . import decoding, inference, metrics
from .data import AnnotatedTrack
from .inference import Predictor


def of_features(predictor: Predictor, track: AnnotatedTrack, features: numpy.ndarray) -> dict[str, float]:
    """Scores of one track from its features ``[T, F]``, or from its samples ``[n]`` for MERT."""
    found = inference.activations(predictor, [features], waveform=features.ndim == 1)
    return score(track, decoding.decode(found, predictor.frame_rate, track.duration, predictor.decoding))


def score(track: AnnotatedTrack, structure: decoding.Structure) -> dict[str, float]:
    """All metrics of a structure against the track's annotation; without annotated beats theirs are left out."""
    intervals = numpy.array([(start, end) for start, end, _ in structure.segments])
    row = metrics.segments(track.intervals, track.labels, intervals, [name for _, _, name in structure.segments])
    if len(track.beats):
        row["beat_F1"] = metrics.beats(track.beats, structure.beats)
        row |= {name: float(value) for name, value in metrics.beat_errors(track.beats, structure.beats).items()}
    if len(track.downbeats):
        row["downbeat_F1"] = metrics.beats(track.downbeats, structure.downbeats)
    return row
