"""The pictures and tables of the notebook: a track, the training's curves, the scores, a prediction."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy

from .. import files, runs
from ..library import audio
from . import LABELS, writers
from .data import AnnotatedTrack
from .decoding import Structure

RATE = 8000  # Hz, of the waveform that is drawn


def image(figure):
    """A matplotlib figure as a picture that any notebook shows, without pyplot and its state."""
    from IPython.display import Image

    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100)
    return Image(stream.getvalue())


def annotated(track: AnnotatedTrack):
    """An annotated track: waveform, sections in colour, beats."""
    samples, _ = audio.read(track.audio, RATE)
    return image(writers.plot(structure_of(track), samples, RATE, title=track.id))


def structure_of(track: AnnotatedTrack) -> Structure:
    """A track's annotation in the form of a prediction; beats that are no downbeats have the position 2."""
    positions = numpy.where(numpy.isin(track.beats, track.downbeats), 1, 2)
    spans = [(*interval, name) for interval, name in zip(track.intervals, track.labels, strict=True)]
    return Structure(track.bpm or 0.0, track.beats, positions, spans, track.duration)


def library_table(tracks: Sequence[AnnotatedTrack]):
    """What there is to learn from: tracks, artists, minutes, sections by label."""
    import pandas

    counts = Counter(name for track in tracks for name in track.labels)
    row = {"tracks": len(tracks), "artists": len({track.artist for track in tracks})}
    row |= {"minutes": round(sum(track.duration for track in tracks) / 60, 1), "beats": sum(len(track.beats) for track in tracks)}
    others = sum(count for name, count in counts.items() if name not in LABELS)
    row |= {f"{name} sections": counts[name] for name in LABELS} | ({"unlabelled sections": others} if others else {})
    return pandas.DataFrame([row], index=["annotated"]).T


def curves(run: Path):
    """Losses over the steps of a run, training and validation, and the learning rate."""
    from matplotlib.figure import Figure

    table = runs.metrics_table(run)
    figure = Figure(figsize=(12, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in [column for column in table if column.endswith("loss") and not column.startswith("val_")]:
        line = table[name].dropna()
        left.plot(line.index, line, label=name.removesuffix("_loss") if name != "loss" else "total", linewidth=2 if name == "loss" else 1)
    if "val_loss" in table:
        line = table["val_loss"].dropna()
        left.plot(line.index, line, "ko", label="total, held out")
    left.set(xlabel="step", ylabel="loss", yscale="log")
    left.legend(fontsize=8, ncols=2)
    rate = table["learning_rate"].dropna()
    right.plot(rate.index, rate)
    right.set(xlabel="step", ylabel="learning rate")
    return image(figure)


def score_table(scores: dict):
    """The summary of an evaluation: mean and 95% interval of each metric."""
    import pandas

    return pandas.DataFrame(scores["summary"]).T[["mean", "low", "high"]].rename(columns={"low": "95% from", "high": "to"}).round(3)


def predicted(run: Path, track: AnnotatedTrack):
    """A prediction under ``run/predictions`` drawn over the track's annotation, where it has one."""
    content = files.read_json(run / "predictions" / f"{track.audio.stem}.json")
    samples, _ = audio.read(track.audio, RATE)
    spans = [(item["start"], item["end"], item["label"]) for item in content["segments"]]
    duration = len(samples) / RATE
    structure = Structure(content["bpm"], numpy.array(content["beats"]), numpy.array(content["beat_positions"]), spans, duration)
    return image(writers.plot(structure, samples, RATE, reference=track if len(track.starts) else None))
