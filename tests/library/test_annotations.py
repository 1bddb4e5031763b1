"""Annotations: the YAML format with all faults at once, JAMS, the open sets, pairing."""

import json

import numpy as np
import pytest
import soundfile
from mutagen.easyid3 import EasyID3

from music_training.config import ConfigError
from music_training.library import annotation_sets as sets
from music_training.library import annotations

GOOD = """metadata:
  tier: 1
  confidence: 0.95
audio:
  file: /path/to/track.flac
  duration: 240.0
  bpm: 128.0
  downbeat: 0.0
  time_signature: [4, 4]
structure:
  - bar: 1
    label: intro
    time: 0.0
    confidence: 1.0
  - bar: 17
    label: buildup
    time: 30.0
    confidence: 0.9
  - bar: 25
    label: drop
    time: 45.0
    confidence: 1.0
"""


def test_the_documented_format_reads_and_writes_itself(tmp_path):
    (tmp_path / "a.yaml").write_text(GOOD)
    found = annotations.read(tmp_path / "a.yaml")
    assert found.spans() == [(0.0, 30.0, "intro"), (30.0, 45.0, "buildup"), (45.0, 240.0, "drop")]
    assert annotations.read(annotations.write(found, tmp_path / "b.yaml")) == found


def test_all_faults_at_once_with_their_lines(tmp_path):
    text = GOOD.replace("label: buildup", "label: build").replace("bpm: 128.0", "bmp: 128.0").replace("time: 45.0", "time: 12")
    (tmp_path / "a.yaml").write_text(text.replace("confidence: 0.9\n", "confidence: 9\n").replace("  duration: 240.0\n", ""))
    with pytest.raises(ConfigError) as raised:
        annotations.read(tmp_path / "a.yaml")
    lines = [error.split("a.yaml:", 1)[1] for error in raised.value.errors]
    assert lines == [
        "4: audio.duration: missing",
        "6: audio.bmp: unknown key; did you mean 'bpm'?",
        "15: structure.1.label: 'build' is no label; did you mean 'buildup'?",
        "17: structure.1.confidence: input should be less than or equal to 1 (got 9)",
        "20: structure.2.time: 12 does not come after 30; sections stand in the order of their seconds",
    ]


def test_a_folder_reports_all_its_files(tmp_path):
    (tmp_path / "a.yaml").write_text(GOOD.replace("intro", "int"))
    (tmp_path / "b.yaml").write_text("[1, 2")
    (tmp_path / "c.yaml").write_text(GOOD)
    with pytest.raises(ConfigError) as raised:
        annotations.read_folder(tmp_path)
    assert len(raised.value.errors) == 2 and all(name in str(raised.value) for name in ("a.yaml:12", "b.yaml:1"))
    with pytest.raises(ConfigError, match="no annotation"):
        annotations.read_folder(tmp_path / "nothing")


def test_jams_validates_and_comes_back(tmp_path):
    jams = pytest.importorskip("jams")
    (tmp_path / "a.yaml").write_text(GOOD)
    found = annotations.read(tmp_path / "a.yaml")
    path = annotations.write_jams(found, tmp_path / "a.jams")
    document = jams.load(str(path), validate=True, strict=True)
    segments = document.search(namespace="segment_open")[0].to_interval_values()
    assert segments[1] == ["intro", "buildup", "drop"] and segments[0].tolist() == [[0, 30], [30, 45], [45, 240]]
    again = annotations.read_jams(path)
    assert again.spans() == found.spans() and again.audio.bpm == 128.0


def test_real_jams_give_what_the_text_files_give(real_data):
    folder = real_data / "harmonixset"
    converted = sets.harmonix(folder)
    for path in (folder / "jams").glob("*.jams"):
        ours, theirs = annotations.read_jams(path, sets.HARMONIX), converted.tracks[path.stem]
        assert [label for *_, label in ours.spans()] == [label for *_, label in theirs.spans()]
        assert np.allclose([start for start, *_ in ours.spans()], [start for start, *_ in theirs.spans()], atol=0.01)
    with pytest.raises(ConfigError, match="no segments"):
        annotations.read_jams(real_data / "jams" / "valid.jams")


