"""Separates audio of any length with flat memory: overlapping windows, triangular weights, written as they are done.

The windows and weights are those of demucs' ``apply_model`` with ``shifts=0``. With shifts, the windows of several
grids that lie apart by a part of half a second are averaged: the same idea, without random numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy
import soundfile
import soxr
import torch

from .. import files
from ..errors import UserError
from ..library import audio
from .tracks import with_channels

GPU_BATCH = 4  # windows at once on a GPU; on a CPU one at a time is quicker


def separate_blocks(model, blocks: Iterable[numpy.ndarray], *, overlap: float = 0.25, shifts: int = 1, batch: int | None = None):
    """Yield stems ``[S, C, n]`` for mixture blocks ``[C, n]`` of any lengths, joined seamlessly; as many samples as went in."""
    return _Windows(model, overlap, shifts, batch).run(blocks)


def separate(model, mixture: numpy.ndarray, **options) -> numpy.ndarray:
    """Stems ``[S, C, n]`` of a whole mixture ``[C, n]``; ``options`` as in :func:`separate_blocks`."""
    parts = list(separate_blocks(model, [mixture], **options))
    return numpy.concatenate(parts, 2) if parts else numpy.zeros((len(model.sources), *mixture.shape), numpy.float32)


def separate_file(model, path: Path, folder: Path, *, two_stems: str | None = None, **options) -> list[Path]:
    """Write ``folder/<stem>.wav`` for each source of a file at the model's rate; with ``two_stems`` it and ``no_<stem>``."""
    names = list(model.sources)
    if two_stems is not None and two_stems not in names:
        raise UserError(f"two stems {two_stems!r}: the model has {', '.join(names)}")
    written = [two_stems, f"no_{two_stems}"] if two_stems else names
    targets = [folder / f"{name}.wav" for name in written]
    with files.atomic(folder) as temporary:
        temporary.mkdir()
        outputs = [soundfile.SoundFile(temporary / target.name, "w", model.samplerate, model.audio_channels, "FLOAT") for target in targets]
        try:
            for block in separate_blocks(model, _model_blocks(path, model), **options):
                if two_stems:
                    place = names.index(two_stems)
                    block = numpy.stack([block[place], block.sum(0) - block[place]])
                for output, samples in zip(outputs, block, strict=True):
                    output.write(samples.T)
        except audio.DecodeError as error:
            raise UserError(f"{path}: cannot be decoded ({error})") from None
        finally:
            for output in outputs:
                output.close()
    return targets


def _model_blocks(path: Path, model) -> Iterator[numpy.ndarray]:
    """A file as blocks ``[C, n]`` at the rate and with the channels that the model hears."""
    with audio.open_stream(path) as stream:
        same = stream.sample_rate == model.samplerate
        change = None if same else soxr.ResampleStream(stream.sample_rate, model.samplerate, stream.channels, dtype="float32")
        for block in stream.blocks:
            block = block.copy() if change is None else change.resample_chunk(block)
            yield with_channels(block.reshape(len(block), stream.channels).T, model.audio_channels)
        if change is not None:
            rest = change.resample_chunk(numpy.empty((0, stream.channels), numpy.float32), last=True)
            yield with_channels(rest.reshape(len(rest), stream.channels).T, model.audio_channels)


class _Windows:
    def __init__(self, model, overlap: float, shifts: int, batch: int | None):
        if not 0 <= overlap < 1:
            raise UserError(f"overlap {overlap:g}: a share of a window from 0 to below 1")
        if shifts < 1:
            raise UserError(f"shifts {shifts}: at least 1")
        self.model = model.eval()
        self.device = next(model.parameters()).device
        self.batch = batch or (1 if self.device.type == "cpu" else GPU_BATCH)
        self.size = int(model.samplerate * model.segment)
        self.stride = int((1 - overlap) * self.size)
        self.offsets = sorted(-round(place * 0.5 * model.samplerate / shifts) for place in range(shifts))
        half = numpy.arange(1, self.size // 2 + 1, dtype=numpy.float32)
        weight = numpy.concatenate([half, numpy.arange(self.size - self.size // 2, 0, -1, dtype=numpy.float32)])
        self.weight = weight / weight.max()

    def run(self, blocks: Iterable[numpy.ndarray]) -> Iterator[numpy.ndarray]:
        channels, sources = self.model.audio_channels, len(self.model.sources)
        margin = self.size + max(-self.offsets[0], 0)  # what is kept to the left of what is done
        heard = numpy.zeros((channels, 0), numpy.float32)
        first = done = total = 0  # frame number of heard[:, 0]; frames given out; frames heard
        summed, weights = numpy.zeros((sources, channels, 0), numpy.float32), numpy.zeros(0, numpy.float32)
        rounds, pending = 0, []  # the next windows are at rounds * stride + each offset

        def starts() -> list[int]:
            return [rounds * self.stride + offset for offset in self.offsets]

        def play():
            nonlocal summed, weights, pending
            for begin in range(0, len(pending), self.batch):
                group = pending[begin : begin + self.batch]
                stack = numpy.stack([window for _, _, window in group])
                with torch.inference_mode():
                    found = self.model(torch.from_numpy(stack).to(self.device)).float().cpu().numpy()
                for (start, length, _), stems in zip(group, found, strict=True):
                    trim = (self.size - length) // 2
                    skip = max(0, -start)  # a shifted first window begins before the audio
                    end = start + length
                    if end - done > summed.shape[2]:
                        more = end - done - summed.shape[2]
                        summed = numpy.pad(summed, ((0, 0), (0, 0), (0, more)))
                        weights = numpy.pad(weights, (0, more))
                    part = slice(start + skip - done, end - done)
                    weight = self.weight[skip:length]
                    summed[..., part] += weight * stems[..., trim + skip : trim + length]
                    weights[part] += weight
            pending = []

        def give(until: int):
            nonlocal summed, weights, done
            count = min(until, done + summed.shape[2]) - done
            if count <= 0:
                return None
            made = summed[..., :count] / weights[:count]
            summed, weights, done = summed[..., count:].copy(), weights[count:].copy(), done + count
            return made

        def cut(start: int, end: int) -> numpy.ndarray:
            """Frames start ... end with zeros where there is no audio."""
            left, right = max(0, -start), max(0, end - total)
            return numpy.pad(heard[:, start + left - first : end - right - first], ((0, 0), (left, right)))

        for block in blocks:
            heard = numpy.concatenate([heard, block], 1)
            total += block.shape[1]
            while starts()[-1] + self.size <= total:
                pending += [(start, self.size, cut(start, start + self.size)) for start in starts()]
                rounds += 1
                if len(pending) >= self.batch:
                    play()
                    if (made := give(starts()[0])) is not None:
                        yield made
                    keep = max(first, min(starts()[0], done) - margin)
                    heard, first = heard[:, keep - first :].copy(), keep
        while starts()[0] < total:
            for start in starts():
                length = min(self.size, total - start)
                if length > 0:
                    left = (self.size - length) // 2
                    pending.append((start, length, cut(start - left, start - left + self.size)))
            rounds += 1
        play()
        if (made := give(total)) is not None:
            yield made
