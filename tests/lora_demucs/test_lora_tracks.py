"""Which tracks are trained on, validated with and judged on."""

import pytest
from stem_examples import RATE, STEMS, write_track

from music_training import config
from music_training.config import ConfigError
from music_training.lora_demucs import tracks, train
from music_training.lora_demucs.config import LoraDemucsSettings

ARTISTS = {f"artist_{number:03d}" for number in range(10)}


def settings_of(**content) -> LoraDemucsSettings:
    return config.load(LoraDemucsSettings, {"dataset": "any", **content})


def test_artists_for_validation_and_test_are_apart_and_stay():
    valid, test = tracks.held_out(ARTISTS, settings_of(train_split=0.7, test_split=0.2))
    assert (len(valid), len(test)) == (1, 2) and not valid & test
    assert tracks.held_out(ARTISTS, settings_of(train_split=0.7, test_split=0.2, htdemucs={"lora_rank": 9})) == (valid, test)
    valid, test = tracks.held_out(ARTISTS, settings_of())
    assert (len(valid), test) == (2, set())
    with pytest.raises(ConfigError, match="leave nothing to validate with"):
        settings_of(train_split=0.8, test_split=0.2)


def test_the_small_base_never_hears_the_artists_that_its_adapter_is_judged_on():
    settings = settings_of(train_split=0.7, test_split=0.2, training={"random_seed": 7})
    base = train.base_settings(settings, {"training": {"max_steps": 3}})
    assert tracks.held_out(ARTISTS, base) == tracks.held_out(ARTISTS, settings)
    assert base.training.max_steps == 3


def test_a_folder_of_tests_is_what_is_judged(tmp_path):
    for number, split in enumerate(("train", "valid", "test")):
        write_track(tmp_path / split / f"track{number}", number, seconds=1.0)
    settings = config.load(LoraDemucsSettings, {"dset": {"wav": str(tmp_path), "sources": list(STEMS)}})
    train_tracks, valid = tracks.load(settings, RATE, 2)
    assert [item.id for item in train_tracks + valid + tracks.judged(settings, RATE, 2)] == ["track0", "track1", "track2"]
    (tmp_path / "test" / "track2").rename(tmp_path / "elsewhere")
    (tmp_path / "test").rmdir()
    assert [item.id for item in tracks.judged(settings, RATE, 2)] == ["track1"]
