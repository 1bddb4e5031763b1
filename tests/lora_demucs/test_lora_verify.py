"""The verifier finds what was done to a track, and nothing in a clean one."""

import numpy
import pytest
import soundfile
from stem_examples import write_track

from music_training.lora_demucs import __main__ as command
from music_training.lora_demucs import verify

RATE = 44100


def shifted(count):
    def change(stems):
        stems["bass"] = numpy.roll(stems["bass"], count, axis=0)

    return change


def flipped(stems):
    stems["vocals"] = -stems["vocals"]


def bleeding(stems):
    stems["kick"] = numpy.round((stems["kick"] + 0.01 * stems["hihat"]) * 32768) / 32768


def clipped(stems):
    stems["other"] = numpy.clip(stems["other"], -0.05, 0.05)


def offset(stems):
    stems["bass"] = stems["bass"] + 0.03


def silent(stems):
    stems["vocals"] = 0 * stems["vocals"]


def shorter(stems):
    stems["kick"] = stems["kick"][: -RATE // 2]


FAULTS = {
    "shifted by 1": (shifted(1), "alignment", "bass", 1),
    "shifted by 100": (shifted(100), "alignment", "bass", 100),
    "early by 7": (shifted(-7), "alignment", "bass", -7),
    "flipped": (flipped, "polarity", "vocals", None),
    "bleeding": (bleeding, "bleed", "hihat", None),
    "clipped": (clipped, "clipping", "other", None),
    "offset": (offset, "dc", "bass", None),
    "shorter": (shorter, "length", "kick", RATE // 2),
}


def look(folder, **options):
    report = verify.verify(folder, workers=1, **options)
    assert len(report.tracks) == 1
    return report.tracks[0]


def test_a_clean_track_passes_without_a_warning(tmp_path):
    write_track(tmp_path / "clean", 1, rate=RATE)
    found = look(tmp_path)
    assert found.passed and [item for item in found.findings if item.level != "note"] == []
    assert -40 < found.loudness < 0


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_with_its_stem_and_figure(tmp_path, name):
    change, kind, stem, value = FAULTS[name]
    write_track(tmp_path / "track", 1, rate=RATE, change=change)
    found = look(tmp_path)
    assert not found.passed
    failed = [item for item in found.findings if item.level == "fail" and item.kind == kind]
    assert stem in [item.stem for item in failed], found.findings
    if value is not None:
        assert next(item for item in failed if item.stem == stem).value == value
    if kind in ("alignment", "polarity"):  # nobody else is blamed
        assert {item.stem for item in found.findings if item.kind in ("alignment", "polarity")} == {stem}


def test_a_silent_stem_is_a_warning(tmp_path):
    def change(stems):
        stems["mixture"] = stems["mixture"] - stems["vocals"]
        silent(stems)

    write_track(tmp_path / "track", 1, rate=RATE, change=change)
    found = look(tmp_path)
    assert found.passed and [item.stem for item in found.findings if item.kind == "silence"] == ["vocals"]


def test_another_rate_is_found(tmp_path):
    write_track(tmp_path / "track", 1, rate=RATE)
    samples, _ = soundfile.read(tmp_path / "track" / "bass.wav")
    soundfile.write(tmp_path / "track" / "bass.wav", samples, 48000, "PCM_16")
    assert [item.stem for item in look(tmp_path).findings if item.kind == "rate" and item.level == "fail"] == ["bass"]


def test_fixing_pads_and_mixes(tmp_path):
    write_track(tmp_path / "track", 1, rate=RATE, change=shorter)
    (tmp_path / "track" / "mixture.wav").unlink()
    look(tmp_path, fix=True)
    found = look(tmp_path)
    assert found.passed and [item for item in found.findings if item.level != "note"] == []


def test_the_command_says_it_and_exits_with_1(tmp_path, capsys):
    write_track(tmp_path / "train" / "one", 1, rate=RATE)
    write_track(tmp_path / "valid" / "two", 2, rate=RATE, change=flipped)
    page = tmp_path / "page.html"
    assert command.main(["verify", str(tmp_path), "--workers", "1", "--report", str(page)]) == 1
    said = capsys.readouterr().out
    assert "train/one: ok" in said and "valid/two: fail: vocals: polarity is flipped" in said and "below the minimum" in said
    assert "polarity is flipped" in page.read_text()


@pytest.mark.real
def test_real_silent_stems(real_data):
    found = look(real_data / "babyslakh")
    assert [item.stem for item in found.findings if item.kind == "silence"]
