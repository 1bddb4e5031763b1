"""Catalogues of a person's own folder: what is found, what it is called, what goes wrong."""

import json
import subprocess

import numpy as np
import pytest

from music_training import files
from music_training.errors import UserError
from music_training.library import catalogue
from music_training.library.sources import folder


def tracks(library):
    folder.catalogue_folder(library.folder, library.dataset, "test")
    return catalogue.read(catalogue.path_of(library.dataset))


def test_artists_come_from_tags_sidecars_or_folders(library):
    wav = library.write("plain/x.wav", library.noise(1))
    tags = ["-metadata", "artist=Tagged", "-metadata", "title=Song", "-metadata", "genre=House", "-metadata", "TBPM=128"]
    for name in ("x.mp3", "x.m4a", "x.ogg", "x.flac", "x.opus", "x.aac"):
        subprocess.run(["ffmpeg", "-v", "error", "-i", wav, *tags, library.folder / "plain" / name], check=True)
    library.write("sidecar/y.wav", library.noise(1))
    content = {"artist": "Beside", "bpm": "90", "moods": ["dark"], "instrument": "Bass, Drums", "keywords": ["a", "b"], "key": None}
    (library.folder / "sidecar/y.json").write_text(json.dumps(content))
    found = {track.path.rsplit("/", 1)[1]: track for track in tracks(library)}
    assert found["x.wav"].artist == found["x.aac"].artist == "plain" and found["x.wav"].title == "x"
    for name in ("x.mp3", "x.m4a", "x.ogg", "x.flac", "x.opus"):
        assert (found[name].artist, found[name].artist_id, found[name].title, found[name].genre) == ("Tagged", "tagged", "Song", "House"), (
            name
        )
        assert found[name].duration == pytest.approx(1, abs=0.1)
    beside = found["y.wav"]
    assert (beside.artist, beside.bpm, beside.moods, beside.tags, beside.key) == ("Beside", 90.0, ("dark",), ("a", "b"), "")
    assert beside.instruments == ("Bass", "Drums")


def test_ids_are_stable_and_apart(library):
    for name in ("x.wav", "x.flac", "a/x.wav", "音.wav", "A b-.wav", "a_b.wav"):
        library.write(name, library.noise(0.1))
    first = tracks(library)
    library.write("0.wav", library.noise(0.1))
    second = tracks(library)
    assert len({track.id for track in first}) == 6
    assert {(track.id, track.path) for track in first} < {(track.id, track.path) for track in second}
    assert all(set(track.id) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for track in second)


def test_links_are_followed_once_and_loops_end(library, tmp_path):
    library.write("x.wav", library.noise(0.1))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    library.write(elsewhere / "y.wav", library.noise(0.1))
    (library.folder / "loop").symlink_to(library.folder)
    (library.folder / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(library.folder)
    assert [track.path.rsplit("/", 1)[1] for track in tracks(library)] == ["y.wav", "x.wav"]
    assert folder.roots(library.folder) == [library.folder, elsewhere]
    library.write(elsewhere / "z.wav", library.noise(0.1))
    assert len(tracks(library)) == 3


def test_bad_folders_are_one_clear_line(library, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        folder.catalogue_folder(tmp_path / "nothing", "mine", "test")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="not a folder"):
        folder.catalogue_folder(tmp_path / "file", "mine", "test")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/cover.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match="no audio files in it"):
        folder.catalogue_folder(tmp_path / "empty", "mine", "test")
    files.outputs_root().mkdir(exist_ok=True)
    with pytest.raises(UserError, match="holds the outputs folder"):
        folder.catalogue_folder(tmp_path, "mine", "test")
    library.write("x.wav", library.noise(0.1))
    for text in ("{", "[1]"):
        (library.folder / "x.json").write_text(text)
        with pytest.raises(UserError, match=r"x\.json: a sidecar has to be"):
            tracks(library)


def test_a_name_that_is_not_utf8_is_passed_over_with_a_word(library, capsys):
    path = library.write("x.wav", library.noise(0.1))
    path.with_name("b\udcff.wav").write_bytes(path.read_bytes())
    assert len(tracks(library)) == 1
    assert "its name is not UTF-8" in capsys.readouterr().out


def test_a_damaged_tag_costs_the_tag_only(library):
    library.write("a/x.wav", np.zeros(100, np.float32))
    (library.folder / "a/broken.mp3").write_bytes(b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f" + b"x" * 100)
    assert [track.artist for track in tracks(library)] == ["a", "a"]
