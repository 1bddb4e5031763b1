"""Segments: lengths, levels, every reason to reject, duplicates, kill and rerun, identical bytes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from music_training import files
from music_training.errors import UserError
from music_training.library import audio, segments
from music_training.library.sources import folder

RATE = 32000


def tree(root):
    """Every file below a folder with its bytes."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(Path(root).rglob("*")) if path.is_file()}


def times(root):
    return {path: path.stat().st_mtime_ns for path in Path(root).rglob("*") if not path.name.endswith(".lock")}


def reasons(library):
    return Counter(segments.kind(reject["reason"]) for reject in library.rejects())


def test_a_clip_of_29_977_s_gives_three_segments(library):
    library.write("a/clip.wav", library.noise(29.977, rate=44100), 44100)
    library.segment(segment_seconds=10)
    rows = library.rows()
    assert [round(row["duration"], 3) for row in rows] == [10.0, 10.0, 9.977] and not library.rejects()
    for row in rows:
        info = soundfile.info(files.absolute(row["path"]))
        assert (info.samplerate, info.channels, info.subtype, info.format) == (32000, 1, "PCM_16", "WAV")
        assert info.frames == row["frames"] == round(row["duration"] * 32000)


@pytest.mark.real
def test_a_real_clip_gives_three_segments(library, real_data):
    library.folder.mkdir()
    shutil.copy(real_data / "fma/fma_small/000/000002.mp3", library.folder)
    library.segment(segment_seconds=10)
    assert [round(row["duration"], 3) for row in library.rows()] == [10.0, 10.0, 9.977]


@pytest.mark.parametrize("form", ["wav", "flac"])
def test_segments_are_the_track_bit_by_bit_at_its_own_rate(library, form):
    x = np.random.default_rng(0).integers(-32768, 32768, 3 * RATE).astype(np.int16)
    library.write("a/x.wav", x, RATE)
    library.segment(format=form)
    parts = [soundfile.read(files.absolute(row["path"]), dtype="int16")[0] for row in library.rows()]
    np.testing.assert_array_equal(np.concatenate(parts), x)


def test_a_short_remainder_is_recorded_and_a_long_one_kept(library):
    library.write("a/short.wav", library.noise(2.5))
    library.write("a/long.wav", library.noise(2.96, 1))
    library.segment()
    assert [row["duration"] for row in library.rows()] == [1.0, 1.0, 0.96, 1.0, 1.0]
    assert [(row["reason"], row["start"], row["seconds"]) for row in library.rejects()] == [("remainder", "2.0", "0.5")]


def test_peaks_over_one_are_scaled_by_one_gain_and_counted(library):
    x = library.noise(2, level=0.1)
    x[100], x[-100] = 1.6, -0.8
    library.write("a/loud.wav", x, subtype="FLOAT")
    assert library.segment().result["scaled_tracks"] == 1
    first, second = (soundfile.read(files.absolute(row["path"]), dtype="float32")[0] for row in library.rows())
    gain = 32767 / 32768 / 1.6
    np.testing.assert_allclose(np.concatenate([first, second]), x * gain, atol=0.51 / 32768)
    assert library.rows()[0]["peak"] == pytest.approx(1, abs=1e-4)


def test_a_track_too_long_to_be_kept_gives_the_same_segments(library, monkeypatch):
    library.write("a/x.flac", library.noise(5.3, rate=44100), 44100)
    library.segment()
    before = tree(files.outputs_root() / "segments")
    monkeypatch.setattr("music_training.library.tracks.KEPT_SECONDS", 2.0)
    monkeypatch.setenv("MUSIC_FORCE", "1")
    assert not library.segment().skipped
    assert tree(files.outputs_root() / "segments") == before


