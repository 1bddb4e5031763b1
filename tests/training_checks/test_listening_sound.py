"""What the page computes from clips: loudness as ffmpeg measures it, gains that match and never clip, anchors, pictures."""

import math
import re
import shutil
import subprocess

import numpy
import pytest
import soundfile

from training_checks.listening_page import sound

RATE = 32000


def tone(hertz: float, amplitude: float, seconds: float = 3.0, rate: int = RATE) -> numpy.ndarray:
    return (amplitude * numpy.sin(2 * numpy.pi * hertz * numpy.arange(int(seconds * rate)) / rate))[None].astype(numpy.float32)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg here: nothing to compare the loudness with")
@pytest.mark.parametrize("rate", [32000, 44100, 48000])
def test_loudness_is_what_ffmpeg_measures(rate, tmp_path):
    rng = numpy.random.default_rng(rate)
    noise = rng.standard_normal((2, 6 * rate)).astype(numpy.float32) * 0.05
    noise[:, 2 * rate : 4 * rate] *= 0.001  # falls to the gates
    for signal in (tone(1000, 0.5, 5, rate), tone(60, 0.5, 5, rate), noise):
        path = tmp_path / "x.wav"
        soundfile.write(path, signal.T, rate, subtype="FLOAT")
        command = ["ffmpeg", "-nostdin", "-hide_banner", "-i", str(path), "-af", "ebur128", "-f", "null", "-"]
        printed = subprocess.run(command, capture_output=True, text=True).stderr
        measured = float(re.findall(r"I:\s+(-?[\d.]+) LUFS", printed)[-1])
        assert sound.loudness(signal, rate) == pytest.approx(measured, abs=0.15)


def test_loudness_of_the_standard_s_tone_and_of_nothing():
    assert sound.loudness(tone(997, 1.0, rate=48000), 48000) == pytest.approx(-3.01, abs=0.05)  # BS.1770: -3.01 LKFS
    assert sound.loudness(numpy.zeros((1, RATE), numpy.float32), RATE) == -math.inf
    assert sound.loudness(numpy.zeros((1, 0), numpy.float32), RATE) == -math.inf
    assert math.isfinite(sound.loudness(tone(440, 0.5, 0.1), RATE))


def test_gains_bring_clips_to_one_loudness_without_clipping():
    clips = [tone(440, 0.9), tone(2000, 0.01), tone(100, 0.3), numpy.zeros((1, RATE), numpy.float32)]
    gains = sound.gains([(sound.loudness(clip, RATE), float(abs(clip).max())) for clip in clips])
    levels = [sound.loudness(clip * gain, RATE) for clip, gain in zip(clips, gains, strict=True)][:3]
    assert max(levels) - min(levels) < 0.01 and max(levels) <= sound.LOUDEST + 0.01
    assert all(abs(clip * gain).max() <= 0.9 for clip, gain in zip(clips, gains, strict=True)) and gains[3] == 1.0
    click = numpy.zeros((1, RATE), numpy.float32)
    click[0, ::8000] = 1.0
    matched = sound.gains([(sound.loudness(click, RATE), 1.0), (sound.loudness(clips[0], RATE), 0.9)])
    assert matched[0] == pytest.approx(sound.CEILING) and matched[1] < 1


def test_the_anchor_keeps_the_lows_takes_the_highs_and_does_not_delay():
    low, high = tone(1000, 0.5), tone(6000, 0.5)
    heard = sound.anchor(low + high, RATE)[:, RATE : 2 * RATE]
    assert abs(heard - low[:, RATE : 2 * RATE]).max() < 0.01
    assert sound.anchor(high, RATE)[:, RATE : 2 * RATE].std() < 1e-3
    assert numpy.array_equal(sound.anchor(low[:, :10], RATE), low[:, :10])


def test_the_picture_shows_when_and_how_high(tmp_path):
    from PIL import Image

    signal = numpy.concatenate([tone(500, 0.9, 1), numpy.zeros((1, 2 * RATE), numpy.float32), tone(6000, 0.45, 1)], 1)
    sound.draw(signal, RATE, tmp_path / "x.png")
    shown = numpy.asarray(Image.open(tmp_path / "x.png").convert("RGBA")).astype(int)
    assert shown.shape == (sound.WAVE + sound.BANDS, sound.WIDTH, 4)
    ink = (shown[: sound.WAVE, :, 3] > 0).sum(0)
    assert ink[10:110].min() > 1.8 * ink[370:470].max() / 1.1 and ink[130:350].max() <= 2
    spectrum = shown[sound.WAVE :, :, :3].sum(-1)
    brightest = [sound.BANDS - 1 - int(spectrum[:, column].argmax()) for column in (60, 420)]
    mels = [2595 * math.log10(1 + hertz / 700) for hertz in (500, 6000, RATE / 2)]
    assert brightest == pytest.approx([sound.BANDS * mel / mels[2] for mel in mels[:2]], abs=1.5)
    assert spectrum[:, 240].max() < 40


def test_pictures_of_odd_clips(tmp_path):
    for samples in (0, 1, 100):
        sound.draw(numpy.zeros((1, samples), numpy.float32), RATE, tmp_path / f"{samples}.png")
        assert (tmp_path / f"{samples}.png").stat().st_size > 0
