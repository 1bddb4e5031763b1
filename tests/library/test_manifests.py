"""Splits by artist, their shares, their fallbacks; manifests that AudioCraft itself reads."""

import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from music_training import files
from music_training.config import ConfigError, load
from music_training.errors import UserError
from music_training.library import manifests

SHARES = {"train": 0.8, "valid": 0.1, "test": 0.1}


def lines(library, split):
    return manifests.read_lines(manifests.egs_of(library.dataset) / split / "data.jsonl")


def test_artists_stand_on_one_side_each(library):
    library.artists(10, tracks=2)
    library.segment()
    result = library.build(train=0.8, valid=0.1, test=0.1).result
    assert result["rule"] == "artist"
    assert {name: figures["artists"] for name, figures in result["splits"].items()} == {"train": 8, "valid": 1, "test": 1}
    assert manifests.leakage(manifests.egs_of(library.dataset)) == {"artists": [], "tracks": [], "sha256s": []}
    written = [line["path"] for split in SHARES for line in lines(library, split)]
    assert sorted(written) == sorted(row["path"] for row in library.rows())


def test_leakage_finds_what_was_moved_across(library):
    library.artists(4)
    library.segment()
    library.build()
    egs = manifests.egs_of(library.dataset)
    train, valid = egs / "train/data.jsonl", egs / "valid/data.jsonl"
    valid.write_text(valid.read_text() + train.read_text().splitlines(keepends=True)[0])
    found = manifests.leakage(egs)
    assert all(len(values) == 1 for values in found.values())


def test_too_few_artists_fall_back_to_tracks_then_segments_with_a_warning(library, capsys):
    library.artists(1, tracks=4)
    library.segment()
    assert library.build().result["rule"] == "track"
    assert "warning: too few artists for 2 splits: divided by track" in capsys.readouterr().out
    for path in sorted(library.folder.rglob("*.wav"))[1:]:
        path.unlink()
    library.segment()
    assert library.build().result["rule"] == "segment"
    assert len(lines(library, "train")) == len(lines(library, "valid")) == 1
    with pytest.raises(UserError, match="2 segments cannot be divided into 3 splits"):
        library.build(train=0.8, valid=0.1, test=0.1)


names = st.dictionaries(st.text(min_size=1, max_size=8), st.floats(1, 1000), min_size=3, max_size=40)


@settings(deadline=None, max_examples=50)
@given(names, st.integers(0, 5), st.randoms(use_true_random=False))
def test_the_split_depends_on_names_durations_and_seed_alone(seconds, seed, shuffler):
    order = list(seconds)
    shuffler.shuffle(order)
    place = manifests.assign({name: seconds[name] for name in order}, SHARES, seed)
    assert place == manifests.assign(seconds, SHARES, seed)
    assert set(place) == set(seconds) and set(place.values()) == set(SHARES)


def test_durations_approach_the_shares():
    draw = random.Random(0)
    for count in (20, 100, 1000):
        seconds = {f"artist {number}": draw.lognormvariate(5, 1) for number in range(count)}
        place = manifests.assign(seconds, SHARES, seed=1)
        for split, share in SHARES.items():
            got = sum(seconds[name] for name, where in place.items() if where == split) / sum(seconds.values())
            assert abs(got - share) < (0.05 if count == 20 else 0.02)


def test_another_seed_gives_another_split():
    seconds = {f"artist {number}": 10.0 for number in range(50)}
    assert manifests.assign(seconds, SHARES, 0) != manifests.assign(seconds, SHARES, 1)


def test_shares_have_to_add_up_to_one():
    with pytest.raises(ConfigError, match="add up to 1, not 1.1"):
        load(manifests.ManifestSettings, {"test": 0.1})


def test_the_second_build_is_up_to_date_and_a_test_split_that_is_not_asked_for_goes(library):
    library.artists(4)
    library.segment()
    library.build(train=0.8, valid=0.1, test=0.1)
    assert library.build(train=0.8, valid=0.1, test=0.1).skipped
    library.build()
    assert not (manifests.egs_of(library.dataset) / "test/data.jsonl").exists()
    assert not library.build(train=0.8, valid=0.1, test=0.1).skipped


def test_links_lead_to_the_segments_wherever_the_outputs_are_moved(library, tmp_path):
    library.artists(3)
    library.segment()
    library.build(links=True)
    root = files.outputs_root()
    os.rename(root, tmp_path / "moved")
    links = list((tmp_path / "moved/egs/mine/train/audio").iterdir())
    assert links and all(link.is_symlink() and link.stat().st_size for link in links)


def test_everything_can_be_moved(library, tmp_path, monkeypatch):
    library.artists(3)
    library.segment()
    library.build()
    os.rename(files.outputs_root(), tmp_path / "moved")
    monkeypatch.setenv("MUSIC_OUTPUTS", str(tmp_path / "moved"))
    assert library.segment().skipped and library.build().skipped


def test_audiocraft_reads_the_manifests_and_a_batch(library, monkeypatch):
    compat = pytest.importorskip("music_training.musicgen.audiocraft_compat")
    compat.install()
    audio_dataset = pytest.importorskip("audiocraft.data.audio_dataset")
    music_dataset = pytest.importorskip("audiocraft.data.music_dataset")
    library.artists(4, tracks=2)
    (library.folder / "artist 0/track 0.json").write_text('{"moods": ["calm"], "key": "A minor", "bpm": 120}')
    library.segment()
    library.build()
    monkeypatch.chdir(files.outputs_root())  # as training does: the paths in a manifest start there
    meta = audio_dataset.load_audio_meta(manifests.egs_of(library.dataset) / "train" / "data.jsonl")
    data = music_dataset.MusicDataset(meta, segment_duration=1.0, sample_rate=32000, channels=1, num_samples=4, min_segment_ratio=1.0)
    wavs, infos = data.collater([data[index] for index in range(4)])
    assert wavs.shape == (4, 1, 32000) and wavs.abs().max() > 0.05
    assert all(info.title and info.artist for info in infos)
