"""Longer segments of the same tracks: on the same sides, from those that are long enough, or a refusal in one line."""

import json

import pytest

from music_training import files
from music_training.errors import UserError
from music_training.library import lengths, manifests


@pytest.fixture
def divided(library):
    """Six artists with a track each, of 2 to 4.5 s, in segments of 1 s."""
    for number in range(6):
        library.write(f"artist {number}/track {number}.wav", library.noise(2 + 0.5 * number, number))
    library.segment()
    library.build(train=0.6, valid=0.4)
    return library


def sides(dataset):
    index = {row["path"]: row for row in manifests.read_lines(manifests.index_of(dataset))}
    found = {}
    for split in ("train", "valid"):
        for line in manifests.read_lines(manifests.egs_of(dataset) / split / "data.jsonl"):
            found.setdefault(index[line["path"]]["artist"], set()).add(split)
    return found


@pytest.mark.parametrize(("duration", "enough"), [(30.0, True), (29.977, True), (29.8, False), (10.0, False)])
def test_a_clip_of_nearly_the_length_counts(duration, enough):
    assert lengths.is_enough(duration, 30) == enough


def test_what_is_long_enough_is_taken_as_it_is(divided):
    assert lengths.provide(divided.dataset, "test", 1.0) == divided.dataset
    assert lengths.provide(divided.dataset, "test", 0.5) == divided.dataset


def test_longer_segments_keep_every_artist_on_its_side(divided):
    before = sides(divided.dataset)
    name = lengths.provide(divided.dataset, "test", 2.5, workers=1)
    assert name == "mine_2.5s"
    after = sides(name)
    assert set(after) == {f"artist {number}" for number in range(1, 6)}
    assert all(after[artist] == before[artist] and len(after[artist]) == 1 for artist in after)
    rows = manifests.read_lines(manifests.index_of(name))
    assert all(row["duration"] == pytest.approx(2.5, rel=lengths.TOLERANCE) for row in rows)
    assert all(len(sidecar["title"]) for row in rows if (sidecar := files.read_json(files.absolute(row["path"]).with_suffix(".json"))))
    assert manifests.leakage(manifests.egs_of(name)) == {"artists": [], "tracks": [], "sha256s": []}
    written = {path: path.stat().st_mtime_ns for path in manifests.egs_of(name).rglob("*.json*")}
    assert lengths.provide(divided.dataset, "test", 2.5, workers=1) == name
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_a_track_of_nearly_the_length_gives_one_clip(library):
    for number in range(4):
        library.write(f"artist {number}/track.wav", library.noise(2.9977, number))
    library.segment()
    library.build(train=0.5, valid=0.5)
    name = lengths.provide(library.dataset, "test", 3.0, workers=1)
    assert [row["duration"] for row in manifests.read_lines(manifests.index_of(name))] == pytest.approx([2.9977] * 4, abs=1e-3)


def test_short_material_is_refused_in_one_line(divided, outputs):
    with pytest.raises(UserError, match=r"mine: clips of 30 s are needed and the longest of its 6 tracks has 4.5 s; give longer audio"):
        lengths.provide(divided.dataset, "test", 30)
    train = next(iter(sides(divided.dataset)["artist 5"]))
    other = "valid" if train == "train" else "train"
    with pytest.raises(UserError, match=f"no track on the side '{other}' is long enough for mine_4.2s"):
        lengths.provide(divided.dataset, "test", 4.2, workers=1)
    (outputs / "library" / "mine" / "catalogue.jsonl").unlink()
    with pytest.raises(UserError, match="there is no catalogue to cut them from"):
        lengths.provide(divided.dataset, "test", 2.5)
    with pytest.raises(UserError, match="run notebook 03_segment_audio first"):
        lengths.provide("nowhere", "test", 2.5)


def test_clips_without_sources_decide_by_their_manifest(outputs):
    rows = [json.dumps({"path": f"{number}.wav", "duration": 29.977}) + "\n" for number in range(5)]
    files.write_text(manifests.egs_of("given") / "train" / "data.jsonl", "".join(rows))
    assert lengths.serves("given", 30) and not lengths.serves("given", 40)