def test_all_86_harmonix_tracks_convert(real_data, tmp_path, capsys):
    converted = sets.harmonix(real_data / "harmonixset")
    mapped, unlabelled = converted.mapped()
    for original, ours, count in converted.table():
        print(f"{original:>22} -> {ours:<10} {count}")
    print(f"mapped {mapped}, unlabelled {unlabelled}")
    assert len(converted.tracks) == 86
    lines = sum(len(path.read_text().split("\n")) for path in (real_data / "harmonixset" / "segments").glob("*.txt"))
    ends = sum("end" in path.read_text().split()[-1] for path in (real_data / "harmonixset" / "segments").glob("*.txt"))
    assert abs(mapped + unlabelled - (lines - ends)) <= 86  # a last line may or may not end in a line feed
    assert not any(ours == "drop" for _, ours, _ in converted.table())
    counts = {original: count for original, _, count in converted.table()}
    assert counts["chorus"] == 301 and counts["intro"] == 76 and counts["breakdown"] == 6 and counts["build"] == 3
    assert all(track.spans()[-1][1] > track.spans()[-1][0] for track in converted.tracks.values())
    assert len(annotations.read_folder(sets.write(converted, tmp_path / "out")[0].parent)) == 86
    assert "chorus" in capsys.readouterr().out


def test_bars_follow_the_beats(real_data):
    track = sets.harmonix(real_data / "harmonixset").tracks["0012_aroundtheworld"]
    bars = [section.bar for section in track.structure if section.bar]
    assert bars == sorted(set(bars)) and bars[0] == 1
    for section in track.structure[1:4]:  # 121 bpm, 4/4: a bar is 1.98 s
        assert section.bar is None or abs((section.bar - 1) * 240 / 121 - section.time) < 2.0


def test_real_salami_converts(real_data):
    converted = sets.salami(real_data / "salami")
    assert len(converted.tracks) >= 10
    counts = {(original, ours) for original, ours, _ in converted.table()}
    assert ("Intro", "intro") in counts and ("Chorus", "unlabelled") in counts and ("Silence", "unlabelled") in counts


def test_raveform_edm98_and_edm_cue(tmp_path):
    sections = [("intro", 0, 30), ("buildup", 30, 45), ("drop", 45, 75), ("cooldown", 75, 90), ("altoutro", 90, 100)]
    rows = {"yt1": {"bpm": 126, "genre": "x", "fold": 1, "sections": [{"name": n, "start": a, "end": b} for n, a, b in sections]}}
    (tmp_path / "segments.json").write_text(json.dumps(rows))
    raveform = sets.raveform(tmp_path / "segments.json")
    assert [label for *_, label in raveform.tracks["yt1"].spans()] == ["intro", "buildup", "drop", None, "outro"]
    assert raveform.mapped() == (4, 1)
    row = {"id": 7, "labels": [[0, "silence"], [1.5, "intro"], [30, "drop"], [60, "end"]], "file_path": "x/7.mp3"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    edm98 = sets.edm98(tmp_path / "a.jsonl")
    assert edm98.tracks["7"].spans() == [(0, 1.5, None), (1.5, 30, "intro"), (30, 60, "drop")]
    row = {"id": "q", "cue_pts": [8.0, 16.0], "beat_grid": [n * 0.5 for n in range(64)]}
    (tmp_path / "c.json").write_text(json.dumps([row]))
    cue = sets.edm_cue(tmp_path / "c.json").tracks["q"]
    assert [section.bar for section in cue.structure] == [5, 9] and all(section.label is None for section in cue.structure)


def test_a_track_that_starts_late_and_has_no_end():
    track = annotations.from_marks([(1.2, "intro"), (30.0, "chorus")], {}, file="x", duration=61.0)
    assert track.spans() == [(1.2, 30.0, "intro"), (30.0, 61.0, None)]  # what comes before is no section


def test_pairing_by_name_tags_and_duration(tmp_path):
    def sound(name, seconds, **tags):
        path = tmp_path / name
        soundfile.write(path, np.zeros(int(22050 * seconds), "float32"), 22050)
        if tags:
            found = EasyID3()
            found.update(tags)
            found.save(path)
        return path

    by_name = sound("0012_aroundtheworld.wav", 10)
    sound("Other One.mp3", 4)
    by_tags = sound("xyz.mp3", 10, artist="Some Body", title="By Tags")
    named = sound("03 - Artist - Title.mp3", 10)
    track = lambda file, **about: annotations.from_marks(  # noqa: E731
        [(0, "intro"), (10, "end")], {}, file=file, metadata=annotations.Metadata(**about)
    )
    converted = sets._converted(
        "x",
        {
            "0012_aroundtheworld": track("0012_aroundtheworld"),
            "short": track("other one"),
            "tagged": track("none", artist="some body", title="By tags"),
            "named": track("none2", artist="Artist", title="Title"),
            "lost": track("lost"),
        }.items(),
    )
    pairs = sets.pair(converted, tmp_path)
    assert pairs.found == {"0012_aroundtheworld": by_name, "tagged": by_tags, "named": named}
    assert "another version" in pairs.missing["short"] and "no file" in pairs.missing["lost"]