def test_every_reason_to_reject_a_track(library):
    x, good = library.noise(3), library.folder
    library.write("a/good.wav", library.noise(3, 1))
    (good / "undecodable.mp3").write_bytes(b"not audio " * 100)
    (good / "empty.wav").write_bytes(b"")
    cut = library.write("truncated.wav", library.noise(3, 2))
    cut.write_bytes(cut.read_bytes()[:100000])
    flac = library.write("truncated.flac", library.noise(8, 3))
    flac.write_bytes(flac.read_bytes()[: flac.stat().st_size // 2])
    subprocess.run(
        ["ffmpeg", "-v", "error", "-i", library.write("x.wav", library.noise(8, 4)), library.folder / "truncated.mp3"], check=True
    )
    (good / "x.wav").unlink()
    mp3 = good / "truncated.mp3"
    mp3.write_bytes(mp3.read_bytes()[: mp3.stat().st_size // 3])
    library.write("silent.wav", x * 1e-3)
    bad = x.copy()
    bad[RATE] = np.nan
    library.write("nan.wav", bad, subtype="FLOAT")
    bad[RATE] = np.inf
    library.write("inf.wav", bad, subtype="FLOAT")
    library.write("dc.wav", x + 0.1)
    library.write("anti.wav", np.stack([x, -0.98 * x], 1))
    library.write("short.wav", x[:20000])
    library.segment()
    found = {Path(row["path"]).name: row["reason"] for row in library.rejects()}
    assert found == {
        "undecodable.mp3": "undecodable",
        "empty.wav": "undecodable",
        "truncated.wav": "truncated",
        "truncated.flac": "truncated",
        "truncated.mp3": "truncated",
        "silent.wav": "silent",
        "nan.wav": "not finite",
        "inf.wav": "not finite",
        "dc.wav": "dc",
        "anti.wav": "anti-phase",
        "short.wav": "too short",
    }
    assert {row["track"].rsplit("-", 1)[0] for row in library.rows()} == {"a-good"}
    figures = {Path(row["path"]).name: row["figures"] for row in library.rejects()}
    assert figures["dc.wav"].startswith(("offset=0.09", "offset=0.1")) and "declared_s=3.0" in figures["truncated.wav"]


def test_one_silent_channel_and_a_wide_stereo_are_no_faults(library):
    left, right = library.noise(2, 1), library.noise(2, 2)
    library.write("a/one.wav", np.stack([left, 0 * left], 1))
    library.write("a/wide.wav", np.stack([left - 0.5 * right, right - 0.5 * left], 1))
    library.segment()
    assert len(library.rows()) == 4 and not library.rejects()


def test_silent_segments_are_left_out(library):
    x = library.noise(3)
    x[RATE : 2 * RATE] = 0
    library.write("a/x.wav", x)
    library.segment()
    assert [row["start"] for row in library.rows()] == [0.0, 2.0]
    assert [(row["reason"], row["start"]) for row in library.rejects()] == [("silent", "1.0")]


def test_the_same_audio_under_other_names_and_in_other_containers_is_kept_once(library):
    x = (library.noise(2) * 32768).astype(np.int16)
    library.write("b/x.wav", x)
    library.write("a/y.flac", x)
    library.write("c/start.wav", np.concatenate([x[:RATE], x[:RATE][::-1]]))
    library.segment()
    ids = sorted({row["track"] for row in library.rows()})
    assert [name.rsplit("-", 1)[0] for name in ids] == ["a-y", "c-start"]
    assert [row["reason"].rsplit("-", 1)[0] for row in library.rejects()] == ["duplicate of a-y", "duplicate of a-y"]
    assert len(library.rows()) == 3
    lying = [path for path in (files.outputs_root() / "segments").rglob("*.wav")]
    assert len(lying) == 3


def test_two_files_that_differ_only_in_their_extension_and_odd_names(library):
    library.write("x.wav", library.noise(1, 1))
    library.write("x.flac", library.noise(1, 2))
    for number, name in enumerate(["ünï 音楽.wav", "a\nb.wav", "-n.wav", "100%d.wav", "q\"uo'te.wav", "x.y.z.wav", "   .wav"]):
        library.write(f"odd/{name}", library.noise(1, 10 + number))
    library.segment()
    assert len({row["track"] for row in library.rows()}) == 9 and not library.rejects()
    for row in library.rows():
        assert files.absolute(row["path"]).is_file()


def test_sidecars_hold_what_audiocraft_demands(library):
    library.write("a/x.wav", library.noise(1))
    (library.folder / "a/x.json").write_text(json.dumps({"title": "T", "moods": ["calm"], "bpm": 120, "keywords": "slow, soft"}))
    library.segment()
    sidecar = files.read_json(files.absolute(library.rows()[0]["path"]).with_suffix(".json"))
    demanded = {"title", "artist", "key", "bpm", "genre", "moods", "description", "name", "instrument", "keywords"}
    assert demanded <= set(sidecar)
    assert (sidecar["title"], sidecar["artist"], sidecar["moods"], sidecar["bpm"]) == ("T", "a", ["calm"], 120)
    assert sidecar["keywords"] == ["slow", "soft"]


def test_the_second_run_writes_nothing(library, capsys):
    library.artists(3)
    library.segment()
    before = times(files.outputs_root())
    assert library.segment().skipped and "up to date" in capsys.readouterr().out
    assert times(files.outputs_root()) == before


def test_one_and_two_workers_write_the_same_bytes(library, monkeypatch, tmp_path):
    library.artists(2, tracks=2)
    library.write("stereo.flac", np.stack([library.noise(3, 50, rate=44100), library.noise(3, 51, rate=44100)], 1), 44100)
    library.segment(workers=1)
    one = tree(files.outputs_root() / "segments")
    monkeypatch.setenv("MUSIC_OUTPUTS", str(tmp_path / "two"))
    library.segment(workers=2)
    assert tree(tmp_path / "two" / "segments") == one


def test_a_lost_segment_is_noticed_and_made_again_alone(library, monkeypatch):
    library.artists(3)
    library.segment()
    before = tree(files.outputs_root() / "segments")
    files.absolute(library.rows()[0]["path"]).unlink()
    made = []
    from music_training.library import tracks

    monkeypatch.setattr(segments, "segment_track", lambda job: made.append(job["track"]) or tracks.segment_track(job))
    assert not library.segment().skipped
    assert made == [library.rows()[0]["track"]]
    assert tree(files.outputs_root() / "segments") == before


def test_only_new_and_changed_tracks_are_made_and_old_ones_leave(library, monkeypatch):
    library.artists(3)
    library.segment()
    made = []
    from music_training.library import tracks

    monkeypatch.setattr(segments, "segment_track", lambda job: made.append(job["source"]) or tracks.segment_track(job))
    (library.folder / "artist 0/track 0.wav").unlink()
    library.write("artist 1/track 1.wav", library.noise(2, 77))
    library.write("new.wav", library.noise(2, 78))
    library.segment()
    assert [Path(source).name for source in made] == ["track 1.wav", "new.wav"]
    lying = {files.relative(path) for path in (files.outputs_root() / "segments").rglob("*.wav")}
    assert lying == {row["path"] for row in library.rows()} and len(lying) == 6


def test_no_usable_audio_is_one_clear_error(library):
    library.write("a/x.wav", np.zeros(3 * RATE, np.float32))
    with pytest.raises(UserError, match=r"not one segment of 1 s in 1 tracks \(silent 1\); see .*rejects.csv"):
        library.segment()


def test_memory_does_not_grow_with_the_length_of_a_track(library):
    code = (
        "import sys\n"
        "from music_training.library import tracks, segments\n"
        "tracks.KEPT_SECONDS = 60.0\n"
        "s = segments.SegmentSettings().model_dump(exclude={'workers', 'split'})\n"
        "job = dict(track='x', artist='a', source='x', sidecar={}, file=sys.argv[1], root=sys.argv[2], folder=sys.argv[2], settings=s)\n"
        "import os; os.mkdir(sys.argv[2] + '/.staging.tmp')\n"
        "assert len(tracks.segment_track(job)['segments']) > 5\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))\n"
    )
    peaks = []
    for number, minutes in enumerate((2, 10)):
        path = library.write(f"{number}.flac", np.tile(library.noise(60, 3, rate=16000), minutes), 16000)
        target = library.folder / str(number)
        target.mkdir()
        done = subprocess.run([sys.executable, "-c", code, path, target], capture_output=True, text=True, cwd=files.REPOSITORY, check=True)
        peaks.append(int(done.stdout))
    assert peaks[1] - peaks[0] < 12000  # kB; kept whole, 10 minutes take 77 MB


RUN = """
import sys
from pathlib import Path
from music_training.library import manifests, segments
from music_training.library.sources import folder
segments.BATCH_SECONDS = 0.02

def main():
    settings = segments.SegmentSettings(segment_seconds=1.0, workers=int(sys.argv[2]))
    folder.catalogue_folder(sys.argv[1], "mine", "test")
    segments.segment("mine", "test", settings, originals=folder.roots(sys.argv[1]))
    manifests.build("mine", "test", settings.split)

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_in_the_middle_and_run_again_gives_the_same_tree(library, tmp_path, workers):
    library.artists(5, tracks=8, seconds=30)
    script = tmp_path / "run.py"
    script.write_text(RUN)

    def start(root):
        environment = {**os.environ, "MUSIC_OUTPUTS": str(root), "PYTHONPATH": str(files.REPOSITORY)}
        return subprocess.Popen([sys.executable, script, library.folder, str(workers)], env=environment, stdout=subprocess.DEVNULL)

    assert start(tmp_path / "whole").wait() == 0
    killed = tmp_path / "killed"
    cut_short = 0
    for wanted in (20, 400, 800):  # files that lie there when the process is killed
        process = start(killed)
        while process.poll() is None and sum(1 for _ in killed.glob("segments/mine/audio/*/*")) < wanted:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        cut_short += process.wait() == -signal.SIGKILL
    assert cut_short
    assert start(killed).wait() == 0
    for part in ("segments", "egs", "library"):
        assert tree(killed / part) == tree(tmp_path / "whole" / part)
    assert not list(killed.rglob("*.tmp"))


@pytest.mark.real
def test_the_real_folder(library, real_data):
    library.folder = real_data
    result = library.segment(segment_seconds=10, workers=2).result
    assert result["tracks"] == sum(1 for path in real_data.rglob("*") if path.suffix in audio.SUFFIXES)
    short = [path for path in folder.find(real_data) if len(audio.read(path, 32000)[0]) < 9.5 * 32000]
    assert reasons(library)["too short"] == len(short)
    assert set(reasons(library)) <= {"too short", "remainder", "silent", "duplicate"}
    assert library.build(train=0.8, valid=0.1, test=0.1).result["rule"] == "artist"
