"""Several data sets as one: weights, doubles, no copies, no artist on two sides."""

import json

import numpy as np
import pytest
import soundfile
from test_fingerprints import noise_song

from music_training import files
from music_training.errors import UserError
from music_training.library import catalogue, combine, manifests, segments


def make(dataset, songs, form="wav"):
    folder = files.outputs_root() / "audio" / dataset
    folder.mkdir(parents=True)
    tracks = []
    for name, (artist, samples) in songs.items():
        path = folder / f"{name}.{form}"
        soundfile.write(path, samples, 44100)
        tracks.append(catalogue.Track(f"{dataset}_{name}", files.relative(path), dataset, artist, licence="CC BY", attribution=name))
    catalogue.write(catalogue.path_of(dataset), tracks)
    segments.segment(dataset, dataset, segments.SegmentSettings(segment_seconds=5, workers=1))


@pytest.fixture
def two():
    songs = {n: noise_song(n) for n in range(6)}
    make("one", {n: (f"artist{n}", songs[n]) for n in range(4)})
    quiet_cut = songs[1][int(0.6 * 44100) :] * 0.5
    make("two", {"new": ("artist9", songs[4]), "more": ("artist0", songs[5]), "same": ("x", songs[0]), "near": ("y", quiet_cut)})


def settings(**given):
    return combine.CombineSettings(**{"datasets": {"one": 1.0, "two": 3.0}, "workers": 1, **given})


def test_the_union_drops_doubles_and_weighs_the_sets(two):
    result = combine.combine("all", "s", settings()).result
    rows = manifests.read_lines(manifests.index_of("all"))
    assert {row["track"] for row in rows} == {"one_0", "one_1", "one_2", "one_3", "two_new", "two_more"}
    assert result["segments"] == {"one": 16, "two": 8}
    sums = {name: sum(row["weight"] for row in rows if row["dataset"] == name) for name in ("one", "two")}
    assert sums["two"] / sums["one"] == pytest.approx(3.0, rel=1e-4) and np.mean([row["weight"] for row in rows]) == pytest.approx(
        1, rel=1e-4
    )
    dropped = manifests.index_of("all").with_name("dropped.csv").read_text()
    assert dropped.count("the same audio as") == 4 and dropped.count("the same recording as track one_1") == 3
    lines = [json.loads(line) for path in manifests.egs_of("all").glob("*/data.jsonl") for line in path.read_text().splitlines()]
    assert len(lines) == 24 and {line["weight"] for line in lines} == {row["weight"] for row in rows}
    assert not any(manifests.leakage(manifests.egs_of("all")).values())
    assert not (files.outputs_root() / "segments" / "all" / "audio").exists()  # no copies
    assert combine.combine("all", "s", settings()).skipped


def test_exact_only_keeps_near_duplicates(two):
    combine.combine("all", "s", settings(near=False))
    tracks = {row["track"] for row in manifests.read_lines(manifests.index_of("all"))}
    assert "two_near" in tracks and "two_same" not in tracks


def test_mistakes(two):
    with pytest.raises(UserError, match="another name"):
        combine.combine("one", "s", settings())
    with pytest.raises(ValueError, match="weights are above 0"):
        settings(datasets={"one": 0})
