"""Structure of electronic dance music: section boundaries, energy, beats, downbeats and labels of a track."""

from ..library.annotations import LABELS

__all__ = ["LABELS"]  # in the one order that targets, heads and predictions share
