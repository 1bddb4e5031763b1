"""What a prediction is written as: JSON in the shape of All-In-One, annotation YAML, JAMS, a plot, and audio with clicks."""

from __future__ import annotations

from pathlib import Path

import numpy

from .. import files
from ..library import annotations, audio
from ..library.annotations import Annotation
from .decoding import Structure

COLOURS = {"intro": "#8ecae6", "buildup": "#ffb703", "drop": "#e63946", "breakdown": "#90be6d", "outro": "#adb5bd"}


def to_json(structure: Structure, path: Path | str) -> dict:
    """bpm, beats, downbeats, beat_positions and segments (start, end, label), as All-In-One names them."""
    return {
        "path": str(path),
        "bpm": round(structure.bpm),
        "beats": [round(float(time), 3) for time in structure.beats],
        "downbeats": [round(float(time), 3) for time in structure.downbeats],
        "beat_positions": [int(position) for position in structure.beat_positions],
        "segments": [{"start": round(start, 3), "end": round(end, 3), "label": label} for start, end, label in structure.segments],
    }


def to_annotation(structure: Structure, path: Path | str) -> Annotation:
    """The prediction as an annotation of tier 3 (made by a model), with bar numbers."""
    pairs = zip(structure.beats.tolist(), structure.beat_positions.tolist(), strict=True)
    marks = [(start, label) for start, _, label in structure.segments]
    about = annotations.Metadata(tier=3, confidence=0.5, source="music_training.edm_structure")
    bpm = structure.bpm or None
    return annotations.from_marks(marks, {}, file=str(path), duration=structure.duration, bpm=bpm, beats=list(pairs), metadata=about)


def write(structure: Structure, path: Path | str, folder: Path) -> list[Path]:
    """Write ``<name>.yaml``, ``<name>.jams`` and, last, ``<name>.json`` for the audio file ``path``; returns the files."""
    stem, made = Path(path).stem, to_annotation(structure, path)
    return [
        annotations.write(made, folder / f"{stem}.yaml"),
        annotations.write_jams(made, folder / f"{stem}.jams"),
        files.write_json(folder / f"{stem}.json", to_json(structure, path)),
    ]


def plot(structure: Structure, samples: numpy.ndarray, rate: int, reference=None, title: str = ""):
    """A matplotlib figure: the waveform, sections in colour and beats; with a ``reference`` (an AnnotatedTrack) below it.

    ``samples`` is mono ``[n]`` at ``rate`` Hz.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 2.4 if reference is None else 4.2), layout="constrained")
    axes = figure.subplots(1 if reference is None else 2, 1, sharex=True, squeeze=False)[:, 0]
    _draw(axes[0], samples, rate, structure.segments, structure.beats, structure.downbeats, title or "predicted")
    if reference is not None:
        spans = [(*interval, name) for interval, name in zip(reference.intervals, reference.labels, strict=True)]
        _draw(axes[1], samples, rate, spans, reference.beats, reference.downbeats, "annotated")
    axes[-1].set_xlabel("seconds")
    return figure


def _draw(axis, samples, rate, segments, beats, downbeats, title: str) -> None:
    step = max(1, len(samples) // 3000)
    blocks = numpy.abs(samples[: len(samples) // step * step].reshape(-1, step)).max(1)
    axis.fill_between(numpy.arange(len(blocks)) * step / rate, -blocks, blocks, color="#333333", linewidth=0)
    for start, end, label in segments:
        axis.axvspan(start, end, color=COLOURS.get(label, "#dddddd"), alpha=0.45, linewidth=0)
        axis.text((start + end) / 2, 1.02, label, ha="center", va="bottom", fontsize=8, clip_on=True)
    axis.vlines(beats, -1, -0.85, color="#1d3557", linewidth=0.6)
    axis.vlines(downbeats, -1, -0.7, color="#1d3557", linewidth=1.0)
    axis.set(ylim=(-1, 1.2), yticks=[], xlim=(0, len(samples) / rate), ylabel=title)


def sonify(structure: Structure, path: Path | str, target: Path) -> Path:
    """Write the audio with a click on each beat, a higher one on downbeats and a chime on boundaries (44.1 kHz WAV)."""
    import soundfile

    rate = 44100
    samples, _ = audio.read(path, rate)
    samples = samples * 0.6
    for times, pitch, length in (
        (structure.beats[structure.beat_positions != 1], 1000.0, 0.03),
        (structure.downbeats, 1500.0, 0.04),
        (numpy.array([start for start, _, _ in structure.segments[1:]]), 660.0, 0.5),
    ):
        seconds = numpy.arange(int(length * rate)) / rate
        click = (0.5 * numpy.sin(2 * numpy.pi * pitch * seconds) * numpy.exp(-6 * seconds / length)).astype(numpy.float32)
        for time in times:
            place = round(float(time) * rate)
            part = click[: max(0, len(samples) - place)]
            samples[place : place + len(part)] += part
    with files.atomic(target) as temporary:
        soundfile.write(temporary, samples.clip(-1, 1), rate, format="WAV", subtype="PCM_16")
    return target
