"""The catalogue: what is written is what is read, in an order of its own, and a bad row is named."""

import json

import pytest

from music_training.errors import UserError
from music_training.library import catalogue
from music_training.library.catalogue import Track

FULL = Track(
    id="b",
    path="library/x/b.wav",
    source="studio",
    artist_id="a1",
    artist="Ärtist “1”",
    title="rare line breaks: \u2028 \x85 \r \n",
    tags=("house", "dark"),
    moods=("calm",),
    bpm=128.0,
    valence=-0.5,
    synthetic=True,
    stems={"kick": "library/x/b/kick.wav"},
)


def test_round_trip_sorted_by_id(outputs):
    path = catalogue.write(catalogue.path_of("x"), [FULL, Track(id="a", path="/music/a.mp3", source="folder", artist_id="z")])
    assert path == outputs / "library" / "x" / "catalogue.jsonl"
    first, second = catalogue.read(path)
    assert (first.id, second) == ("a", FULL)
    hash(first.tags)  # tuples, not lists


def test_the_bytes_do_not_depend_on_the_order(tmp_path):
    tracks = [Track(id=str(number), path="p", source="s", artist_id="a") for number in range(9)]
    one = catalogue.write(tmp_path / "1", tracks).read_bytes()
    assert catalogue.write(tmp_path / "2", reversed(tracks)).read_bytes() == one


def test_an_id_stands_once(tmp_path):
    tracks = [Track(id="a", path=path, source="s", artist_id="a") for path in ("one.wav", "two.wav")]
    with pytest.raises(UserError, match="the id 'a' stands twice .one.wav, two.wav."):
        catalogue.write(tmp_path / "c", tracks)
    assert not (tmp_path / "c").exists()


def test_a_later_field_is_ignored_and_a_missing_one_named(tmp_path):
    path = catalogue.write(tmp_path / "c", [FULL])
    row = json.loads(path.read_text())
    path.write_text(json.dumps({**row, "new_field": 1}) + "\n")
    assert catalogue.read(path) == [FULL]
    del row["path"]
    path.write_text(path.read_text() + json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"c:2: not a catalogue row .*path"):
        catalogue.read(path)


@pytest.mark.parametrize("line", ["{", "7", "null", "[1]", '"text"'])
def test_a_row_that_is_none_is_an_error_in_words(tmp_path, line):
    (tmp_path / "c").write_text(line + "\n")
    with pytest.raises(UserError, match=r"c:1: not a catalogue row"):
        catalogue.read(tmp_path / "c")


def test_a_missing_catalogue_says_what_makes_it(tmp_path):
    with pytest.raises(UserError, match="no catalogue; run the notebook"):
        catalogue.read(tmp_path / "none")
