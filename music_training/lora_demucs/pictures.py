"""The tables, pictures and players of the notebook."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy
import soundfile

from .. import files, runs
from .tracks import StemTrack

CLIP = 8.0  # seconds of the clips to listen to


def image(figure):
    """A matplotlib figure as a picture that any notebook shows, without pyplot and its state."""
    from IPython.display import Image

    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100)
    return Image(stream.getvalue())


def rank_summary(table):
    """The rank table by part of the model: layers, ranks from ... to, parameters, share of all adapter parameters."""
    rows = table[table["layer"] != "all"].copy()
    parts = rows["layer"].str.split(".").str
    rows["part"] = parts[0] + "." + parts[1].where(parts[0] != "crosstransformer", "*")
    grouped = rows.groupby("part", sort=False)
    made = grouped.agg(layers=("layer", "size"), least=("rank", "min"), most=("rank", "max"), parameters=("parameters", "sum"))
    made["share of adapter %"] = (100 * made["parameters"] / made["parameters"].sum()).round(1)
    return made


def curves(run: Path):
    """Loss over the steps of a run, and the held-out nSDR of each source."""
    from matplotlib.figure import Figure

    table = runs.metrics_table(run)
    figure = Figure(figsize=(12, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    loss = table["loss"].dropna()
    left.plot(loss.index, loss)
    left.set(xlabel="step", ylabel="loss, training")
    for name in [column for column in table if column.startswith("val_nsdr_")]:
        line = table[name].dropna()
        right.plot(line.index, line, "o-", label=name.removeprefix("val_nsdr_"), markersize=3)
    right.axhline(0, color="#999999", linewidth=0.8)
    right.set(xlabel="step", ylabel="nSDR, held out (dB)")
    right.legend(fontsize=8, ncols=3)
    return image(figure)


def write_clips(made, track: StemTrack, folder: Path, seconds: float = CLIP) -> dict[str, dict[str, Path]]:
    """Write clips of a track's middle: ``{source: {mixture, base, adapted, truth: file}}``; base where it has that stem's parent."""
    from . import separation

    model, info = made.model, made.known["default"]
    frames = min(track.frames, int(seconds * model.samplerate))
    true = track.read((track.frames - frames) // 2, frames, info.sources)
    mixture = true.sum(0)
    made.activate("default")
    adapted = separation.separate(model, mixture)
    with made.disabled():
        plain = dict(zip(model.sources, separation.separate(model, mixture), strict=True))
    gain = 0.9 / max(float(numpy.abs(mixture).max()), 1e-6)
    found: dict[str, dict[str, Path]] = {}
    for place, source in enumerate(info.sources):
        versions = {"mixture": mixture, "base": plain[info.parents[source]], "adapted": adapted[place], "truth": true[place]}
        found[source] = {}
        for name, samples in versions.items():
            target = folder / f"{source}_{name}.wav"
            with files.atomic(target) as temporary:
                soundfile.write(temporary, (gain * samples).T, model.samplerate, "PCM_16", format="WAV")
            found[source][name] = target
    return found


def players(clips: dict[str, dict[str, Path]]):
    """A table with a player for each stem: mixture, base (the stem it started from), adapted, truth."""
    import base64
    import html

    from IPython.display import HTML

    names = list(next(iter(clips.values())))
    rows = ["<tr><th></th>" + "".join(f"<th>{html.escape(name)}</th>" for name in names) + "</tr>"]
    for source, versions in clips.items():
        cells = []
        for path in versions.values():
            content = base64.b64encode(path.read_bytes()).decode()
            cells.append(f'<td><audio controls preload="none" style="width:190px" src="data:audio/wav;base64,{content}"></audio></td>')
        rows.append(f"<tr><th>{html.escape(source)}</th>{''.join(cells)}</tr>")
    return HTML(f"<table>{''.join(rows)}</table>")


def spectrograms(clips: dict[str, dict[str, Path]], sources: Sequence[str] | None = None):
    """Spectrograms of the chosen stems (default: all): base, adapted, truth side by side."""
    from matplotlib.figure import Figure

    chosen = list(sources or clips)
    versions = ("base", "adapted", "truth")
    figure = Figure(figsize=(12, 1.7 * len(chosen)), layout="constrained")
    axes = figure.subplots(len(chosen), len(versions), sharex=True, sharey=True, squeeze=False)
    for row, source in zip(axes, chosen, strict=True):
        for axis, name in zip(row, versions, strict=True):
            samples, rate = soundfile.read(clips[source][name], always_2d=True)
            with numpy.errstate(divide="ignore"):  # silence is as dark as it gets
                axis.specgram(samples.mean(1) + 1e-7, NFFT=1024, noverlap=512, Fs=rate, vmin=-140, vmax=-40)
            axis.set_title(f"{source}: {name}", fontsize=8)
            axis.tick_params(labelsize=7)
    return image(figure)
