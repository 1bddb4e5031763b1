"""From notes to written stems: placing, echo, reverb, side-chain ducking, a master limiter, 16-bit files.

The limiter's gain is computed from the mixture and applied to every stem alike; then every stem is rounded to 16 bits
and the mixture *is* the sum of the rounded stems. So the stems sum to the mixture sample for sample.
"""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
from scipy import fft
from scipy.ndimage import minimum_filter1d, uniform_filter1d

from .artists import generator
from .instruments import Band
from .song import Song

STEMS = ("other", "kick", "vocals", "bass", "hihat")
STEM_OF_PART = {
    "pad": "other", "stab": "other", "arp": "other", "lead": "other", "rise": "other", "fall": "other",
    "kick": "kick", "snare": "kick", "clap": "kick", "tom": "kick", "perc": "kick",
    "vocal": "vocals", "bass": "bass",
    "hat_closed": "hihat", "hat_open": "hihat", "ride": "hihat", "crash": "hihat",
}  # fmt: skip
LEVELS = {  # dB per part, before the artist's balance
    "pad": 3.0, "stab": 6.0, "arp": 2.5, "lead": 5.0, "rise": 0.0, "fall": -2.0,
    "kick": -1.0, "snare": 2.0, "clap": 2.5, "tom": 0.0, "perc": -3.0,
    "vocal": 9.0, "bass": 5.0, "hat_closed": 6.0, "hat_open": 3.0, "ride": 2.0, "crash": 3.0,
}  # fmt: skip
PANS = {"arp": 0.35, "perc": -0.4, "hat_closed": 0.15, "tom": -0.2, "hat_open": -0.1}
DUCKING = {"other": 0.85, "bass": 1.0, "vocals": 0.4}  # of the style's depth
CEILING = 0.97
BLOCK = 64  # samples per value of the limiter's gain


