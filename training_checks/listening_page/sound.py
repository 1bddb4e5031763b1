"""What the page computes from a clip: loudness, gains, a lossless copy to embed, a low-pass anchor, a picture.

Nothing here writes to a clip: level matching is a gain that the page applies.
"""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np

SILENT = -60.0  # LUFS: quieter clips are not matched in level
LOUDEST = -16.0  # LUFS: matched clips are not louder than that
CEILING = 10 ** (-1 / 20)  # of the peak after matching: -1 dBFS
ANCHOR_HZ = 3500.0  # the low-pass anchor of ITU-R BS.1534
WIDTH, WAVE, BANDS = 480, 48, 96  # of a picture, in pixels: columns, rows of the waveform, mel bands
WINDOW = 2048
RANGE_DB = 80.0
_INK = (122, 122, 250)  # of the waveform, to be seen on light and on dark


def loudness(audio: np.ndarray, rate: int) -> float:
    """Integrated loudness in LUFS of ``[C, T]`` (ITU-R BS.1770-4, channels weighted alike); -inf for silence.

    Clips shorter than the gate's block of 0.4 s are taken whole.
    """
    from scipy.signal import lfilter

    if not audio.size:
        return -math.inf
    filtered = np.asarray(audio, np.float64)
    for b, a in _k_weighting(rate):
        filtered = lfilter(b, a, filtered, axis=-1)
    block = min(round(0.4 * rate), filtered.shape[-1])
    hop = max(1, block // 4)
    energy = np.concatenate([[0.0], np.cumsum(np.square(filtered).sum(0))])
    starts = np.arange(0, filtered.shape[-1] - block + 1, hop)
    power = (energy[starts + block] - energy[starts]) / block
    power = power[power > _power(-70.0)]
    if power.size:
        power = power[power > power.mean() * 0.1]  # the relative gate: 10 LU below the mean
    return -0.691 + 10 * math.log10(power.mean()) if power.size else -math.inf


def gains(levels: list[tuple[float, float]]) -> list[float]:
    """Gains that bring clips of ``(LUFS, peak)`` to one loudness; 1 for silent ones.

    The common loudness is the highest at which no matched clip clips, and at most ``LOUDEST``.
    """
    audible = [(level, peak) for level, peak in levels if level > SILENT]
    target = min([LOUDEST, *(level + 20 * math.log10(CEILING / max(peak, 1e-9)) for level, peak in audible)])
    return [10 ** ((target - level) / 20) if level > SILENT else 1.0 for level, _ in levels]


def flac(audio: np.ndarray, rate: int) -> bytes:
    """``[C, T]`` as FLAC: with 16 bits where that is all it has (lossless), with 24 otherwise."""
    import soundfile

    narrow = np.round(audio * 32768.0)
    exact = np.array_equal(narrow, audio * 32768.0) and np.abs(narrow).max(initial=0) <= 32768
    scale, dtype, shift, subtype = (2**15, np.int16, 0, "PCM_16") if exact else (2**23, np.int32, 8, "PCM_24")
    whole = np.clip(np.round(np.nan_to_num(audio) * float(scale)), -scale, scale - 1).astype(dtype)
    stream = io.BytesIO()
    soundfile.write(stream, (whole << shift).T, rate, format="FLAC", subtype=subtype)
    return stream.getvalue()


def anchor(audio: np.ndarray, rate: int) -> np.ndarray:
    """``[C, T]`` low-passed at 3.5 kHz without delay: a version that is known to sound worse."""
    from scipy.signal import butter, sosfiltfilt

    if rate <= 2.1 * ANCHOR_HZ or audio.shape[-1] < 100:
        return audio
    return sosfiltfilt(butter(8, ANCHOR_HZ, fs=rate, output="sos"), audio, axis=-1).astype(np.float32)


def draw(audio: np.ndarray, rate: int, path: Path) -> None:
    """Write the waveform (full scale) above the mel spectrogram (0 Hz to half the sample rate, 80 dB) of ``[C, T]`` as PNG.

    Column ``i`` shows the time ``i / WIDTH`` of the clip. The background of the waveform is transparent.
    """
    from PIL import Image

    mono = np.nan_to_num(audio.mean(0)) if audio.size else np.zeros(1, np.float32)
    picture = np.zeros((WAVE + BANDS, WIDTH, 4), np.uint8)
    edges = np.linspace(0, len(mono), WIDTH + 1).astype(int)
    starts = np.minimum(edges[:-1], len(mono) - 1)
    top, bottom = np.maximum.reduceat(mono, starts), np.minimum.reduceat(mono, starts)
    middle = (WAVE - 1) / 2
    rows = np.arange(WAVE)[:, None]
    inside = (rows >= np.floor(middle - middle * np.clip(top, -1, 1))) & (rows <= np.ceil(middle - middle * np.clip(bottom, -1, 1)))
    picture[:WAVE][inside] = (*_INK, 255)
    padded = np.pad(mono, WINDOW // 2)
    frames = padded[((edges[:-1] + edges[1:]) // 2)[:, None] + np.arange(WINDOW)] * np.hanning(WINDOW).astype(np.float32)
    power = np.abs(np.fft.rfft(frames)) ** 2 @ _mel_bank(rate)
    level = 10 * np.log10(np.maximum(power, 1e-12)) - 20 * math.log10(WINDOW / 4)  # a full-scale sine is 0 dB
    shade = np.clip((level + RANGE_DB) / RANGE_DB, 0, 1)
    picture[WAVE:, :, :3] = _colours()[(shade * 255).astype(np.uint8)].transpose(1, 0, 2)[::-1]
    picture[WAVE:, :, 3] = 255
    Image.fromarray(picture).quantize(128, method=Image.Quantize.FASTOCTREE).save(path, format="PNG", optimize=False)


def _power(lufs: float) -> float:
    return 10 ** ((lufs + 0.691) / 10)


def _k_weighting(rate: int) -> list[tuple[list[float], list[float]]]:
    """BS.1770's shelf and high-pass at any rate: its analogue prototypes through the bilinear transform."""
    k = math.tan(math.pi * 1681.974450955533 / rate)
    q, v = 0.7071752369554196, 10 ** (3.999843853973347 / 20)
    w = v**0.4996667741545416
    d = 1 + k / q + k * k
    shelf = (
        [(v + w * k / q + k * k) / d, 2 * (k * k - v) / d, (v - w * k / q + k * k) / d],
        [1.0, 2 * (k * k - 1) / d, (1 - k / q + k * k) / d],
    )
    k, q = math.tan(math.pi * 38.13547087602444 / rate), 0.5003270373238773
    d = 1 + k / q + k * k
    return [shelf, ([1.0, -2.0, 1.0], [1.0, 2 * (k * k - 1) / d, (1 - k / q + k * k) / d])]


def _mel_bank(rate: int) -> np.ndarray:
    """Triangles ``[WINDOW / 2 + 1, BANDS]`` over the HTK mel scale; each weighs its bins to a mean."""
    mel = np.linspace(0, 2595 * math.log10(1 + rate / 2 / 700), BANDS + 2)
    hertz = 700 * (10 ** (mel / 2595) - 1)
    bins = np.fft.rfftfreq(WINDOW, 1 / rate)[:, None]
    width = np.maximum(np.diff(hertz), rate / WINDOW)  # a narrow band still holds a bin
    bank = np.clip(np.minimum((bins - hertz[1:-1]) / width[:-1] + 1, (hertz[1:-1] - bins) / width[1:] + 1), 0, None)
    return (bank / np.maximum(bank.max(0), 1e-9)).astype(np.float32)


def _colours() -> np.ndarray:
    """256 colours from black over violet and orange to pale yellow, in even steps of lightness ``[256, 3]``."""
    stops = np.array([(4, 4, 16), (44, 20, 92), (114, 31, 129), (183, 55, 121), (241, 96, 93), (254, 175, 119), (252, 253, 191)])
    at = np.linspace(0, len(stops) - 1, 256)
    return np.stack([np.interp(at, range(len(stops)), stops[:, c]) for c in range(3)], -1).round().astype(np.uint8)
