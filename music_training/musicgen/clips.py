"""Is a generated clip worth listening to? Level, silence, clipping and repetition of audio, and what is wrong with it.

None of this says that a clip is music; it finds what certainly is not: nothing to hear, noise at full scale, a loop that
the model fell into. The thresholds were set so that recorded music passes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

FRAME = 0.05  # seconds
SILENT_DB = -60.0  # dBFS: a frame below it is silent
FULL_SCALE = 0.99
SHORTEST_LOOP = 0.25  # seconds


@dataclass(frozen=True)
class Figures:
    """What was measured: RMS in dBFS, the highest absolute sample, and shares between 0 and 1.

    ``silence``: of frames of 50 ms below -60 dBFS. ``clipping``: of samples that stand still at full scale (samples
    beyond it count as standing there). ``repetition``: the highest correlation of the clip with itself moved by 0.25 s
    to half its length, both without their low frequencies; 1 is an exact loop or a tone that never changes.
    """

    rms_db: float
    peak: float
    silence: float
    clipping: float
    repetition: float

    def faults(self) -> list[str]:
        """What is wrong, in a few words each; empty for a clip that passes."""
        if not math.isfinite(self.peak):
            return ["not a number"]
        if self.silence == 1:
            return ["silent"]
        found = []
        if self.silence > 0.5:
            found.append(f"{self.silence:.0%} silent")
        if self.rms_db < -45:
            found.append(f"very quiet ({self.rms_db:.0f} dB)")
        if self.clipping > 0.005:
            found.append(f"{self.clipping:.1%} clipped")
        if self.repetition > 0.95:
            found.append("a loop")
        return found

    def shown(self) -> dict[str, float]:
        """The figures by the names that a table or a page shows; what is no number is left out."""
        names = {"rms_db": "RMS dB"}
        return {names.get(name, name): round(value, 4) for name, value in asdict(self).items() if math.isfinite(value)}


def measure(audio: torch.Tensor | np.ndarray, sample_rate: int) -> Figures:
    """Measure a clip ``[C, T]`` or ``[T]``; its channels are averaged."""
    samples = np.atleast_2d(np.asarray(audio, dtype=np.float64)).mean(0)
    if not np.isfinite(samples).all():
        return Figures(math.nan, math.nan, 0.0, 0.0, 0.0)
    level = math.sqrt(float(np.mean(samples**2))) if len(samples) else 0.0
    size = max(1, int(FRAME * sample_rate))
    frames = samples[: len(samples) // size * size].reshape(-1, size)
    silent = np.sqrt((frames**2).mean(1)) < 10 ** (SILENT_DB / 20)
    return Figures(
        rms_db=20 * math.log10(max(level, 1e-6)),
        peak=float(np.abs(samples).max(initial=0.0)),
        silence=float(silent.mean()) if len(silent) else float(level < 10 ** (SILENT_DB / 20)),
        clipping=_standing_at_full_scale(samples),
        repetition=_repetition(samples, sample_rate),
    )


def best_first(figures: Sequence[Figures]) -> list[int]:
    """The order of candidates: fewest faults, then least repetition, silence and clipping together; a tie as given."""
    return sorted(range(len(figures)), key=lambda index: _badness(figures[index]))


def _badness(figures: Figures) -> tuple[int, float]:
    return len(figures.faults()), figures.repetition + figures.silence + 10 * figures.clipping


def _standing_at_full_scale(samples: np.ndarray) -> float:
    """Share of samples in runs of three or more that stand still (to a 16-bit step) at full scale."""
    if len(samples) < 3:
        return 0.0
    held = np.clip(samples, -1, 1)
    still = (np.abs(np.diff(held)) < 1.5 / 32768) & (np.abs(held[1:]) >= FULL_SCALE)
    runs = still[1:] & still[:-1]  # three samples in a row
    inside = np.zeros(len(samples), dtype=bool)
    for shift in range(3):
        inside[shift : shift + len(runs)] |= runs
    return float(inside.mean())


def _repetition(samples: np.ndarray, sample_rate: int) -> float:
    """The highest normalised correlation of a signal with itself moved by SHORTEST_LOOP seconds to half its length."""
    first, last = int(SHORTEST_LOOP * sample_rate), len(samples) // 2
    if last <= first:
        return 0.0
    x = np.diff(samples)  # bass that is held would otherwise look like a loop
    size = 1 << (2 * len(x) - 1).bit_length()
    spectrum = np.fft.rfft(x, size)
    products = np.fft.irfft(spectrum * spectrum.conj(), size)[first:last]
    energy = np.concatenate([[0.0], np.cumsum(x**2)])
    lags = np.arange(first, last)
    norms = np.sqrt(energy[len(x) - lags] * (energy[-1] - energy[lags]))
    floor = 1e-4 * energy[-1]  # a half that is all but silent is no loop
    return float(np.clip(np.max(products / np.maximum(norms, max(floor, 1e-12))), 0.0, 1.0))
