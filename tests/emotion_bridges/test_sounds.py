"""Scores as sound: by the studio library, and by fluidsynth where it is."""

import shutil

import numpy
import pytest
import soundfile
import symusic

from music_training import files
from music_training.emotion_bridges import sounds
from music_training.errors import UserError


def score(pitch: int) -> symusic.Score:
    made = symusic.Score(480)
    made.tempos.append(symusic.Tempo(0, 120.0))
    track = symusic.Track("lead", 0, False)
    track.notes.append(symusic.Note(0, 960, pitch, 100))
    made.tracks.append(track)
    return made


def heard(path) -> tuple[numpy.ndarray, int]:
    samples, rate = soundfile.read(path, always_2d=True)
    return samples.mean(1), rate


def strongest(samples: numpy.ndarray, rate: int) -> float:
    """The frequency (Hz) of the largest peak below 600 Hz."""
    power = numpy.abs(numpy.fft.rfft(samples * numpy.hanning(len(samples)), 8 * len(samples)))
    frequencies = numpy.fft.rfftfreq(8 * len(samples), 1 / rate)
    return float(frequencies[numpy.where(frequencies < 600, power, 0).argmax()])


def test_the_studio_plays_a_score(tmp_path):
    samples, rate = heard(sounds.studio(score(69), tmp_path / "a.wav"))
    assert rate == sounds.RATE and numpy.abs(samples).max() > 0.01
    with pytest.raises(UserError, match="no notes"):
        sounds.studio(symusic.Score(480), tmp_path / "b.wav")


@pytest.mark.parametrize("pitch", [57, 69])
def test_fluidsynth_plays_the_pitch(tmp_path, pitch):
    font = sounds.soundfont()
    if font is None:
        pytest.skip("fluidsynth or a sound font is not installed")
    samples, rate = heard(sounds.fluidsynth(score(pitch), tmp_path / "a.wav", font))
    assert rate == sounds.RATE and numpy.abs(samples).max() > 0.01
    played = strongest(samples[: int(0.9 * rate)], rate)
    assert played == pytest.approx(440 * 2 ** ((pitch - 69) / 12), rel=0.01)


def test_what_fluidsynth_cannot_do_is_one_line(tmp_path, monkeypatch):
    with monkeypatch.context() as changed:
        changed.setattr(shutil, "which", lambda name: None)
        assert sounds.soundfont() is None
        with pytest.raises(UserError, match="apt-get install fluidsynth"):
            sounds.fluidsynth(score(69), tmp_path / "a.wav", tmp_path / "none.sf2")
    if shutil.which("fluidsynth") is None:
        pytest.skip("fluidsynth is not installed")
    monkeypatch.setenv("MUSIC_SOUNDFONT", str(tmp_path / "none.sf2"))
    with pytest.raises(UserError, match="no such sound font"):
        sounds.fluidsynth(score(69), tmp_path / "a.wav", sounds.soundfont())
    wrong = files.write_text(tmp_path / "wrong.sf2", "not a sound font")
    with pytest.raises(UserError, match="cannot play with it"):
        sounds.fluidsynth(score(69), tmp_path / "a.wav", wrong)
    assert not (tmp_path / "a.wav").exists()
