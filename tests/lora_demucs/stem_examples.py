"""A small HTDemucs with every kind of layer, and synthetic tracks with stems of tones and clicks."""

import numpy
import soundfile
import torch

RATE = 8000
STEMS = ("other", "kick", "vocals", "bass", "hihat")


def small(seed: int = 0, sources=("drums", "bass", "other", "vocals")):
    from demucs.htdemucs import HTDemucs

    torch.manual_seed(seed)
    return HTDemucs(
        list(sources), channels=8, depth=3, nfft=512, bottom_channels=8, t_layers=2, t_heads=2, dconv_mode=3, samplerate=RATE, segment=1
    ).eval()


def write_track(folder, seed: int, seconds: float = 4.0, rate: int = RATE, change=None) -> None:
    """Five stems that overlap in time, not in spectrum, their drums, and the mixture that they add up to."""
    rng, count = numpy.random.default_rng(seed), int(seconds * rate)
    time = numpy.arange(count) / rate
    beat = (time * 2) % 1
    noise = rng.standard_normal(count)
    stems = {
        "other": 0.1 * numpy.sin(2 * numpy.pi * 660 * time) * (0.6 + 0.4 * numpy.sin(2 * numpy.pi * 0.7 * time)),
        "kick": 0.3 * numpy.sin(2 * numpy.pi * 70 * beat) * numpy.exp(-18 * beat),
        "vocals": 0.1 * numpy.sin(2 * numpy.pi * (300 + 5 * numpy.sin(2 * numpy.pi * 5 * time)) * time),
        "bass": 0.15 * numpy.sin(2 * numpy.pi * 110 * time),
        "hihat": 0.08 * numpy.diff(noise, prepend=0.0) * numpy.exp(-40 * ((time * 4 + 0.5) % 1)),
    }
    stems = {name: numpy.round(numpy.stack([wave, 0.9 * wave], 1) * 32768) / 32768 for name, wave in stems.items()}
    stems["mixture"] = sum(stems.values())
    stems["drums"] = stems["kick"] + stems["hihat"]
    if change:
        change(stems)
    folder.mkdir(parents=True)
    for name, wave in stems.items():
        soundfile.write(folder / f"{name}.wav", wave, rate, "PCM_16")
