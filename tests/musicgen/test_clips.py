"""What is measured of a clip, on signals whose answers are known, and what is called a fault."""

import math

import numpy
import pytest
import torch

from music_training.library import audio
from music_training.musicgen import clips

RATE = 32000


@pytest.fixture
def noise():
    return numpy.random.default_rng(0).standard_normal


def tone(seconds: float, level: float = 0.5, hertz: float = 440.0) -> numpy.ndarray:
    return level * numpy.sin(2 * math.pi * hertz * numpy.arange(int(seconds * RATE)) / RATE)


def test_levels_of_a_tone():
    figures = clips.measure(tone(2), RATE)
    assert figures.rms_db == pytest.approx(20 * math.log10(0.5 / math.sqrt(2)), abs=0.01)
    assert figures.peak == pytest.approx(0.5, abs=1e-3)
    assert (figures.silence, figures.clipping) == (0, 0)
    assert figures.repetition == pytest.approx(1, abs=1e-3) and figures.faults() == ["a loop"]


def test_a_tensor_of_two_channels_counts_as_their_mean(noise):
    left = torch.from_numpy(noise(RATE) * 0.1)
    assert clips.measure(torch.stack([left, -left]), RATE).faults() == ["silent"]
    assert clips.measure(torch.stack([left, left]), RATE) == clips.measure(left.numpy(), RATE)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.75])
def test_silence_is_the_share_of_silent_frames(noise, share):
    samples = 0.1 * noise(4 * RATE)
    samples[: int(share * len(samples))] *= 1e-4
    figures = clips.measure(samples, RATE)
    assert figures.silence == pytest.approx(share, abs=0.02)
    assert figures.faults() == (["75% silent"] if share > 0.5 else [])


def test_silence_itself_and_nothing_at_all():
    assert clips.measure(numpy.zeros(RATE), RATE).faults() == ["silent"]
    assert clips.measure(numpy.zeros(0), RATE).faults() == ["silent"]
    assert clips.measure(numpy.array([0.1, numpy.nan]), RATE).faults() == ["not a number"]
    assert clips.measure(numpy.array([0.1, numpy.inf]), RATE).faults() == ["not a number"]


def test_clipping_is_the_share_that_stands_at_full_scale(noise):
    loud = 2 * numpy.sin(2 * math.pi * 100 * numpy.arange(RATE) / RATE)
    expected = float((numpy.abs(loud) >= 1).mean())  # two thirds of a period of twice full scale
    assert expected == pytest.approx(2 / 3, abs=0.01)
    assert clips.measure(loud, RATE).clipping == pytest.approx(expected, abs=0.01)
    assert clips.measure(numpy.clip(loud, -1, 1), RATE).clipping == pytest.approx(expected, abs=0.01)
    assert clips.measure(tone(1, 0.999), RATE).clipping == 0  # full scale alone is no fault
    steps = numpy.round(32767 * numpy.clip(loud, -1, 1)) / 32768  # as a file of 16 bits gives it back
    assert clips.measure(steps, RATE).clipping == pytest.approx(expected, abs=0.01)
    assert clips.measure(0.1 * noise(RATE), RATE).clipping == 0


def test_an_exact_loop_is_found_and_noise_is_none(noise):
    bar = 0.1 * noise(int(0.6 * RATE))
    assert clips.measure(numpy.tile(bar, 6), RATE).faults() == ["a loop"]
    assert clips.measure(0.1 * noise(4 * RATE), RATE).repetition < 0.05
    varied = numpy.tile(bar, 6) + 0.1 * noise(6 * len(bar))  # as much that is new as comes again
    assert clips.measure(varied, RATE).repetition == pytest.approx(0.5, abs=0.05)
    assert clips.measure(bar[: int(0.4 * RATE)], RATE).repetition == 0  # too short to tell
    half = numpy.concatenate([0.1 * noise(2 * RATE), numpy.zeros(2 * RATE)])
    assert clips.measure(half, RATE).repetition < 0.1


def test_recorded_music_passes(real_data):
    """Whole recordings of the real data: none is called a loop, clipped or silent."""
    found = {}
    for path in sorted([*real_data.glob("librosa_data/**/*.ogg"), *real_data.glob("audiocraft/**/*.mp3"), *real_data.glob("fma/**/*.mp3")]):
        samples, rate = audio.read(path)
        found[path.name] = clips.measure(samples[: 20 * rate], rate)
    assert len(found) >= 3
    assert {name: figures.faults() for name, figures in found.items() if figures.faults()} == {}


def test_the_best_comes_first(noise):
    good = clips.measure(0.1 * noise(2 * RATE), RATE)
    looped = clips.measure(numpy.tile(0.1 * noise(RATE // 2), 4), RATE)
    silent = clips.measure(numpy.zeros(RATE), RATE)
    broken = clips.measure(numpy.full(RATE, numpy.nan), RATE)
    assert clips.best_first([looped, good, good])[:2] == [1, 2]
    order = clips.best_first([broken, silent, looped, good])
    assert order[0] == 3 and set(order[1:]) == {0, 1, 2}