def samples(song: Song, rate: int) -> int:
    """The length of a song's audio, in whole blocks."""
    return -(-int(song.duration * rate) // BLOCK) * BLOCK


def mix(song: Song, rate: int, seed: int) -> dict[str, np.ndarray]:
    """Every stem of a song as 16-bit samples [samples, 2]; none of them clips, nor does their sum."""
    count = samples(song, rate)
    stems = {stem: np.zeros((2, count), np.float32) for stem in STEMS}
    _place_notes(song, stems, rate, seed)
    for stem, share in (("other", 1.0), ("vocals", 1.3)):
        _add_reverb(stems[stem], song.artist.reverb, song.artist.damping, share * song.artist.send, rate, (seed, song.artist.id))
    duck = _duck_curve(song, count, rate)
    for stem, share in DUCKING.items():
        stems[stem] *= 1 - np.float32(share * song.style.duck) * duck
    gain = _master_gain(song, stems, rate)
    return {stem: _quantise(sound, gain) for stem, sound in stems.items()}


def loudness_target(song: Song) -> float:
    """RMS of the loud half of a track, dB: excited and intense music is mastered louder."""
    return -15.5 + 2.5 * song.emotion.arousal + 2.0 * song.emotion.intensity


def _place_notes(song: Song, stems: dict[str, np.ndarray], rate: int, seed: int) -> None:
    band = Band(song.artist, rate, seed, song.beat, song.emotion.intensity)
    echo = 0.75 * song.beat
    for note in song.notes:
        stem = STEM_OF_PART[note.part]
        gain = note.velocity * 10 ** ((LEVELS[note.part] + song.artist.balance[stem]) / 20)
        sound, pan = band.render(note), PANS.get(note.part, 0.0)
        sides = (gain * (1 - max(pan, 0)), gain * (1 + min(pan, 0)))
        _add(stems[stem], sound, note.time * rate, sides)
        if note.part in ("arp", "lead", "vocal"):  # three repeats from side to side
            for repeat in range(1, 4):
                level = 0.8 * song.artist.echo ** (0.6 + 0.4 * repeat) * gain * 0.7**repeat
                sides = (level, 0.35 * level) if repeat % 2 else (0.35 * level, level)
                _add(stems[stem], sound, (note.time + repeat * echo) * rate, sides)


def _add(buffer: np.ndarray, sound: np.ndarray, start: float, sides: tuple[float, float]) -> None:
    start = int(start + 0.5)
    length = min(sound.shape[1], buffer.shape[1] - start)
    if length <= 0:
        return
    for side in range(2):
        buffer[side, start : start + length] += np.float32(sides[side]) * sound[side % len(sound), :length]


def _add_reverb(sound: np.ndarray, decay: float, damping: float, send: float, rate: int, name: tuple) -> None:
    """Add decaying noise convolved with the mono sum, at half the rate (a reverb is dark), in place."""
    half = rate // 2
    length = int(decay * half)
    rng = generator("reverb", *name)
    t = np.arange(length, dtype=np.float32) / half
    response = rng.standard_normal((2, length), dtype=np.float32) * np.exp(-6.9 * t / decay) * np.minimum(t / 0.012, 1)
    size = 1 << 16
    bins = fft.rfft(response, size)
    bins /= 1 + (np.linspace(0, half / 2, bins.shape[1], dtype=np.float32) / damping) ** 2
    bins *= np.float32(send / np.sqrt((response[0] ** 2).sum()))
    mono = (sound[0, 0::2] + sound[1, 0::2] + sound[0, 1::2] + sound[1, 1::2]) * np.float32(0.25)
    step = size - length
    for start in range(0, len(mono), step):
        dry = mono[start : start + step]
        if not dry.any():  # a voice rests most of the time
            continue
        block = fft.rfft(dry, size)
        for side in range(2):
            wet = fft.irfft(block * bins[side], size)[: len(mono) - start]
            end = 2 * (start + len(wet))
            sound[side, 2 * start : end : 2] += wet
            sound[side, 2 * start + 1 : end : 2] += wet
            # the value between two samples is their mean: half of the difference is added to the odd ones
            sound[side, 2 * start + 1 : end - 2 : 2] += np.float32(0.5) * (wet[1:] - wet[:-1])


def _duck_curve(song: Song, count: int, rate: int) -> np.ndarray:
    """1 at a kick, back to 0 within about a beat; 0 where there is none."""
    length = int(min(0.9 * song.beat, 0.36) * rate)
    attack = int(0.006 * rate)
    t = np.linspace(0, 1, length, dtype=np.float32)
    shape = 0.5 + 0.5 * np.cos(np.pi * t**0.7)
    shape[:attack] *= np.linspace(0, 1, attack, dtype=np.float32)
    curve = np.zeros(count, np.float32)
    for note in song.notes:
        if note.part == "kick":
            start = int(note.time * rate + 0.5)
            part = curve[start : start + length]
            np.maximum(part, np.float32(note.velocity**0.5) * shape[: len(part)], out=part)
    return curve


def _master_gain(song: Song, stems: dict[str, np.ndarray], rate: int) -> np.ndarray:
    """The gain curve [samples] that brings the mixture to its loudness and keeps its peaks under the ceiling.

    Per block of samples the gain that its peak allows; the minimum over the look-ahead, smoothed over the same span,
    is never above what a block allows.
    """
    total = sum(stems.values())
    blocks = total.reshape(2, -1, BLOCK)
    power = np.einsum("cbs,cbs->b", blocks, blocks) / (2 * BLOCK)
    second = rate // BLOCK
    loud = np.sort(power[: len(power) // second * second].reshape(-1, second).mean(axis=1))
    level = np.float32(10 ** (loudness_target(song) / 20) / np.sqrt(loud[len(loud) // 2 :].mean()))
    peaks = {stem: _peaks(sound) for stem, sound in stems.items()}
    peak = np.maximum.reduce([_peaks(total), *peaks.values(), peaks["kick"] + peaks["hihat"]])  # each is written, drums too
    allowed = np.minimum(level, CEILING / np.maximum(peak, 1e-9))
    allowed = np.minimum(allowed, np.minimum(np.append(allowed[1:], level), np.append(level, allowed[:-1])))
    span = 2 * int(0.012 * rate / BLOCK) + 1
    smooth = uniform_filter1d(minimum_filter1d(allowed, span, mode="nearest"), span, mode="nearest")
    ramp = np.linspace(0, 1, BLOCK, endpoint=False, dtype=np.float32)
    smooth = smooth.astype(np.float32)
    following = np.append(smooth[1:], smooth[-1])
    return (smooth[:, None] + (following - smooth)[:, None] * ramp).ravel()


def _peaks(sound: np.ndarray) -> np.ndarray:
    """The highest absolute value of every block."""
    blocks = sound.reshape(2, -1, BLOCK)
    return np.maximum(blocks.max(axis=2), -blocks.min(axis=2)).max(axis=0)


def _quantise(sound: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Samples [2, N] times the gain [N], rounded to 16 bits and interleaved [N, 2]; in pieces that stay in the cache."""
    out = np.empty((sound.shape[1], 2), np.int16)
    for start in range(0, len(out), 1 << 14):
        piece = slice(start, start + (1 << 14))
        scaled = sound[:, piece] * gain[piece]
        scaled *= np.float32(32767)
        out[piece] = np.rint(scaled, out=scaled).T
    return out


def add_up(stems: list[np.ndarray]) -> np.ndarray:
    """The exact sum of 16-bit stems; RuntimeError where it would not fit, which the limiter rules out."""
    total = stems[0].astype(np.int32)
    for stem in stems[1:]:
        total += stem
    if max(total.max(), -total.min()) > 32767:
        raise RuntimeError(f"the mixture clips: {max(total.max(), -total.min())}")
    return total.astype(np.int16)


def write_wav(path: Path, samples: np.ndarray, rate: int) -> None:
    """Write 16-bit samples [samples] or [samples, channels]."""
    with wave.open(str(path), "wb") as stream:
        stream.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        stream.setsampwidth(2)
        stream.setframerate(rate)
        stream.writeframes(np.ascontiguousarray(samples).data)
