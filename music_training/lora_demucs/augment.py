"""Random changes of training examples: remix, scale, flip, swap, pitch and tempo. Every draw comes from the generator given."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import torch

from .config import Augment
from .tracks import StemTrack

DRUMS = ("drums", "kick", "hihat", "snare", "toms", "cymbals", "percussion")
WINDOW = 2048


def crop(tracks: Sequence[StemTrack], number: int, frames: int, sources: Sequence[str], settings: Augment, rng) -> numpy.ndarray:
    """Stems of a random crop, changed at random, float32 ``[S, C, frames]``."""
    speed, pitch = _draw_repitch(settings, rng)
    long = int(numpy.ceil(frames * speed)) + (WINDOW if speed != 1.0 or pitch else 0)
    if rng.random() < settings.remix:
        parts = [_cut(tracks[int(rng.integers(len(tracks)))], long, [source], rng)[0] for source in sources]
        stems = numpy.stack(parts)
    else:
        stems = _cut(tracks[number], long, sources, rng)
    if speed != 1.0 or pitch:
        changed = [repitch(part, speed, 0.0 if name in DRUMS else pitch) for name, part in zip(sources, stems, strict=True)]
        stems = numpy.stack([part[:, :frames] for part in changed])
    low, high = settings.scale
    gains = rng.uniform(low, high, len(stems)) * numpy.where(rng.random(len(stems)) < settings.flip, -1.0, 1.0)
    stems = stems * gains.astype(numpy.float32)[:, None, None]
    if stems.shape[1] == 2:
        turned = rng.random(len(stems)) < settings.swap
        stems[turned] = stems[turned][:, ::-1]
    return numpy.ascontiguousarray(stems, numpy.float32)


def _cut(track: StemTrack, frames: int, sources: Sequence[str], rng) -> numpy.ndarray:
    room = track.frames - frames
    start = int(rng.integers(room + 1)) if room > 0 else 0
    found = track.read(start, min(frames, track.frames), sources)
    return found if found.shape[2] == frames else numpy.pad(found, ((0, 0), (0, 0), (0, frames - found.shape[2])))


def _draw_repitch(settings: Augment, rng) -> tuple[float, float]:
    if not settings.repitch or rng.random() >= settings.repitch:
        return 1.0, 0.0
    return float(1 + rng.uniform(-settings.tempo, settings.tempo)), float(rng.uniform(-settings.semitones, settings.semitones))


def repitch(samples: numpy.ndarray, speed: float, semitones: float) -> numpy.ndarray:
    """Samples ``[C, n]`` played ``speed`` times as fast and ``semitones`` higher (phase vocoder, then resampling)."""
    import soxr
    from torchaudio.functional import phase_vocoder

    ratio = 2 ** (semitones / 12)
    wave = torch.from_numpy(numpy.ascontiguousarray(samples))
    window, hop = torch.hann_window(WINDOW), WINDOW // 4
    spectrum = torch.stft(wave, WINDOW, hop, window=window, return_complex=True)
    advance = torch.linspace(0, torch.pi * hop, spectrum.shape[-2])[:, None]
    stretched = phase_vocoder(spectrum, speed / ratio, advance)
    length = round(samples.shape[1] * ratio / speed)
    played = torch.istft(stretched, WINDOW, hop, window=window, length=length).numpy()
    return played if ratio == 1.0 else soxr.resample(played.T, ratio, 1.0, "HQ").T
