"""Raw material of the synthesis: banks of wavetables, an oscillator that reads them, coloured noise.

A bank holds one period per row, band-limited, the rows going from dark to bright (a low-pass with resonance), through
a modulation index (FM) or from vowel to vowel. An envelope chooses the row, so a filter sweep costs one table look-up
per sample and voice. Phases are 32-bit integers, which wrap by themselves.
"""

from __future__ import annotations

import numpy as np
from scipy import fft

BITS = 11
PERIOD = 1 << BITS  # samples of a table's row
ROWS = 32
VOWELS = (  # formants in Hz of a, e, i, o, u of a low voice (Peterson and Barney's order of magnitude)
    (730, 1090, 2440, 3400),
    (530, 1840, 2480, 3500),
    (290, 2200, 2950, 3600),
    (490, 910, 2450, 3300),
    (320, 850, 2300, 3300),
)
FORMANT_WIDTHS = np.array([90.0, 110.0, 160.0, 220.0])
FORMANT_LEVELS = np.array([1.0, 0.55, 0.3, 0.16])


def frequency(pitch: float) -> float:
    """Hz of a MIDI pitch."""
    return 440.0 * 2 ** ((pitch - 69) / 12)


def _table(spectra: np.ndarray) -> np.ndarray:
    """Rows of harmonic amplitudes [R, H] -> one period each, peak 1, as a flat table [R * PERIOD]."""
    bins = np.zeros((len(spectra), PERIOD // 2 + 1), np.complex64)
    bins[:, 1 : spectra.shape[1] + 1] = -1j * spectra
    rows = fft.irfft(bins, axis=1)
    return (rows / np.maximum(np.abs(rows).max(), 1e-9)).astype(np.float32).ravel()


def _harmonics(hz: float, rate: int) -> np.ndarray:
    return np.arange(1, max(2, min(PERIOD // 2, int(0.45 * min(rate, 40000) / hz))), dtype=np.float64)


def filtered_table(wave: str, hz: float, rate: int, resonance: float) -> np.ndarray:
    """Tables of a wave, its low-pass (24 dB per octave) opening from row 0 (about the fundamental) to 16 kHz."""
    k = _harmonics(hz, rate)
    shape = {
        "saw": 1 / k,
        "square": np.where(k % 2 == 1, 1 / k, 0.06 / k),
        "hollow": np.where(k % 2 == 1, 1 / k**1.5, 0.3 / k),
        "organ": np.isin(k, (1, 2, 3, 4, 6, 8, 12)) / np.sqrt(k),
    }[wave]
    low = max(1.5 * hz, 140.0)
    cutoff = (low * (16000.0 / low) ** np.linspace(0, 1, ROWS))[:, None]
    ratio = k * hz / cutoff
    return _table(shape * (1 + resonance * np.exp(-((np.log(ratio) / 0.16) ** 2))) / (1 + ratio**4))


def fm_table(hz: float, rate: int) -> np.ndarray:
    """Tables of two-operator FM at the ratio 1:2, the index rising from row to row as far as the band allows."""
    phase = np.arange(PERIOD) * (2 * np.pi / PERIOD)
    top = min(5.0, 0.45 * min(rate, 40000) / hz / 2 - 1)
    index = np.linspace(0.15, max(top, 0.2), ROWS)[:, None]
    return np.sin(phase + index * np.sin(2 * phase)).astype(np.float32).ravel()


def vowel_table(hz: float, rate: int, scale: float) -> np.ndarray:
    """Tables of a voice at a pitch, the rows going round the five vowels and back to the first."""
    k = _harmonics(hz, rate)
    path = np.linspace(0, len(VOWELS), ROWS, endpoint=False)
    low, share = path.astype(int), (path % 1)[:, None]
    vowels = np.array(VOWELS, dtype=np.float64)
    formants = scale * (vowels[low % 5] * (1 - share) + vowels[(low + 1) % 5] * share)
    distance = (k[None, None, :] * hz - formants[:, :, None]) / (scale * FORMANT_WIDTHS[None, :, None])
    gain = (FORMANT_LEVELS[None, :, None] / np.sqrt(1 + distance**2)).sum(axis=1)
    spectra = gain / k**0.7
    return _table(spectra / np.sqrt((spectra**2).sum(axis=1, keepdims=True)))


def oscillate(table: np.ndarray, rows: np.ndarray | int, hz: float | np.ndarray, count: int, phase: float, rate: int) -> np.ndarray:
    """``count`` samples of a table at a constant or changing frequency (Hz); ``rows`` chooses the row per sample."""
    turn = 4294967296.0 / rate
    if np.ndim(hz):
        position = np.cumsum((np.asarray(hz) * turn).astype(np.uint32), dtype=np.uint32)
    else:
        position = np.arange(count, dtype=np.uint32) * np.uint32(hz * turn)
    position += np.uint32(phase * 4294967295.0)
    position >>= np.uint32(32 - BITS)
    if np.ndim(rows):
        position += rows
    elif rows:
        position += np.uint32(rows * PERIOD)
    return table.take(position.astype(np.intp), mode="clip")


def row_offsets(colour: np.ndarray) -> np.ndarray:
    """Brightness in [0, 1] per sample -> offset of the row in a table."""
    return np.clip(colour * (ROWS - 1), 0, ROWS - 1).astype(np.uint32) * np.uint32(PERIOD)


def shaped_noise(rng: np.random.Generator, count: int, gain, rate: int) -> np.ndarray:
    """Noise of RMS 1 whose spectrum is ``gain(Hz)``."""
    size = fft.next_fast_len(count, real=True)
    bins = fft.rfft(rng.standard_normal(size, dtype=np.float32))
    bins *= gain(np.linspace(0, rate / 2, len(bins), dtype=np.float32))
    noise = fft.irfft(bins, size)[:count]
    return noise / np.sqrt(np.mean(noise * noise) + 1e-12)


def air(hz: np.ndarray) -> np.ndarray:
    """The fall of a recording's highest octave."""
    return 1 / (1 + (hz / 11000) ** 2)


def high_pass(cutoff: float, order: int = 4):
    return lambda hz: air(hz) / np.sqrt(1 + (cutoff / np.maximum(hz, 1)) ** (2 * order))


def band_pass(centre: float, width: float):
    return lambda hz: np.exp(-((np.log2(np.maximum(hz, 1) / centre) / width) ** 2))


def fade(sound: np.ndarray, rate: int, attack: float, release: float) -> np.ndarray:
    """Ramps of ``attack`` and ``release`` seconds at the ends, in place."""
    first, last = max(2, int(attack * rate)), max(2, int(release * rate))
    sound[..., :first] *= np.linspace(0, 1, first, dtype=np.float32)[: sound.shape[-1]]
    sound[..., -last:] *= np.linspace(1, 0, last, dtype=np.float32)[-sound.shape[-1] :]
    return sound
