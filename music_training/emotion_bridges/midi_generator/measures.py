"""What can be measured of a score: tempo, density, register, mode, loudness, pitch-class entropy, groove consistency.

Drums count for density, loudness and groove only. Where something cannot be measured (no pitched note, one bar) its
value is 0.
"""

from __future__ import annotations

import numpy
import symusic

from .tokenizer import TICKS, bar_starts

NAMES = (
    "tempo", "notes_per_second", "notes_per_beat", "register", "range", "mode", "loudness", "pitch_class_entropy", "groove_consistency",
    "polyphony",
)  # fmt: skip
# How well each pitch class fits a major or minor key (probe tone ratings; Krumhansl & Kessler 1982)
MAJOR = numpy.array([6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88])
MINOR = numpy.array([6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17])


def notes(score: symusic.Score, drums: bool = True) -> numpy.ndarray:
    """Notes ``[n, 4]``: onset and duration in quarter notes, pitch, velocity; sorted by onset and pitch."""
    parts = [
        numpy.stack([track.notes.numpy()[name].astype(numpy.float64) for name in ("time", "duration", "pitch", "velocity")], 1)
        for track in score.tracks
        if len(track.notes) and (drums or not track.is_drum)
    ]
    found = numpy.concatenate(parts) if parts else numpy.zeros((0, 4))
    found[:, :2] /= score.tpq
    return found[numpy.lexsort((found[:, 2], found[:, 0]))]


def pitch_classes(score: symusic.Score) -> numpy.ndarray:
    """Share of each pitch class in the time that pitched notes sound, ``[12]``."""
    found = notes(score, drums=False)
    weights = numpy.bincount(found[:, 2].astype(int) % 12, found[:, 1], minlength=12)
    return weights / max(weights.sum(), 1e-9)


def key_scores(score: symusic.Score) -> numpy.ndarray:
    """Correlation with every key, ``[2, 12]``: major and minor by tonic (Krumhansl & Schmuckler)."""
    share = pitch_classes(score)
    if share.std() == 0:
        return numpy.zeros((2, 12))
    return numpy.array([[numpy.corrcoef(share, numpy.roll(profile, tonic))[0, 1] for tonic in range(12)] for profile in (MAJOR, MINOR)])


def key_of(score: symusic.Score) -> tuple[int, bool]:
    """The most likely key: tonic (0 is C) and whether it is major."""
    minor, tonic = divmod(int(key_scores(score).argmax()), 12)
    return tonic, not minor


def tempo_of(score: symusic.Score) -> float:
    """The tempo that lasts longest, in bpm; 120 where the score says none, as in MIDI."""
    if not len(score.tempos):
        return 120.0
    times = [tempo.time for tempo in score.tempos] + [max(score.end(), score.tempos[-1].time + 1)]
    return max(zip(numpy.diff(times).tolist(), [tempo.qpm for tempo in score.tempos], strict=True))[1]


def measure(score: symusic.Score, tonic: int | None = None) -> dict[str, float]:
    """All measures of a score by their names.

    ``mode`` lies in [-1, 1]: with a known ``tonic`` how much of its third, sixth and seventh is major, by time; else the
    difference between the best major and the best minor key's correlation.
    """
    everything, pitched = notes(score), notes(score, drums=False)
    if not len(everything):
        return dict.fromkeys(NAMES, 0.0)
    beats = max(float((everything[:, 0] + everything[:, 1]).max()), 1.0)
    tempo = tempo_of(score)
    share = pitch_classes(score)
    present = share[share > 0]
    onsets = len(numpy.unique(numpy.rint(pitched[:, 0] * TICKS)))
    return {
        "tempo": tempo,
        "notes_per_second": len(everything) / (beats * 60 / tempo),
        "notes_per_beat": len(everything) / beats,
        "register": float(numpy.average(pitched[:, 2])) if len(pitched) else 0.0,
        "range": float(pitched[:, 2].std()) if len(pitched) else 0.0,
        "mode": _mode(score, share, tonic),
        "loudness": float(everything[:, 3].mean()),
        "pitch_class_entropy": float(-(present * numpy.log2(present)).sum()) if len(present) else 0.0,
        "groove_consistency": groove_consistency(score),
        "polyphony": len(pitched) / onsets if onsets else 0.0,
    }


def groove_consistency(score: symusic.Score) -> float:
    """How alike neighbouring bars' onsets are: 1 - mean Hamming distance on a grid of sixteenths (Wu & Yang 2020)."""
    found = notes(score)
    if not len(found):
        return 0.0
    ticks = numpy.rint(found[:, 0] * TICKS)
    starts = bar_starts(score, int(ticks.max()) + 1)
    grids = []
    for start in starts:
        inside = ticks[(ticks >= start) & (ticks < start + 4 * TICKS)] - start
        grid = numpy.zeros(16, bool)
        grid[numpy.minimum(numpy.rint(inside / (TICKS / 4)).astype(int), 15)] = True
        grids.append(grid)
    return float(1 - numpy.mean([(one ^ other).mean() for one, other in zip(grids, grids[1:], strict=False)])) if len(grids) > 1 else 0.0


def _mode(score: symusic.Score, share: numpy.ndarray, tonic: int | None) -> float:
    if tonic is None:
        major, minor = key_scores(score)
        return float(major.max() - minor.max())
    turned = numpy.roll(share, -tonic)
    bright, dark = turned[[4, 9, 11]].sum(), turned[[3, 8, 10]].sum()
    return float((bright - dark) / max(bright + dark, 1e-9))
