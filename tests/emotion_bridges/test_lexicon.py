"""Words of emotion, what counts as one in a path, and the ranges of vectors."""

from pathlib import Path

import numpy
import pytest

from music_training.emotion_bridges import emotions, lexicon
from music_training.errors import UserError

SEED = """
happy joy calm peaceful excited content tender energetic sad melancholy grief despair angry rage fury
fear anxiety terror panic surprise disgust neutral
"""


def test_every_word_has_a_place_in_range():
    assert set(SEED.split()) == set(lexicon.WORDS)
    for word, place in lexicon.WORDS.items():
        assert emotions.checked(place, word) == list(place)


def test_families_have_tiers_of_intensity():
    tier = {word: place[2] for word, place in lexicon.WORDS.items()}
    assert tier["melancholy"] < tier["sad"] < tier["grief"] < tier["despair"]
    assert tier["angry"] < tier["rage"] < tier["fury"] and tier["anxiety"] < tier["fear"] < tier["terror"]


def test_signs_agree_with_independent_norms():
    """Where a word of ours is also a tag of the published norms for Jamendo's moods, both lie in the same half-planes."""
    moods = lexicon.jamendo_moods()
    shared = sorted(set(moods) & set(lexicon.WORDS))
    assert {"happy", "sad", "calm", "energetic"} <= set(shared)
    for word in shared:
        ours, theirs = lexicon.WORDS[word], moods[word]
        assert ours[0] * theirs[0] > 0 and (ours[1] * theirs[1] > 0 or abs(theirs[1]) < 0.2), word


@pytest.mark.parametrize(
    "path, word",
    [
        ("happy/track001.wav", "happy"),
        ("audio/Sad/x_joy.wav", "sad"),  # the folder comes first
        ("misc/track_grief_001.wav", "grief"),
        ("misc/TrackRage02.wav", "rage"),
        ("misc/unhappy_song.wav", "sad"),
        ("misc/fearless.wav", None),
        ("misc/not_happy.wav", None),
        ("misc/not_very_sad.wav", None),
        ("misc/angrybirds.wav", None),
        ("misc/contents.wav", None),
        ("misc/FURY.wav", "fury"),
        ("misc/joyful-morning.wav", "joy"),
        ("misc/track001.wav", None),
    ],
)
def test_inference_from_a_path(path, word):
    found = lexicon.infer_from_path(Path(path))
    assert (found[0] if found else None) == (list(lexicon.WORDS[word]) if word else None)


def test_tiers_and_several_words():
    slightly, plain, very = (lexicon.vector(text)[0] for text in ("slightly sad", "sad", "very sad"))
    assert very < plain < slightly < 0
    assert lexicon.vector("extremely happy") == emotions.checked(lexicon.vector("extremely happy"))
    mean = numpy.mean([lexicon.WORDS["sad"], lexicon.WORDS["calm"]], axis=0)
    assert lexicon.vector("sad and calm") == pytest.approx(mean.tolist())
    with pytest.raises(UserError, match="did you mean 'happy'"):
        lexicon.vector("hapy")


def test_norms_of_ones_own(tmp_path):
    nrc = tmp_path / "nrc.txt"
    nrc.write_text("Word\tValence\tArousal\tDominance\ngloomy\t0.1\t0.3\t0.2\nhappy\t1.0\t0.5\t0.7\n")
    warriner = tmp_path / "warriner.csv"
    warriner.write_text(",Word,V.Mean.Sum,V.SD.Sum,A.Mean.Sum\n1,gloomy,1.0,1.2,3.0\n2,happy,9,1,7\n")
    assert lexicon.read_norms(nrc)["gloomy"][:2] == pytest.approx([-0.8, -0.4])
    assert lexicon.read_norms(warriner)["gloomy"][:2] == pytest.approx([-1.0, -0.5])
    assert lexicon.infer("a gloomy day") is None
    assert lexicon.infer("a gloomy day", lexicon.read_norms(nrc))[0][0] == pytest.approx(-0.8)
    (tmp_path / "other.csv").write_text("a,b\n")
    with pytest.raises(UserError, match="neither NRC-VAD"):
        lexicon.read_norms(tmp_path / "other.csv")


@pytest.mark.parametrize(
    "emotion, fault",
    [
        ([2, 0, 0], "valence 2 is not in"), ([0, -1.5, 0], "arousal"), ([0, 0, -0.1], "intensity"), ([0, 0], "got 2"),
        ([0.0] * 63 + [7], "number 64"), ("happy", "3 numbers"), ([0, float("nan"), 0], "arousal"), ({"valence": 0}, "arousal"),
        ([True, 0, 0], "valence"),
    ],
)  # fmt: skip
def test_a_vector_out_of_range_is_refused(emotion, fault):
    with pytest.raises(UserError, match=fault):
        emotions.checked(emotion)


def test_short_vectors_are_padded():
    assert emotions.padded([0.5, -0.5, 0.2]).tolist()[:4] == pytest.approx([0.5, -0.5, 0.2, 0.0])
    assert emotions.padded([0.5] * 64).shape == (64,)
    assert emotions.checked({"valence": 0.6, "arousal": 0.8}) == [0.6, 0.8, 1.0]
    assert emotions.quadrant("q3")[:2] == [-0.6, -0.6]
