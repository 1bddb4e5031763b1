"""What can be wrong with the samples of a stem, alone, beside the mixture and beside other stems; arrays are ``[C, n]``.

Every function returns :class:`Finding` objects that name the stem and the figure; none reads or writes a file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy
from scipy.fft import irfft, next_fast_len, rfft

SILENT = -70.0  # dB of RMS
BLEED_LEAST = -60.0  # dB of a stem in another one
BLEED_SURE, BLEED_LIKELY = 3.0, 2.2  # times anything else in the impulse response from one stem to the other; clean stems have 1.7
BLEED_WINDOWS = (1 << 15, 1 << 12)  # samples: long ones tell frequencies apart, short ones find the gaps between hits
BLEED_DELAY = 0.02  # s by which bleed may come late or early: 7 m of air
WINDOW = 1 << 19  # samples of a stem that are searched for its place in the mixture: 12 s
INAUDIBLE = 1e-9  # mean square below which a stem is as good as empty


@dataclass(frozen=True)
class Finding:
    """What was found in a stem (empty: in the track): ``level`` fail, warn or note, ``kind`` and the text with its figure."""

    level: str
    kind: str
    stem: str
    text: str
    value: float | None = None


def power(samples: numpy.ndarray) -> float:
    """Mean square."""
    flat = samples.ravel()
    return float(numpy.dot(flat, flat)) / max(flat.size, 1)


def decibels(value: float) -> float:
    """A mean square in dB."""
    return 10 * math.log10(value + 1e-20)


def in_samples(samples: numpy.ndarray, name: str, peak: float) -> list[Finding]:
    """Values that are no numbers, silence, clipping, the true peak and a constant offset; ``peak`` is the largest sample."""
    if not numpy.isfinite(peak) or not numpy.isfinite(power(samples)):
        return [Finding("fail", "format", name, "holds values that are not numbers")]
    level = decibels(power(samples))
    if level < SILENT:
        return [Finding("warn", "silence", name, f"silent ({level:.0f} dB): nothing to learn from", level)]
    found = []
    plateaus = clipped_places(samples, peak)
    if peak > 1.0:
        found.append(Finding("fail", "clipping", name, f"peak {peak:.3f} lies above full scale: an integer file of it would clip", peak))
    elif plateaus >= 5:
        found.append(Finding("fail", "clipping", name, f"clipped: its peak {peak:.3f} is a plateau in {plateaus} places", plateaus))
    elif (true := true_peak(samples, peak)) > 1.0:
        grade = "warn" if true > 10**0.05 else "note"  # up to 1 dB is common in finished mixes
        found.append(Finding(grade, "true_peak", name, f"true peak {true:.3f} between samples lies above full scale", true))
    offset = float(numpy.abs(samples.mean(1)).max())
    if offset > 0.005:
        found.append(Finding("fail" if offset > 0.02 else "warn", "dc", name, f"constant offset {offset:.4f}", offset))
    return found


def clipped_places(samples: numpy.ndarray, peak: float) -> int:
    """How often, with different samples before it, two or more samples in a row lie at the peak behind a corner.

    The top of a low tone is flat, too, but round; and a drum hit that is repeated has its peak every time it sounds.
    """
    before = set()
    for channel in samples:
        top = numpy.flatnonzero(numpy.abs(channel) >= peak * (1 - 1e-4))
        starts = top[:-1][numpy.diff(top) == 1]
        corners = numpy.abs(channel[starts[starts > 0] - 1])
        before.update(corners[corners < peak * (1 - 5e-3)].tolist())
    return len(before)


def true_peak(samples: numpy.ndarray, peak: float) -> float:
    """The peak between samples at 4 times the rate (ITU-R BS.1770), around the samples within 3 dB of the largest."""
    if peak < 0.7:
        return peak
    reach, best = 24, peak
    offsets = numpy.arange(1 - reach, reach + 1)
    phases = numpy.array([0.25, 0.5, 0.75])[:, None] - offsets
    kernel = (numpy.sinc(phases) * numpy.i0(8.6 * numpy.sqrt(1 - (phases / (reach + 1)) ** 2)) / numpy.i0(8.6)).astype(numpy.float32)
    for channel in samples:
        places = numpy.flatnonzero(numpy.abs(channel) >= 0.7 * peak)
        if len(places) > 4096:
            places = places[numpy.argpartition(numpy.abs(channel[places]), -4096)[-4096:]]
        places = numpy.unique(numpy.concatenate([places - 1, places]))  # before and behind a large sample
        around = places[:, None] + offsets
        values = numpy.where((around >= 0) & (around < len(channel)), channel[around.clip(0, len(channel) - 1)], 0)
        best = max(best, float(numpy.abs(values @ kernel.T).max(initial=0.0)))
    return best


def against_mixture(stems: Mapping[str, numpy.ndarray], left: numpy.ndarray, rate: int) -> list[Finding]:
    """Stems that lie elsewhere in the mixture, upside down or not at all; ``left`` is the mixture without all stems.

    Where there are none: a stem that another one holds as bleed.
    """
    found = []
    for name, samples in stems.items():
        if power(samples) > INAUDIBLE:
            found += place_in(samples, samples + left, name, rate)
    return found or doubled(stems, left)


def place_in(stem: numpy.ndarray, wanted: numpy.ndarray, name: str, rate: int) -> list[Finding]:
    """Lag and polarity of a stem against what the mixture leaves for it.

    Cross-correlation of the loudest part gives candidates within a second; what each leaves of the whole track decides.
    """
    reach = min(rate, stem.shape[1] - 1)
    start = _loudest(stem, WINDOW)
    part = stem[:, start : start + WINDOW]
    there = numpy.pad(wanted, ((0, 0), (reach, reach)))[:, start : start + part.shape[1] + 2 * reach]
    size = next_fast_len(there.shape[1] + part.shape[1], real=True)
    curve = irfft((rfft(there, size) * rfft(part, size).conj()).sum(0), size)[: 2 * reach + 1]
    candidates = {0}
    for _ in range(4):
        place = int(numpy.abs(curve).argmax())
        candidates.add(place - reach)
        curve[max(0, place - 8) : place + 9] = 0
    fits = {lag: _fit(stem, wanted, lag) for lag in candidates}
    lag = min(fits, key=lambda one: fits[one][0])
    if fits[lag][0] > 0.7 * fits[0][0]:
        lag = 0
    value = fits[lag][1]
    if abs(value) < 0.3:
        alien = abs(value) <= 0.05
        return [Finding("fail", "alignment", name, f"is not part of the mixture (correlation {value:.2f})", value)] if alien else []
    found = []
    if lag:  # what is wanted comes earlier than the stem: the stem is late
        word = "late" if lag < 0 else "early"
        found.append(Finding("fail", "alignment", name, f"{abs(lag)} sample(s) {word} ({1000 * abs(lag) / rate:.2f} ms)", -lag))
    if value < 0:
        found.append(Finding("fail", "polarity", name, f"polarity is flipped (correlation {value:.2f})", value))
    return found


def doubled(stems: Mapping[str, numpy.ndarray], left: numpy.ndarray) -> list[Finding]:
    """A stem that is in the sum of the stems too often or too little: what the mixture leaves is a copy of it."""
    found, energy_left = [], power(left)
    for name, stem in stems.items():
        energy = power(stem)
        shared = float(numpy.vdot(left, stem)) / stem.size
        if energy > INAUDIBLE and abs(shared) > 0.9 * math.sqrt(energy * energy_left):
            gain = shared / energy
            level, word = 20 * math.log10(abs(gain)), "too much" if gain < 0 else "missing"
            grade = "fail" if level > BLEED_LEAST else "note"
            text = f"{level:.1f} dB of it is {word} in the stems: another stem holds it as bleed"
            found.append(Finding(grade, "bleed", name, text, level))
    return found


def bleed(stems: Mapping[str, numpy.ndarray], rate: int) -> list[Finding]:
    """Stems that hold a copy of another one, also a late one.

    The impulse response from one stem to the other is estimated from their spectra (weighted by how quiet the other one
    is in each band and each moment). A copy is one peak of the shape that the first stem's own spectrum gives; music that
    only sounds together has no such peak.
    """
    mono = {name: samples.mean(0) for name, samples in stems.items() if power(samples) > INAUDIBLE}
    count = min((len(samples) for samples in mono.values()), default=0)
    surest: dict[tuple[str, str], tuple[float, float, int]] = {}
    for size in BLEED_WINDOWS:
        if count < 16 * size or len(mono) < 2:
            continue
        spectra = {name: _spectra(samples[:count], size) for name, samples in mono.items()}
        powers = {name: found.real**2 + found.imag**2 for name, (found, _) in spectra.items()}
        for name, (own, loudness) in spectra.items():
            weight = 1 / (loudness + 1e-9)
            noise = weight @ powers[name]
            noise += 1e-6 * noise.max()
            weighted = own.conj() * weight[:, None]
            for other, (source, _) in spectra.items():
                if other != name:
                    shared = numpy.einsum("ij,ij->j", weighted, source).conj() / noise
                    found = _copy_of(shared, weight @ powers[other] / noise, int(BLEED_DELAY * rate))
                    surest[name, other] = max(surest.get((name, other), found), found)
    found = []
    for (name, other), (sure, gain, delay) in surest.items():
        if sure > BLEED_LIKELY and abs(gain) > 10 ** (BLEED_LEAST / 20):
            level, when = 20 * math.log10(abs(gain)), f", {1000 * delay / rate:.1f} ms later" if delay else ""
            grade, word = ("fail", "holds") if sure > BLEED_SURE else ("warn", "may hold")
            found.append(Finding(grade, "bleed", name, f"{word} {other} at {level:.1f} dB{when}", level))
    return found


def _copy_of(shared: numpy.ndarray, own: numpy.ndarray, reach: int) -> tuple[float, float, int]:
    """How sure it is that there is a copy (times anything else), its gain and its delay in samples.

    ``shared`` is the transfer function that was estimated, ``own`` what it would be for a copy as it is.
    """
    response, shape = irfft(shared), irfft(own)
    near = numpy.arange(-reach, reach + 1)
    delay = int(near[numpy.abs(response[near]).argmax()])
    gain = float(response[delay] / shape[0])
    rest = float(numpy.abs(response - gain * numpy.roll(shape, delay)).max()) / float(shape[0])
    return abs(gain) / (rest + 1e-12), gain, delay


def _spectra(samples: numpy.ndarray, size: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Spectra of windows spread over the samples (of 190 s at most), complex64, and their mean squares."""
    frames = samples[: len(samples) // size * size].reshape(-1, size)
    frames = frames[numpy.linspace(0, len(frames) - 1, min(len(frames), (1 << 23) // size)).astype(int)]
    spectra = rfft(frames * numpy.hanning(size).astype(numpy.float32))
    return spectra, numpy.einsum("ij,ij->i", frames, frames) / size


def _loudest(samples: numpy.ndarray, size: int) -> int:
    """Where the loudest window of ``size`` samples begins (on a grid of 4096)."""
    step = 4096
    count = samples.shape[1] // step
    if samples.shape[1] <= size or count < 2:
        return 0
    blocks = samples[:, : count * step].reshape(len(samples), count, step)
    total = numpy.concatenate([[0.0], numpy.einsum("cij,cij->i", blocks, blocks).cumsum(dtype=numpy.float64)])
    width = size // step
    return step * int((total[width:] - total[:-width]).argmax())


def _fit(stem: numpy.ndarray, wanted: numpy.ndarray, lag: int) -> tuple[float, float]:
    """Share of ``wanted`` that the stem moved on by ``lag`` samples does not explain, and their correlation, over the whole track."""
    count = stem.shape[1] - abs(lag)
    one, other = stem[:, max(0, -lag) :][:, :count], wanted[:, max(0, lag) :][:, :count]
    energies, shared, block = numpy.zeros(2), 0.0, 1 << 18
    for start in range(0, count, block):
        here = one[:, start : start + block].ravel(), other[:, start : start + block].ravel()
        energies += [numpy.dot(part, part) for part in here]
        shared += float(numpy.dot(*here))
    energies += 1e-12
    gain, rest = shared / energies[0], 0.0
    for start in range(0, count, block):  # of the difference itself: that of the energies drowns a lag of one in rounding
        difference = (other[:, start : start + block] - gain * one[:, start : start + block]).ravel()
        rest += float(numpy.dot(difference, difference))
    return rest / energies[1], shared / math.sqrt(energies[0] * energies[1])
