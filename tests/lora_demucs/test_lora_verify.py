"""The verifier finds what was done to a track, and nothing in a clean one."""

from pathlib import Path

import numpy
import pytest
import soundfile
from stem_examples import write_track

from music_training.lora_demucs import __main__ as command
from music_training.lora_demucs import findings, verify

RATE = 44100
PEAKS = {"clav": 1.01, "drums": 1.04, "horns": 1.128}


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


def test_bleed_that_is_in_the_mixture_too(tmp_path):
    def change(stems):
        stems["kick"] = stems["kick"] + 0.01 * numpy.roll(stems["hihat"], 30, 0)
        stems["mixture"] = sum(stems[name] for name in ("other", "kick", "vocals", "bass", "hihat"))

    write_track(tmp_path / "track", 1, rate=RATE, change=change)
    failed = [item for item in look(tmp_path).findings if item.level == "fail"]
    assert [(item.kind, item.stem) for item in failed] == [("bleed", "kick")]
    assert failed[0].value == pytest.approx(-40, abs=2) and "holds hihat" in failed[0].text and "0.7 ms later" in failed[0].text


def test_true_peak_against_oversampling():
    from scipy.signal import resample_poly

    time = numpy.arange(9000)
    noise = resample_poly(numpy.random.default_rng(3).standard_normal((2, 8000)), 9, 8, axis=1)
    for waves in (noise, numpy.sin(numpy.pi / 2 * time + numpy.pi / 4)[None]):
        waves = waves * numpy.hanning(9000)
        samples = (0.95 * waves / numpy.abs(waves).max()).astype(numpy.float32)
        wanted = numpy.abs(resample_poly(samples, 16, 1, axis=1)).max()
        assert findings.true_peak(samples, float(numpy.abs(samples).max())) == pytest.approx(wanted, rel=0.01)
    assert wanted == pytest.approx(0.95 * 2**0.5, rel=3e-3)  # a quarter of the rate: 3 dB above the samples


def test_a_repeated_hit_is_not_clipped():
    hit = numpy.random.default_rng(0).standard_normal(300).astype(numpy.float32)
    hit /= numpy.abs(hit).max()
    place = int(numpy.abs(hit).argmax())
    hit[place - 1] = hit[place]  # two samples at the peak, each time that it sounds
    repeated = numpy.tile(hit, 100)[None]
    assert findings.clipped_places(repeated, 1.0) < 5
    assert findings.clipped_places(numpy.clip(numpy.random.default_rng(1).standard_normal((1, 9000)), -1, 1), 1.0) > 50


def test_values_that_are_no_numbers(tmp_path):
    write_track(tmp_path / "track", 1, rate=RATE)
    samples, _ = soundfile.read(tmp_path / "track" / "kick.wav")
    samples[99] = numpy.nan
    soundfile.write(tmp_path / "track" / "kick.wav", samples, RATE, "FLOAT")
    assert [item.stem for item in look(tmp_path).findings if item.kind == "format" and item.level == "fail"] == ["kick"]


@pytest.mark.real
def test_a_real_song_with_a_short_stem_and_peaks_above_full_scale(real_data):
    found = look(real_data / "mdn_stems")
    assert not found.passed
    failed = {(item.kind, item.stem): item.value for item in found.findings if item.level == "fail"}
    assert failed.pop(("length", "bassguitar")) == pytest.approx(3 * 44100, rel=0.03)
    assert failed == {("clipping", name): pytest.approx(peak, abs=0.01) for name, peak in PEAKS.items()}  # and no bleed


@pytest.mark.real
def test_tracks_of_recorded_sounds_are_clean_and_known(real_data, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(verify.__file__).parents[2] / "benchmarks"))
    import lora_on_real_sounds as real

    for number in (0, 1):
        made, again = (real.assemble(real_data / "sonic_pi_samples", number, RATE, 2, 8.0) for _ in range(2))
        assert set(made) == {*real.STEMS, *(["loop"] if number else [])} and all(
            numpy.array_equal(made[name], again[name]) for name in made
        )
        assert numpy.abs(sum(made.values())).max() == pytest.approx(0.9, abs=1e-4)
        folder = tmp_path / f"track{number}"
        folder.mkdir()
        for name, wave in {**made, "mixture": sum(made.values())}.items():
            soundfile.write(folder / f"{name}.wav", wave.T, RATE, "PCM_24")
        assert [item for item in look(folder).findings if item.level != "note"] == []


@pytest.mark.real
def test_real_silent_stems(real_data):
    found = look(real_data / "babyslakh")
    assert found.passed and [item.stem for item in found.findings if item.kind == "silence"] == ["S01", "S02", "S03"]


@pytest.mark.long
def test_studio_tracks_are_clean_and_faults_in_them_are_found(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(verify.__file__).parents[2] / "benchmarks"))
    import stem_verifier

    from music_training import files
    from music_training.library import catalogue
    from music_training.library.sources import studio

    studio.compose_library(studio.StudioSettings(artists=10, seconds=(20, 30), dialogues=0, workers=1), "clean", "test")
    rows = catalogue.read(catalogue.path_of("clean"))
    assert len(rows) >= 20
    in_the_mixture = []  # whether bleed of -40 dB was found that the mixture has, too: as the figures say, not always
    for number, row in enumerate(rows):
        paths = {name: str(files.absolute(path)) for name, path in row.stems.items()}
        job = verify.Job(row.id, "", paths, str(files.absolute(row.path)))
        assert [item for item in verify.check(job, stem_verifier.STEMS).findings if item.level != "note"] == []
        for place, (fault, (_, kind)) in enumerate(stem_verifier.FAULTS.items()):
            if place % 4 != number % 4:  # each fault on several tracks is enough
                continue
            folder = tmp_path / f"{row.id}_{place}"
            folder.mkdir()
            made, stem, source = stem_verifier.tampered(job, fault, number, folder)
            failed = [item for item in verify.check(made, stem_verifier.STEMS).findings if item.level == "fail"]
            found = any(item.kind == kind and item.stem in (stem, source) for item in failed)
            if kind == "bleed" and "mixture" in fault:
                in_the_mixture.append(found)
            else:
                assert found, (row.id, fault, stem, failed)
    assert sum(in_the_mixture) >= 0.7 * len(in_the_mixture)
