"""The studio library against its own ground truth, measured in the audio by other means than those that made it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
import symusic
import yaml

from music_training import config, files, profiles
from music_training.errors import UserError
from music_training.library import catalogue
from music_training.library.sources import studio
from music_training.library.sources.studio import __main__ as command
from music_training.library.sources.studio import arrangement, artists, mixing, pictures, song, truth

RATE = 22050
SETTINGS = studio.StudioSettings(
    artists=5, tracks_per_artist=2, seconds=(20, 26), sample_rate=RATE, dialogues=3, dialogue_seconds=8, speakers=8, workers=2
)
SMALL = {"artists": 3, "tracks_per_artist": 1, "seconds": [20, 20], "sample_rate": 16000, "dialogues": 1, "dialogue_seconds": 5}


@pytest.fixture(scope="module")
def composed(tmp_path_factory) -> Path:
    """An outputs folder with a small library in it."""
    root = tmp_path_factory.mktemp("studio") / "outputs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUSIC_OUTPUTS", str(root))
        studio.compose_library(SETTINGS, "small", "test")
    return root


@pytest.fixture
def tracks(composed, monkeypatch) -> list[catalogue.Track]:
    monkeypatch.setenv("MUSIC_OUTPUTS", str(composed))
    return catalogue.read(catalogue.path_of("small"))


def read(path: str) -> np.ndarray:
    return soundfile.read(files.absolute(path), dtype="int16")[0].astype(np.int64)


def beats_of(track: catalogue.Track) -> np.ndarray:
    return np.loadtxt(files.absolute(track.annotation).with_name("beats.tsv"))


def midi_onsets(track: catalogue.Track, *pitches: int) -> np.ndarray:
    """Onsets (s) of drum notes, through symusic's own reading of tempo and ticks."""
    score = symusic.Score(str(files.absolute(track.midi))).to("second")
    return np.array(sorted({note.time for part in score.tracks if part.is_drum for note in part.notes if note.pitch in pitches}))


def rises(sound: np.ndarray, times: np.ndarray, within: float, width: float) -> float:
    """The share of ``times`` (s) at which the energy rises threefold or more, and nowhere within 15 ms more steeply.

    The energy after an instant is compared with that before it, in windows of ``width`` seconds; the steepest rise has
    to lie ``within`` seconds of the time.
    """
    energy = np.concatenate([[0.0], np.cumsum((sound / 32768.0) ** 2)])
    width, hits = int(width * RATE), 0
    for moment in times:
        centres = np.arange(int((moment - 0.015) * RATE), int((moment + 0.015) * RATE))
        centres = centres[(centres > width) & (centres < len(sound) - width)]
        after = energy[centres + width] - energy[centres]
        before = energy[centres] - energy[centres - width]
        ratio = (after + 1e-6) / (before + 1e-6)
        best = int(ratio.argmax())
        hits += bool(ratio[best] > 3 and abs(centres[best] / RATE - moment) <= within)
    return hits / len(times)


def tree(root: Path) -> dict[str, str]:
    library = root / "library"
    return {path.relative_to(library).as_posix(): files.digest(path) for path in sorted(library.rglob("*")) if path.is_file()}


def test_stems_sum_to_the_mixture_sample_for_sample(tracks):
    for track in tracks:
        stems = {name: read(path) for name, path in track.stems.items()}
        np.testing.assert_array_equal(sum(stems[name] for name in mixing.STEMS), read(track.path))
        np.testing.assert_array_equal(stems["kick"] + stems["hihat"], stems["drums"])


def test_levels_are_those_of_music(tracks):
    for track in tracks:
        mixture = read(track.path) / 32768
        level = 10 * np.log10(np.mean(mixture**2))
        assert -24 < level < -9, track.id
        assert 0.3 < np.abs(mixture).max() < 0.99, "no clipping, and loud enough"
        assert abs(mixture.mean()) < 3e-3, "no direct current"
        for name, path in track.stems.items():
            stem = read(path) / 32768
            assert 10 * np.log10(np.mean(stem**2)) > level - 36, f"{track.id}: {name} is as good as silent"
            assert np.abs(stem).max() < 1


