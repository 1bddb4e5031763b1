"""What the CNN hears and the energy head is taught: log-mel frames and the energies of three bands, from 24 kHz audio.

Frame ``i`` is centred on sample ``i * hop``. A track's frames are computed in blocks while it is decoded, and kept in
``outputs/cache/edm_features`` under the hash of the file's content.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy
import torch
from torch import Tensor

from .. import files
from ..library import audio

SAMPLE_RATE = 24000  # Hz, MERT's too
HOP = 480  # 50 frames a second
FRAME_RATE = SAMPLE_RATE / HOP
WINDOW = 1024
MELS = 64
BANDS = ((20.0, 200.0), (200.0, 4000.0), (4000.0, 12000.0))  # Hz: bass, mid, high
FLOOR = 1e-5  # of a magnitude, -100 dB
BLOCK = 1500  # frames computed at once: 30 s


@functools.cache
def mel_bank() -> Tensor:
    """Triangular filters ``[WINDOW / 2 + 1, MELS]`` from 30 to 11,000 Hz, equally spaced in mel (Slaney's area norm)."""
    mel = torch.linspace(_mel(30.0), _mel(11000.0), MELS + 2, dtype=torch.float64)
    edges = 700 * (10 ** (mel / 2595) - 1)
    frequencies = torch.linspace(0, SAMPLE_RATE / 2, WINDOW // 2 + 1, dtype=torch.float64)
    rising = (frequencies[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies[:, None]) / (edges[2:] - edges[1:-1])
    bank = torch.minimum(rising, falling).clamp(min=0)
    empty = bank.sum(0) == 0  # the lowest triangles can fall between two bins: they take the nearest one
    bank[(frequencies[:, None] - edges[1:-1]).abs().argmin(0)[empty], empty.nonzero().squeeze(1)] = 1.0
    return (bank / bank.sum(0)).float()


def from_spectrum(magnitude: Tensor) -> Tensor:
    """Magnitudes ``[T, WINDOW / 2 + 1]`` to features ``[T, MELS + 3]``: natural log of mel magnitudes, then of band energies."""
    mel = magnitude @ mel_bank().to(magnitude)
    width = SAMPLE_RATE / WINDOW
    power = magnitude.square()
    bands = torch.stack([power[:, round(low / width) : round(high / width)].sum(1).sqrt() for low, high in BANDS], 1)
    return torch.cat([mel, bands], 1).clamp(min=FLOOR).log()


def frames(samples: Tensor, hop: int = HOP) -> Tensor:
    """Features ``[T, MELS + 3]`` of the frames that lie whole in ``samples`` ``[n]``: ``T = (n - WINDOW) // hop + 1``."""
    cut = samples.unfold(0, WINDOW, hop)
    window = torch.hann_window(WINDOW, dtype=samples.dtype)
    return from_spectrum(torch.fft.rfft(cut * window).abs() * (2 / WINDOW))


def stream(blocks: Iterable[numpy.ndarray], hop: int = HOP) -> Iterator[numpy.ndarray]:
    """Features of mono 24 kHz ``blocks`` as they come, ``[<= BLOCK, MELS + 3]`` each; memory does not grow with the length.

    ``T = n // hop + 1`` frames in all; the edges are padded with silence.
    """
    held = [numpy.zeros(WINDOW // 2, numpy.float32)]
    size, wanted = WINDOW // 2, (BLOCK - 1) * hop + WINDOW
    for block in blocks:
        held.append(block)
        size += len(block)
        if size >= wanted:
            samples = numpy.concatenate(held)
            while len(samples) >= wanted:
                yield frames(torch.from_numpy(samples[:wanted]), hop).numpy()
                samples = samples[BLOCK * hop :]
            held, size = [samples], len(samples)
    rest = numpy.concatenate([*held, numpy.zeros(WINDOW // 2, numpy.float32)])
    if len(rest) >= WINDOW:
        yield frames(torch.from_numpy(rest), hop).numpy()


def of_file(path: Path | str) -> numpy.ndarray:
    """Features of a track, float16 ``[T, MELS + 3]``, from the cache where they are."""
    key = hashlib.sha256(json.dumps([files.digest(path), SAMPLE_RATE, HOP, WINDOW, MELS, BANDS, 1]).encode()).hexdigest()[:32]
    cached = files.outputs_root() / "cache" / "edm_features" / f"{key}.npy"
    if not cached.is_file():
        with torch.inference_mode(), audio.open_stream(path) as opened:
            made = numpy.concatenate([block.astype(numpy.float16) for block in stream(audio.mono(opened, SAMPLE_RATE))])
        with files.atomic(cached) as temporary, open(temporary, "wb") as target:
            numpy.save(target, made)
    return numpy.load(cached, mmap_mode="r")


def energy(bands: numpy.ndarray, frame_rate: float = FRAME_RATE) -> numpy.ndarray:
    """Energy targets in [0, 1] from log band energies ``[T, 3]``: smoothed over 0.5 s, 60 dB below the track's loudest to 0."""
    power = numpy.exp(2 * bands.astype(numpy.float32))
    width = max(1, round(0.5 * frame_rate))
    total = numpy.cumsum(numpy.pad(power, ((width // 2 + 1, width - width // 2 - 1), (0, 0)), mode="edge"), 0, dtype=numpy.float64)
    smooth = 10 * numpy.log10((total[width:] - total[:-width]) / width + FLOOR**2)
    smooth = smooth[: len(bands)] if len(smooth) >= len(bands) else numpy.pad(smooth, ((0, len(bands) - len(smooth)), (0, 0)), mode="edge")
    return numpy.clip((smooth - smooth.max(0)) / 60 + 1, 0, 1).astype(numpy.float32)


def _mel(frequency: float) -> float:
    return 2595 * float(numpy.log10(1 + frequency / 700))
