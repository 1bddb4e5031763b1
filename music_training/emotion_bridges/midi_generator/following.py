"""Does generated music follow the emotion? Measured by an estimator that knows neither the generator nor its scores.

The estimator is a ridge regression from the hand-made measures of :mod:`.measures` to valence and arousal, fitted to
scores composed with another seed by other artists. The asked and the estimated values are compared by Spearman's rank
correlation, and once more with the conditions shuffled: what remains then is chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import symusic
from scipy import stats

from .. import studio
from ..config import MidiSettings
from . import data, measures

ESTIMATOR_SEED = 77_001
GRID = (-0.8, -0.4, 0.0, 0.4, 0.8)


@dataclass(frozen=True)
class Estimator:
    """Linear in standardised measures: ``weights`` ``[measures + 1, 2]`` give valence and arousal."""

    mean: numpy.ndarray
    scale: numpy.ndarray
    weights: numpy.ndarray

    def __call__(self, scores: Sequence[symusic.Score]) -> numpy.ndarray:
        """Valence and arousal of scores in C, ``[n, 2]``."""
        values = (features(scores) - self.mean) / self.scale
        return numpy.clip(numpy.concatenate([values, numpy.ones((len(values), 1))], 1) @ self.weights, -1.5, 1.5)


def features(scores: Sequence[symusic.Score]) -> numpy.ndarray:
    """The measures of scores in C, ``[n, measures]``."""
    return numpy.array([list(measures.measure(score, tonic=0).values()) for score in scores])


def reference(settings: MidiSettings, artists: int = 40, seed: int = ESTIMATOR_SEED) -> tuple[list[symusic.Score], numpy.ndarray]:
    """Excerpts of scores composed with a seed of their own, as the generator's settings cut them, and their valence and arousal."""
    scores, felt = [], []
    for song, score in studio.songs(seed, range(artists), 2):
        plain, _, _ = data.prepared(score, settings, song.key)
        for cut in data.excerpts_of(plain, settings)[:6]:
            scores.append(cut)
            felt.append([song.emotion.valence, song.emotion.arousal])
    return scores, numpy.array(felt)


def fit(scores: Sequence[symusic.Score], felt: numpy.ndarray, ridge: float = 1.0) -> Estimator:
    """The estimator that predicts ``felt`` ``[n, 2]`` best."""
    values = features(scores)
    mean, scale = values.mean(0), values.std(0) + 1e-6
    inputs = numpy.concatenate([(values - mean) / scale, numpy.ones((len(values), 1))], 1)
    penalty = ridge * numpy.eye(inputs.shape[1])
    penalty[-1, -1] = 0
    return Estimator(mean, scale, numpy.linalg.solve(inputs.T @ inputs + penalty, inputs.T @ felt))


def grid(repeats: int) -> numpy.ndarray:
    """The emotions that are asked for: valence x arousal on a 5 x 5 grid, ``[25 x repeats, 3]``."""
    points = [[valence, arousal, float(numpy.clip(0.5 + 0.32 * arousal, 0, 1))] for valence in GRID for arousal in GRID]
    return numpy.repeat(numpy.array(points), repeats, axis=0)


def correlations(asked: numpy.ndarray, estimated: numpy.ndarray, seed: int = 0) -> dict[str, float]:
    """Spearman's correlation of asked and estimated valence and arousal, and with the conditions shuffled (mean over 20)."""
    rng = numpy.random.default_rng(seed)
    found = {}
    for column, name in enumerate(("valence", "arousal")):
        found[name] = _rank(asked[:, column], estimated[:, column])
        found[f"{name}_shuffled"] = float(numpy.mean([_rank(rng.permutation(asked[:, column]), estimated[:, column]) for _ in range(20)]))
    return found


def _rank(asked: numpy.ndarray, estimated: numpy.ndarray) -> float:
    if numpy.ptp(estimated) == 0 or numpy.ptp(asked) == 0:
        return 0.0
    return float(stats.spearmanr(asked, estimated).statistic)


def measure_table(asked: numpy.ndarray, scores: Sequence[symusic.Score]) -> dict[str, dict[str, float]]:
    """For each measure its mean and its rank correlation with the valence and the arousal that were asked."""
    values = features(scores)
    return {
        name: {"mean": float(column.mean()), "valence": _rank(asked[:, 0], column), "arousal": _rank(asked[:, 1], column)}
        for name, column in zip(measures.NAMES, values.T, strict=True)
    }
