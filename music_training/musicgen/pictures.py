"""Pictures of a training run and of a reconstruction, for the notebooks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .. import runs
from ..errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def loss_curves(run: str, names: tuple[str, ...]) -> Figure:
    """Training and validation curves of the named metrics (those that the run logged) over steps."""
    import pandas
    from matplotlib import pyplot

    rows = pandas.DataFrame(runs.read_metrics(runs.folder() / run))
    shown = [name for name in names if name in rows]
    if not shown:
        raise UserError(f"run {run}: none of {', '.join(names)} in its metrics.jsonl yet")
    figure, axes = pyplot.subplots(1, len(shown), figsize=(4.5 * len(shown), 3), squeeze=False, layout="constrained")
    for axis, name in zip(axes[0], shown, strict=True):
        for stage, part in rows.dropna(subset=[name]).groupby("stage"):
            axis.plot(part["step"], part[name], "o-" if stage == "valid" else "-", label=stage, alpha=0.8, markersize=4)
        axis.set(title=name, xlabel="step")
        axis.grid(alpha=0.3)
    axes[0][0].legend()
    pyplot.close(figure)
    return figure


def cross_entropies(figures: dict[str, float]) -> Figure:
    """Bars of the cross-entropies (nats per token, lower is better) that ``evaluation.against_unigram`` returned."""
    from matplotlib import pyplot

    names = ["language model", "unigram model", "guessing"]
    figure, axis = pyplot.subplots(figsize=(7, 1.8), layout="constrained")
    axis.bar_label(axis.barh(names[::-1], [figures[name] for name in names[::-1]], color=["#bbb", "#999", "#47a"]), fmt="%.3f", padding=3)
    axis.set(xlabel=f"nats per token on {figures['held-out clips']} held-out clips", xlim=(0, 1.12 * figures["guessing"]))
    pyplot.close(figure)
    return figure


def reconstruction(original: Path, rebuilt: Path, sample_rate: int = 32000) -> Figure:
    """Waveform, spectrogram and difference of an original and its reconstruction (two WAV files of one length)."""
    import numpy
    import soundfile
    from matplotlib import pyplot

    first, second = (soundfile.read(path, dtype="float32")[0] for path in (original, rebuilt))
    figure, axes = pyplot.subplots(2, 3, figsize=(13, 4.5), sharex=True, layout="constrained")
    for column, (title, signal) in enumerate((("original", first), ("reconstructed", second), ("difference", first - second))):
        seconds = [index / sample_rate for index in range(0, len(signal), 16)]
        axes[0][column].plot(seconds, signal[::16], linewidth=0.4)
        axes[0][column].set(title=title, ylim=(-1, 1))
        with numpy.errstate(divide="ignore"):  # silence is as dark as it gets
            axes[1][column].specgram(signal + 1e-9, NFFT=1024, noverlap=512, Fs=sample_rate, vmin=-140, vmax=-30)
        axes[1][column].set(xlabel="seconds", ylabel="Hz")
    pyplot.close(figure)
    return figure