def test_kicks_stand_where_beats_are_written(tracks):
    found = 0
    for track in tracks:
        if track.genre not in ("house", "techno", "trance"):
            continue
        annotation = yaml.safe_load(files.absolute(track.annotation).read_text())
        drop = next(index for index, section in enumerate(annotation["structure"]) if section["label"] == "drop")
        start = annotation["structure"][drop]["time"]
        beats = beats_of(track)[:, 0]
        bar = 240 / track.bpm
        beats = beats[(beats >= start - 1e-6) & (beats < start + 3.4 * bar)]  # its last bar may break off
        kick = read(track.stems["kick"]).sum(axis=1) / 2
        assert rises(kick, beats, 0.004, 0.008) > 0.9, track.id  # a clap may come a little before
        assert rises(kick, beats + 0.21 * 60 / track.bpm, 0.004, 0.008) < 0.4, "the measure can fail"
        found += 1
    assert found >= 3


def test_midi_lies_on_the_audio(tracks):
    shares, moved = [], []
    for track in tracks:
        onsets = midi_onsets(track, 42, 46)
        hats = read(track.stems["hihat"])[:, 0]
        shares.append(rises(hats, onsets, 0.003, 0.002))
        moved.append(rises(hats, onsets + 0.035, 0.003, 0.002))
    assert min(shares) > 0.8 and np.mean(shares) > 0.87  # two hits within milliseconds have one onset
    assert np.mean(moved) < 0.1


def test_bass_has_the_pitches_of_the_midi(tracks):
    right = total = 0
    for track in tracks[:6]:
        bass = read(track.stems["bass"])[:, 0] / 32768
        score = symusic.Score(str(files.absolute(track.midi))).to("second")
        for note in next(part for part in score.tracks if part.name == "bass").notes[:20]:
            start = int((note.time + 0.02) * RATE)
            sound = bass[start : start + int(max(0.1, note.duration - 0.03) * RATE)]
            spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), 1 << 17))
            hz = np.fft.rfftfreq(1 << 17, 1 / RATE)
            low = (hz > 28) & (hz < 135)
            expected = 440 * 2 ** ((note.pitch - 69) / 12)
            ratio = hz[low][np.argmax(spectrum[low])] / expected
            right += min(abs(np.log2(ratio)), abs(np.log2(ratio / 2))) < 1 / 12
            total += 1
    assert right / total > 0.9


def test_annotations_are_sound(tracks):
    for track in tracks:
        annotation = yaml.safe_load(files.absolute(track.annotation).read_text())
        audio, structure = annotation["audio"], annotation["structure"]
        info = soundfile.info(files.absolute(track.path))
        assert audio["file"] == track.path and audio["time_signature"] == [4, 4]
        assert audio["duration"] == pytest.approx(info.duration, abs=1e-5) == track.duration
        beats = beats_of(track)
        downbeats = beats[beats[:, 1] == 1, 0]
        assert audio["downbeat"] == pytest.approx(downbeats[0], abs=1e-5)
        assert np.diff(beats[:, 0]) == pytest.approx(60 / audio["bpm"], abs=1e-5)
        assert {section["label"] for section in structure} <= {"intro", "buildup", "drop", "breakdown", "outro"}
        assert structure[0]["label"] == "intro" and structure[-1]["label"] == "outro" and structure[0]["bar"] == 1
        times = [section["time"] for section in structure]
        assert times == sorted(set(times)) and times[-1] < audio["duration"]
        for section in structure:
            assert (section["bar"] - 1) % 4 == 0
            assert section["time"] == pytest.approx(downbeats[section["bar"] - 1], abs=1e-5)


