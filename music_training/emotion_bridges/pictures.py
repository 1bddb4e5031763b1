"""The pictures and tables of the notebook: clouds, piano rolls, curves, scores."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy
import symusic

from .. import runs


def image(figure):
    """A matplotlib figure as a picture that any notebook shows, without pyplot and its state."""
    from IPython.display import Image

    return Image(png(figure))


def png(figure) -> bytes:
    """A figure as PNG."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100)
    return stream.getvalue()


def _figure(width: float, height: float):
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def target(clip):
    """How a target comes to be: the clip's levels, its density, and the cloud drawn from it."""
    from .spectocloud import targets

    level = targets.levels(clip.mel)
    figure = _figure(12, 3.6)
    left, middle = figure.add_subplot(131), figure.add_subplot(132)
    for axes, values, title in ((left, level, "level"), (middle, targets.density(level), "density")):
        axes.imshow(values.T, origin="lower", aspect="auto", cmap="magma")
        axes.set(title=title, xlabel="frame (1/25 s)", ylabel="mel band")
    _cloud(figure.add_subplot(133, projection="3d"), clip.cloud, clip.colours, f"cloud of {clip.entry.id or 'the clip'}")
    return image(figure)


def clouds(pairs: Sequence[tuple[str, numpy.ndarray, numpy.ndarray]]):
    """Clouds side by side: title, positions, colours of each."""
    figure = _figure(4.2 * len(pairs), 4)
    for number, (title, cloud, colours) in enumerate(pairs, start=1):
        _cloud(figure.add_subplot(1, len(pairs), number, projection="3d"), cloud, colours, title)
    return image(figure)


def _cloud(axes, cloud: numpy.ndarray, colours: numpy.ndarray, title: str) -> None:
    axes.scatter(cloud[:, 0], cloud[:, 1], cloud[:, 2], c=numpy.clip(colours, 0, 1), s=3, depthshade=False)
    axes.set(title=title, xlabel="time", ylabel="frequency", zlabel="energy", xlim=(-1, 1), ylim=(-1, 1), zlim=(-1, 1))


def curves(*names: Path):
    """Losses over the steps of runs, training and validation."""
    figure = _figure(6 * len(names), 3)
    for number, run in enumerate(names, start=1):
        table, axes = runs.metrics_table(run), figure.add_subplot(1, len(names), number)
        for name in ("loss", "val_loss"):
            if name in table:
                line = table[name].dropna()
                axes.plot(line.index, line, "o-" if name == "val_loss" else "-", label=name)
        axes.set(title=run.name, xlabel="step", ylabel="loss", yscale="log")
        axes.legend(fontsize=8)
    return image(figure)


def cloud_table(found: dict):
    """The scores of Spectocloud beside their baselines."""
    import pandas

    table = pandas.DataFrame(found["clouds"]).T
    table["share of mean cloud"] = table["chamfer"] / table["chamfer"]["mean cloud"]
    return table.round(4)


def midi_table(found: dict):
    """Perplexities beside their baselines, and the rank correlations of asked and estimated emotion."""
    import pandas

    rows = {f"perplexity, {name}": value for name, value in found["perplexity"].items()}
    rows |= {f"follows {name.replace('_', ', ')}": value for name, value in found["follows"].items()}
    rows |= {f"estimator on composed scores, {name}": found["estimator on composed scores"][name] for name in ("valence", "arousal")}
    return pandas.DataFrame({"value": rows}).round(3)


def measures_table(found: dict):
    """What was measured of the generated scores: means, and rank correlations with what was asked."""
    import pandas

    table = pandas.DataFrame(found["measures"]).T
    return table.rename(columns={"valence": "follows valence", "arousal": "follows arousal"}).round(2)


def piano_rolls(scores: Sequence[tuple[str, symusic.Score]]):
    """Piano rolls of scores in one row, with bars; colour is loudness."""
    return image(roll_figure(scores))


def roll_figure(scores: Sequence[tuple[str, symusic.Score]]):
    """The figure of :func:`piano_rolls`."""
    from .midi_generator import measures
    from .midi_generator.tokenizer import TICKS, bar_starts

    figure = _figure(4 * len(scores), 3)
    for number, (title, score) in enumerate(scores, start=1):
        axes, found = figure.add_subplot(1, len(scores), number), measures.notes(score)
        if len(found):
            axes.barh(found[:, 2], found[:, 1], left=found[:, 0], height=0.9, color=_shades(found[:, 3]))
            for start in bar_starts(score, int((found[:, 0] + found[:, 1]).max() * TICKS) + 1):
                axes.axvline(start / TICKS, color="#bbbbbb", lw=0.6, zorder=0)
        axes.set(title=title, xlabel="quarter notes", ylabel="pitch")
    return figure


def _shades(velocity: numpy.ndarray) -> list[tuple[float, float, float]]:
    part = numpy.clip(velocity / 127, 0, 1)
    return [(0.75 - 0.65 * one, 0.8 - 0.5 * one, 0.9 - 0.2 * one) for one in part]
