"""Pairs in folders, what is wrong with the rest, the split, and that a second run does nothing."""

import csv
import json
import subprocess
import sys

import numpy
import pytest
import soundfile
import symusic

from music_training import files
from music_training.emotion_bridges import manifests, pairs
from music_training.emotion_bridges.manifests import Entry, ManifestSettings
from music_training.errors import UserError

RATE = 8000


def write_audio(path, seed, seconds=0.6):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = numpy.random.default_rng(seed).integers(-9000, 9000, int(seconds * RATE)).astype(numpy.int16)
    soundfile.write(path, samples, RATE)


def write_midi(path, pitch):
    path.parent.mkdir(parents=True, exist_ok=True)
    score, track = symusic.Score(480), symusic.Track("a", 0, False)
    track.notes.append(symusic.Note(0, 480, pitch % 100 + 20, 80 + pitch // 100))
    score.tracks.append(track)
    score.dump_midi(str(path))


@pytest.fixture
def roots(tmp_path):
    for number, folder in enumerate(("happy", "happy", "sad", "misc", "misc")):
        name = f"track_grief_{number}" if number == 3 else f"track{number}"
        write_audio(tmp_path / "audio" / folder / f"{name}.wav", number)
        write_midi(tmp_path / "midi" / folder / f"{name}.mid", number)
    return tmp_path / "audio", tmp_path / "midi"


def reasons(report):
    return {path.rsplit("/", 1)[1]: reason for path, reason in report.left_out}


def test_pairs_and_their_emotions(roots):
    found, report = pairs.find(*roots)
    assert [pair.key for pair in found] == ["happy/track0", "happy/track1", "misc/track_grief_3", "sad/track2"]
    assert found[0].emotion == [0.8, 0.6, 0.65] and found[2].source == "name: grief"
    assert reasons(report) == {"track4.wav": "no emotion: neither its folder nor its name says one"}
    kept, _ = pairs.find(*roots, keep_unlabelled=True)
    assert [pair.emotion for pair in kept if pair.key == "misc/track4"] == [[0.0, 0.0, 0.0]]


def test_broken_duplicate_and_unpaired_files_are_reported(roots):
    sounds, scores = roots
    (sounds / "sad" / "empty.wav").touch()
    write_midi(scores / "sad" / "empty.mid", 60)
    (sounds / "sad" / "noise.wav").write_bytes(b"RIFF" + bytes(100))
    write_midi(scores / "sad" / "noise.mid", 61)
    write_audio(sounds / "sad" / "badmidi.wav", 50)
    (scores / "sad" / "badmidi.mid").write_bytes(b"MThd not midi")
    write_audio(sounds / "sad" / "nonotes.wav", 51)
    symusic.Score(480).dump_midi(str(scores / "sad" / "nonotes.mid"))
    write_audio(sounds / "sad" / "alone.wav", 52)
    write_midi(scores / "happy" / "lonely.mid", 63)
    write_audio(sounds / "sad" / "copy.wav", 0)
    write_midi(scores / "sad" / "copy.mid", 64)
    write_audio(sounds / "sad" / "track2.flac", 2)
    write_audio(sounds / "sad" / "short.wav", 53, seconds=0.1)
    write_midi(scores / "sad" / "short.mid", 65)
    found, report = pairs.find(*roots, workers=2)
    left = reasons(report)
    assert len(found) == 4
    assert left["empty.wav"] == "broken: an empty file" and left["noise.wav"].startswith("broken:")
    assert left["badmidi.mid"].startswith("broken: not MIDI") and left["nonotes.mid"].startswith("no notes")
    assert left["alone.wav"] == "unpaired: no MIDI file of this name" and left["lonely.mid"] == "unpaired: no audio file of this name"
    assert left["copy.wav"] == "duplicate: the same audio as happy/track0" and left["track2.flac"].startswith("duplicate: the same name")
    assert left["short.wav"].startswith("too short: 0.10 s")


def test_ground_truth_wins(roots, tmp_path):
    rows = [{"audio_path": str(roots[0] / "happy" / "track0.wav"), "emotion": [0.1, 0.2, 0.3]}, {"id": "track4", "emotion": [0.0] * 64}]
    given = tmp_path / "truth.jsonl"
    given.write_text("".join(json.dumps(row) + "\n" for row in rows))
    files.write_json(roots[0] / "happy" / "track1.json", {"emotion": {"valence": -0.5, "arousal": 0.0, "intensity": 0.4}})
    found, _ = pairs.find(*roots, overrides=pairs.read_overrides(given))
    emotions = {pair.key: pair.emotion for pair in found}
    assert emotions["happy/track0"] == [0.1, 0.2, 0.3] and emotions["happy/track1"] == [-0.5, 0.0, 0.4]
    assert len(emotions["misc/track4"]) == 64
    given.write_text('{"id": "track4", "emotion": [3, 0, 0]}\n')
    with pytest.raises(UserError, match="truth.jsonl:1: valence 3"):
        pairs.read_overrides(given)


def test_the_split_keeps_groups_together():
    items = list(range(100))
    groups = [str(item // 5) for item in items]
    train, val = manifests.divide(items, groups, 0.2, seed=1)
    assert len(val) == 20 and sorted(train + val) == items
    assert not {item // 5 for item in train} & {item // 5 for item in val}
    assert manifests.divide(items, groups, 0.2, seed=2)[1] != val
    assert manifests.divide(items, groups, 0.0, seed=1)[1] == []
    assert [len(side) for side in manifests.divide([1, 2], ["a", "b"], 0.01, 1)] == [1, 1]
    assert [len(side) for side in manifests.divide([1, 2], ["a", "a"], 0.5, 1)] == [2, 0]


def test_manifests_of_a_folder_and_a_second_run(roots, tmp_path, capsys):
    settings = ManifestSettings(audio_root=str(roots[0]), midi_root=str(roots[1]), out_dir=str(tmp_path / "m"), val_split=0.25)
    first = manifests.build(settings)
    assert first.result["pairs"] == 4 and (first.result["train"], first.result["val"]) == (3, 1)
    train = manifests.read(tmp_path / "m" / "midi_train.jsonl", needs="midi_path")
    assert len(train) == 3 and not train[0].audio_path and files.absolute(train[0].midi_path).is_file()
    with open(tmp_path / "m" / "report.csv", newline="") as stream:
        assert [row["state"] for row in csv.DictReader(stream)] == ["used"] * 4 + ["left out"]
    capsys.readouterr()
    assert manifests.build(settings).skipped and "up to date" in capsys.readouterr().out
    write_audio(roots[0] / "happy" / "new.wav", 99)
    write_midi(roots[1] / "happy" / "new.mid", 70)
    assert manifests.build(settings).result["pairs"] == 5


def test_a_manifest_with_faults_names_every_line(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text(
        '{"emotion": [0, 0, 0], "audio_path": "a.wav"}\n{"emotion": [0, 0, 5], "audio_path": "b"}\nnot json\n{"emotion": [0,0,0]}\n'
    )
    with pytest.raises(UserError) as caught:
        manifests.read(path, needs="audio_path")
    lines = str(caught.value).splitlines()
    assert [line.split(":")[1] for line in lines] == ["2", "3", "4"] and "intensity 5" in lines[0]
    manifests.write(path, [Entry([0.0, 0.0, 0.0], "a.wav")])
    assert manifests.read(path)[0].audio_path == "a.wav"


def test_the_commands(roots, tmp_path):
    base = [sys.executable, str(files.REPOSITORY / "scripts" / "build_manifests.py"), "--midi-root", str(roots[1])]
    ended = subprocess.run([*base, "--audio-root", str(roots[0]), "--workers", "1"], capture_output=True, text=True)
    assert ended.returncode == 0 and "4 pairs: 3 to train on, 1 to validate" in ended.stdout, ended.stderr
    ended = subprocess.run([*base, "--audio-root", str(tmp_path / "none")], capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and "no such folder" in ended.stderr
    helper = [sys.executable, str(files.REPOSITORY / "scripts" / "emotion_helper.py")]
    ended = subprocess.run([*helper, "grief", "--path", "x/sad/a.wav"], capture_output=True, text=True)
    assert ended.stdout == "grief: [-0.85, -0.3, 0.9]\nx/sad/a.wav: [-0.7, -0.5, 0.6] (folder: sad)\n"


@pytest.mark.long
def test_a_thousand_pairs(tmp_path):
    for number in range(1000):
        folder = ("happy", "sad", "angry", "calm")[number % 4]
        write_audio(tmp_path / "audio" / folder / f"t{number:04d}.wav", number)
        write_midi(tmp_path / "midi" / folder / f"t{number:04d}.mid", number)
    for number in range(0, 100, 10):
        (tmp_path / "audio" / "happy" / f"t{4 * number:04d}.wav").write_bytes(b"")
        (tmp_path / "midi" / "sad" / f"t{4 * number + 1:04d}.mid").write_bytes(b"junk")
        write_audio(tmp_path / "audio" / "angry" / f"t{4 * number + 2:04d}.wav", 4 * number + 6)
        (tmp_path / "midi" / "calm" / f"t{4 * number + 3:04d}.mid").unlink()
    settings = ManifestSettings(audio_root=str(tmp_path / "audio"), midi_root=str(tmp_path / "midi"), val_split=0.1)
    result = manifests.build(settings)
    assert result.result["pairs"] == 960 and result.result["val"] == 96
    assert result.result["left out"] == {"broken": 20, "duplicate": 10, "unpaired": 10}
    again = manifests.build(settings)
    assert again.skipped
