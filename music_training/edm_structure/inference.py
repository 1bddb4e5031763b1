"""Activations of whole tracks: overlapping windows over a stream of features, so that memory does not grow with the track.

A ladder, each rung usable alone: :func:`windows` (features to activations, as they come), :func:`activations` (the same
joined), :func:`of_file` (a file's windows), :func:`predict` (a file to its :class:`~music_training.edm_structure.decoding.Structure`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy
import torch

from .. import files
from ..library import audio
from ..trainer import checkpoints
from . import decoding, features
from .config import EdmSettings

SECONDS, OVERLAP = 60.0, 12.0  # of a window; at each inner edge the overlap's half is not used
MIDDLE = slice(8, 24)  # mel bands of 370 to 1,330 Hz


@dataclass
class Predictor:
    """A trained model with the settings that it was trained with."""

    model: torch.nn.Module
    settings: EdmSettings
    decoding: decoding.Decoding = field(default_factory=decoding.Decoding)

    @property
    def frame_rate(self) -> float:
        """Frames of activations a second."""
        return self.model.frame_rate


def load(run_or_checkpoint: Path | str, device: str = "cpu") -> Predictor:
    """The model of a run folder, a checkpoint folder or a weights file, on ``device``, ready to predict."""
    from .. import config, runs
    from . import model

    path = Path(run_or_checkpoint).expanduser()
    checkpoint = checkpoints.find(path if path.exists() else runs.find(run_or_checkpoint))
    settings = config.load(EdmSettings, _config_of(checkpoint))
    made = model.build(settings)
    checkpoints.load_weights(made, checkpoint, averaged=True)
    return Predictor(made.to(device).eval(), settings)


def predict(predictor: Predictor, path: Path | str) -> decoding.Structure:
    """A file's structure."""
    decoder = decoding.Decoder(predictor.frame_rate, predictor.decoding)
    counted = [0]
    for window in of_file(predictor, path, counted):
        decoder.add(window)
    return decoder.finish(counted[0] / features.SAMPLE_RATE)


def of_file(predictor: Predictor, path: Path | str, counted: list[int] | None = None) -> Iterator[dict[str, numpy.ndarray]]:
    """Activations of an audio file, window by window; ``counted[0]`` is raised by the samples read. UserError if it cannot be decoded."""
    from ..errors import UserError

    counted = [0] if counted is None else counted

    def counting(blocks: Iterable[numpy.ndarray]) -> Iterator[numpy.ndarray]:
        for block in blocks:
            counted[0] += len(block)
            yield block

    try:
        with audio.open_stream(path) as opened:
            blocks = counting(audio.mono(opened, features.SAMPLE_RATE))
            waveform = hasattr(predictor.model.backbone, "from_samples")
            yield from windows(predictor, blocks if waveform else features.stream(blocks), waveform)
    except audio.DecodeError as error:
        raise UserError(f"{path}: cannot be decoded ({error})") from None


def activations(predictor: Predictor, blocks: Iterable[numpy.ndarray], waveform: bool = False) -> dict[str, numpy.ndarray]:
    """The joined :func:`windows`: ``[T]`` or ``[T, n]`` each."""
    return join(windows(predictor, blocks, waveform))


def join(parts: Iterable[dict[str, numpy.ndarray]]) -> dict[str, numpy.ndarray]:
    """One array a name, of dicts of arrays that follow each other."""
    parts = list(parts)
    return {name: numpy.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else ())}


def windows(predictor: Predictor, blocks: Iterable[numpy.ndarray], waveform: bool = False) -> Iterator[dict[str, numpy.ndarray]]:
    """Activations of overlapping windows of ``blocks`` (features ``[n, F]``, or samples ``[n]`` for MERT), each cut to its own part."""
    rate = features.SAMPLE_RATE if waveform else features.FRAME_RATE
    frames_per_unit = predictor.frame_rate / rate
    size, overlap = round(SECONDS * rate), round(OVERLAP * rate)
    held: list[numpy.ndarray] = []
    length, first = 0, True

    def run(window: numpy.ndarray, last: bool) -> dict[str, numpy.ndarray]:
        low = 0 if first else round(overlap / 2 * frames_per_unit)
        high = None if last else round((len(window) - overlap / 2) * frames_per_unit)
        return {name: values[low:high] for name, values in _forward(predictor, window).items()}

    for block in blocks:
        held.append(block)
        length += len(block)
        while length > size:
            joined = numpy.concatenate(held)
            yield run(joined[:size], last=False)
            first = False
            held = [joined[size - overlap :]]
            length = len(held[0])
    if length and (first or length > overlap / 2):
        yield run(numpy.concatenate(held), last=True)


@torch.inference_mode()
def _forward(predictor: Predictor, window: numpy.ndarray) -> dict[str, numpy.ndarray]:
    inputs = torch.from_numpy(numpy.ascontiguousarray(window, numpy.float32))
    device = next(predictor.model.parameters()).device
    outputs = predictor.model((inputs if inputs.ndim == 1 else inputs[:, : features.MELS]).unsqueeze(0).to(device))
    found = {}
    for name, value in outputs.items():
        value = value[0].float()
        found[name] = (value if name == "energy" else value.softmax(1) if name == "label" else value.sigmoid()).cpu().numpy()
    if inputs.ndim == 2:
        magnitude = numpy.exp(inputs.numpy())
        for name, band in (("bass", magnitude[:, features.MELS : features.MELS + 1]), ("mid", magnitude[:, MIDDLE])):
            found[name] = numpy.maximum(numpy.diff(band, axis=0, prepend=band[:1]), 0).sum(1)
        mel = inputs[:, : features.MELS].clamp(min=-8.0)
        found["spectrum"] = mel.reshape(len(mel), 16, -1).mean(2).half().numpy()
    return found


def _config_of(checkpoint: Path) -> Path:
    from ..errors import UserError

    for folder in (checkpoint.parent.parent, checkpoint):
        if (folder / "config.yaml").is_file():
            return folder / "config.yaml"
    raise UserError(f"{checkpoint}: there is no config.yaml beside it; give the run's folder, {files.relative(checkpoint.parent.parent)}")
