"""Decoding, averaging and resampling against ffmpeg and against what the tones must become."""

import subprocess

import numpy as np
import pytest
import soundfile
import soxr

from music_training.errors import UserError
from music_training.library import audio


def tone(frequency, rate, seconds, level=0.5):
    return (level * np.sin(2 * np.pi * frequency * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def write(path, x, rate, **options):
    soundfile.write(path, x, rate, **options)
    return path


def ffmpeg(*arguments):
    return subprocess.run(["ffmpeg", "-v", "error", "-y", *map(str, arguments)], check=True, capture_output=True).stdout


def pitch(x, rate):
    return np.argmax(np.abs(np.fft.rfft(x * np.hanning(len(x))))) * rate / len(x)


def rms(x):
    return np.sqrt(np.mean(np.square(x, dtype=np.float64)))


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 32000, 44100, 48000, 96000])
def test_a_tone_keeps_level_and_pitch_and_agrees_with_ffmpeg(tmp_path, rate):
    path = write(tmp_path / "tone.wav", tone(1000, rate, 3), rate, subtype="FLOAT")
    x, sample_rate = audio.read(path, 32000)
    peer = np.frombuffer(ffmpeg("-i", path, "-ac", 1, "-ar", 32000, "-f", "f32le", "-"), np.float32)
    assert sample_rate == 32000 and len(x) == 96000 and abs(len(peer) - len(x)) <= 32
    middle = slice(8000, 88000)
    assert abs(20 * np.log10(rms(x[middle]) / (0.5 / np.sqrt(2)))) < 0.01
    assert abs(20 * np.log10(rms(x[middle]) / rms(peer[middle]))) < 0.1
    assert abs(pitch(x[middle], 32000) - 1000) < 0.5
    assert np.abs(x[middle] - peer[middle]).max() < 0.01  # no shift in time either


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg", "opus", "m4a", "aac"])
def test_every_format_gives_the_mean_of_its_channels(tmp_path, suffix):
    left, right = tone(500, 48000, 4, 0.6), tone(500, 48000, 4, 0.2)
    wav = write(tmp_path / "x.wav", np.stack([left, right], 1), 48000)
    path = tmp_path / f"x.{suffix}"
    if suffix != "wav":
        ffmpeg("-i", wav, "-b:a", "256k", path)
    x, _ = audio.read(path, 32000)
    assert abs(len(x) / 32000 - 4) < 0.1
    assert abs(20 * np.log10(rms(x[32000:96000]) / (0.4 / np.sqrt(2)))) < 0.1  # ffmpeg -ac 1 on float is 3 dB above


def test_opposite_channels_cancel_and_six_are_averaged(tmp_path):
    x = tone(500, 32000, 1)
    assert rms(audio.read(write(tmp_path / "a.wav", np.stack([x, -x], 1), 32000, subtype="FLOAT"))[0]) == 0
    six = write(tmp_path / "b.wav", np.stack([x, x, x, 0 * x, 0 * x, 0 * x], 1), 32000, subtype="FLOAT")
    np.testing.assert_allclose(audio.read(six)[0], x / 2, atol=1e-6)
    assert audio.read(six, channels=True)[0].shape == (6, 32000)


def test_streaming_equals_resampling_in_one_piece(tmp_path, monkeypatch):
    x = np.random.default_rng(0).standard_normal(300001).astype(np.float32) * 0.1
    path = write(tmp_path / "x.wav", x, 44100, subtype="FLOAT")
    whole = soxr.resample(x, 44100, 32000, audio.QUALITY)
    for block in (1000, 65536):
        monkeypatch.setattr(audio, "BLOCK", block)
        np.testing.assert_array_equal(audio.read(path, 32000)[0], whole)


def test_a_tone_above_the_new_nyquist_frequency_does_not_come_back(tmp_path):
    path = write(tmp_path / "x.wav", tone(17000, 44100, 2, 0.9), 44100, subtype="FLOAT")
    assert 20 * np.log10(rms(audio.read(path, 32000)[0][8000:-8000]) + 1e-12) < -100


def test_mp3_without_a_length_is_read_to_its_end(tmp_path):
    """libsndfile guesses the length of these from the first bit rate and drops two thirds of one."""
    noise = np.random.default_rng(0).standard_normal(44100 * 20).astype(np.float32) * 0.2
    wav = write(tmp_path / "x.wav", np.concatenate([noise, tone(440, 44100, 20)]), 44100)
    for name, options in (("vbr", ["-q:a", 4]), ("cbr", ["-b:a", "128k"])):
        path = tmp_path / f"{name}.mp3"
        ffmpeg("-i", wav, *options, "-write_xing", 0, path)
        assert abs(len(audio.read(path)[0]) / 44100 - 40) < 0.1
        with audio.open_stream(path) as stream:
            assert stream.declared is None
    with soundfile.SoundFile(tmp_path / "vbr.mp3") as sound:
        assert sound.frames / 44100 < 35  # the fault that is worked around


def test_two_mp3_files_put_together_are_read_to_their_end(tmp_path):
    ffmpeg("-i", write(tmp_path / "x.wav", tone(440, 44100, 20), 44100), "-b:a", "128k", tmp_path / "x.mp3")
    both = tmp_path / "both.mp3"
    both.write_bytes((tmp_path / "x.mp3").read_bytes() * 2)
    assert abs(len(audio.read(both)[0]) / 44100 - 40) < 0.2


def test_reading_leaves_the_standard_error_alone(tmp_path, capfd):
    ffmpeg("-i", write(tmp_path / "x.wav", tone(440, 44100, 5), 44100), tmp_path / "x.mp3")
    cut = tmp_path / "cut.mp3"
    cut.write_bytes((tmp_path / "x.mp3").read_bytes()[:30000])
    audio.read(cut)
    import os

    os.write(2, b"still there")
    assert capfd.readouterr().err == "still there"


def test_what_is_not_audio_is_one_clear_error(tmp_path):
    for name, content in (("empty.wav", b""), ("text.mp3", b"no audio at all"), ("text.m4a", b"none here either")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            audio.read(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        audio.read(tmp_path / "missing.wav")


def test_names_that_look_like_options_or_protocols(tmp_path):
    wav = write(tmp_path / "x.wav", tone(440, 44100, 1), 44100)
    for name in ("-y.m4a", "concat:a|b.m4a", "ünï 音.m4a", "100%d.m4a"):
        ffmpeg("-i", wav, "-f", "ipod", f"file:{tmp_path / name}")
        assert len(audio.read(tmp_path / name)[0]) > 40000