def test_the_catalogue_is_complete(tracks):
    assert len(tracks) == 10 and len({track.artist_id for track in tracks}) == 5
    for track in tracks:
        for name in ("path", "annotation", "midi"):
            path = getattr(track, name)
            assert not os.path.isabs(path) and files.absolute(path).is_file()
        assert set(track.stems) == {*mixing.STEMS, "drums"}
        assert track.synthetic and "synthetic" in track.licence and track.source == "studio"
        empty = [name for name, value in vars(track).items() if value in ("", (), {}, None)]
        assert not empty, f"{track.id}: {empty}"
        assert -1 <= track.valence <= 1 and -1 <= track.arousal <= 1 and 0 <= track.intensity <= 1
        low, high = next(style.bpm for style in artists.STYLES.values() if style.label == track.genre)
        assert low <= track.bpm <= high
        facts = files.read_json(files.absolute(track.annotation).with_name("track.json"))
        assert {"title", "artist", "key", "bpm", "genre", "moods", "description", "name", "instrument", "keywords"} <= set(facts)
        assert track.genre in facts["description"] and track.key in facts["description"]


def test_artists_sound_like_themselves(tracks):
    """The nearest neighbour of a track by the spectra of its drums is mostly by the same artist."""
    features = []
    for track in tracks:
        spectra = []
        for stem in ("kick", "hihat"):
            sound = read(track.stems[stem])[:, 0]
            power = (np.abs(np.fft.rfft(sound[: len(sound) // 1024 * 1024].reshape(-1, 1024) * np.hanning(1024))) ** 2).mean(axis=0)
            edges = np.unique(np.geomspace(1, 512, 25).astype(int))
            bands = np.log(np.add.reduceat(power[:512], edges[:-1]) + 1e-3)
            spectra.append(bands - bands.mean())
        features.append(np.concatenate(spectra))
    distance = np.linalg.norm(np.array(features)[:, None] - np.array(features)[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    owners = np.array([track.artist_id for track in tracks])
    assert (owners[distance.argmin(axis=1)] == owners).mean() >= 0.5  # chance: 1 in 9


def test_emotion_shapes_the_music():
    """Over many songs: arousal goes with notes per second and velocity, valence with the mode and the lead's height."""
    rows = []
    for index in range(80):
        artist = artists.draw_artist(5, index, tuple(artists.STYLES))
        made = arrangement.compose(5, artist, index, 0, (30, 40))
        velocities = [note.velocity for note in made.notes if note.part in ("lead", "stab", "bass")]
        lead = [note.pitch for note in made.notes if note.part == "lead"] or [72]
        low, high = made.style.bpm
        place = (made.bpm - low) / (high - low)
        density, major = len(made.notes) / made.duration, made.key.endswith("major")
        rows.append((made.emotion.valence, made.emotion.arousal, density, np.mean(velocities), place, major, np.mean(lead)))
    valence, arousal, *measured = (np.argsort(np.argsort(column, kind="stable")) for column in np.array(rows, float).T)
    density, velocity, place, major, height = measured
    correlate = lambda a, b: np.corrcoef(a, b)[0, 1]  # noqa: E731
    assert correlate(arousal, density) > 0.8 and correlate(arousal, velocity) > 0.8 and correlate(arousal, place) > 0.8
    assert correlate(valence, major) > 0.7 and correlate(valence, height) > 0.5
    assert abs(correlate(valence, arousal)) < 0.2, "the two are drawn independently"


def test_forms_are_songs():
    rng = np.random.default_rng(0)
    for bars in (8, 16, 24, 36, 64, 120, 400):
        sections = song.draw_form(bars, rng)
        assert sections[0].label == "intro" and sections[-1].label == "outro" and any(s.label == "drop" for s in sections)
        assert all(section.bars % 4 == 0 for section in sections)
        assert sum(section.bars for section in sections) == max(16, 4 * round(bars / 4))
        for before, after in zip(sections, sections[1:], strict=False):
            assert after.bar == before.bar + before.bars and after.label != before.label


def test_dialogues_have_speech_where_the_rttm_says(tracks):
    talks = pictures.dialogues("small")
    assert len(talks) == 3 and all(talk["synthetic"] for talk in talks)
    assert not set(talks[0]["speakers"]) & set(talks[1]["speakers"]), "casts do not mix"
    for talk in talks:
        sound, rate = soundfile.read(files.absolute(talk["path"]))
        assert rate == 16000 and sound.ndim == 1 and len(sound) / rate == talk["duration"] == 8.0
        spoken = np.zeros(len(sound), bool)
        ends: dict[str, float] = {}
        for line in files.absolute(talk["rttm"]).read_text().splitlines():
            kind, name, _, start, length, _, _, speaker, *_ = line.split()
            start, end = float(start), float(start) + float(length)
            assert kind == "SPEAKER" and name == talk["id"] and speaker in talk["speakers"] and end <= 8.0
            assert start >= ends.get(speaker, 0.0), "nobody overlaps with oneself"
            ends[speaker] = end
            spoken[int(start * rate) : int(end * rate)] = True
        assert 0.3 < spoken.mean() < 1
        assert np.std(sound[spoken]) > 4 * np.std(sound[~spoken])


def test_the_same_bytes_on_one_worker_and_two(tmp_path, monkeypatch):
    trees = []
    for workers in (1, 2):
        monkeypatch.setenv("MUSIC_OUTPUTS", str(tmp_path / str(workers)))
        studio.compose_library(config.load(studio.StudioSettings, {**SMALL, "workers": workers}), "x", "test")
        trees.append(tree(tmp_path / str(workers)))
    assert trees[0] == trees[1] and len(trees[0]) > 30
    monkeypatch.setenv("MUSIC_OUTPUTS", str(tmp_path / "seed"))
    studio.compose_library(config.load(studio.StudioSettings, {**SMALL, "workers": 1, "seed": 2}), "x", "test")
    other = tree(tmp_path / "seed")
    assert not {name for name in other if name.endswith(".wav") and other[name] == trees[0].get(name)}


def test_a_second_run_does_nothing_and_a_damaged_track_is_made_again(outputs, capsys):
    settings = config.load(studio.StudioSettings, {**SMALL, "workers": 1})
    assert not studio.compose_library(settings, "x", "test").skipped
    before, stamps = tree(outputs), {path: path.stat().st_mtime_ns for path in outputs.rglob("*") if path.is_file()}
    assert studio.compose_library(settings, "x", "test").skipped
    assert stamps == {path: path.stat().st_mtime_ns for path in outputs.rglob("*") if path.is_file()}
    assert "compose_library: up to date" in capsys.readouterr().out
    kept = outputs / "library/x/tracks/artist_001_track_001/mixture.wav"
    (outputs / "library/x/tracks/artist_002_track_001/stems/bass.wav").unlink()
    (outputs / "library/x/tracks/.artist_003_track_001.77.tmp").mkdir()
    assert not studio.compose_library(settings, "x", "test").skipped
    assert tree(outputs) == before
    assert kept.stat().st_mtime_ns == stamps[kept], "whole tracks are kept"


def test_tracks_of_other_settings_are_removed(outputs):
    studio.compose_library(config.load(studio.StudioSettings, {**SMALL, "workers": 1}), "x", "test")
    fewer = config.load(studio.StudioSettings, {**SMALL, "workers": 1, "artists": 2, "stems": False, "dialogues": 0})
    studio.compose_library(fewer, "x", "test")
    assert sorted(path.name for path in (outputs / "library/x/tracks").iterdir()) == ["artist_001_track_001", "artist_002_track_001"]
    assert not list(outputs.rglob("stems")) and not pictures.dialogues("x")
    assert all(track.stems == {} for track in catalogue.read(catalogue.path_of("x")))


@pytest.mark.long
def test_a_killed_run_continues_and_ends_with_the_same_bytes(tmp_path):
    code = (
        "import sys, json; from music_training import config; from music_training.library.sources import studio; "
        "studio.compose_library(config.load(studio.StudioSettings, json.loads(sys.argv[1])), 'x', 'test')"
    )
    settings = json.dumps({**SMALL, "artists": 5, "workers": 2})
    run = [sys.executable, "-c", code, settings]
    environment = {**os.environ, "MUSIC_OUTPUTS": str(tmp_path / "killed"), "PYTHONPATH": str(files.REPOSITORY)}
    process = subprocess.Popen(run, env=environment, stdout=subprocess.DEVNULL)
    folder = tmp_path / "killed/library/x/tracks"
    deadline = time.monotonic() + 60
    while not (done := list(folder.glob("artist*"))) and time.monotonic() < deadline:
        time.sleep(0.002)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert done and len(done) < 5, "killed in the middle"
    gone, alive = psutil.wait_procs(children, timeout=5)
    assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE], "workers outlive their parent"
    subprocess.run(run, env=environment, check=True, stdout=subprocess.DEVNULL)
    undisturbed = {**environment, "MUSIC_OUTPUTS": str(tmp_path / "whole")}
    subprocess.run(run, env=undisturbed, check=True, stdout=subprocess.DEVNULL)
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")
    assert not list((tmp_path / "killed/library").rglob("*.tmp"))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("artist", 3, "did you mean 'artists'"),
        ("seconds", [5, 10], "is not a range within 20 to 900"),
        ("seconds", [60, 30], "is not a range"),
        ("styles", ["hous"], "house"),
        ("styles", ["house", "house"], "only once"),
        ("sample_rate", 44101, "is odd"),
        ("artists", 0, "greater than or equal to 1"),
        ("workers", -1, "greater than or equal to 0"),
    ],
)
def test_bad_settings_are_one_line(key, value, said):
    with pytest.raises(UserError) as caught:
        config.load(studio.StudioSettings, {key: value})
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_the_command(outputs, tmp_path, monkeypatch, capsys):
    profile = {"description": "for a test", "dataset": "d", "notebooks": {command.NOTEBOOK: {**SMALL, "artists": 1, "dialogues": 0}}}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(profile))
    monkeypatch.setattr(profiles, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["studio", "--profile", "p", "--workers", "1", "tracks_per_artist=2"])
    command.main()
    assert "tracks: 2" in capsys.readouterr().out
    assert len(catalogue.read(catalogue.path_of("d"))) == 2
    monkeypatch.setattr(sys, "argv", ["studio", "--profile", "none"])
    with pytest.raises(UserError, match="unknown"):
        command.main()


def test_pictures(tracks):
    assert list(pictures.table("small").index) == sorted(track.id for track in tracks)
    shown = pictures.track("small")
    assert shown.intensity == max(track.intensity for track in tracks)
    figure = pictures.draw_form(shown)
    labels = [section["label"] for section in yaml.safe_load(files.absolute(shown.annotation).read_text())["structure"]]
    assert [text.get_text().strip() for text in figure.axes[0].texts] == labels
    page = pictures.players(shown, 3.0).data
    assert page.count("<audio") == 6 and len(page) < 400_000
    assert pictures.draw_dialogue("small").axes[0].get_title().startswith("dialogue_001 (synthetic)")
    with pytest.raises(UserError, match="did you mean 'artist_001_track_001'"):
        pictures.track("small", "artist_001_track_01")


def test_stem_paths_say_what_drums_means(tmp_path):
    assert list(truth.stem_paths(tmp_path)) == ["other", "kick", "vocals", "bass", "hihat", "drums"]
    assert "kick + hihat" in truth.stem_paths.__doc__
