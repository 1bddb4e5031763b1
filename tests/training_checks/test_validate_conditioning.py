"""Captions and conditioners against what they should be, and a permutation test that is honest about chance."""

import json
import subprocess
import sys

import numpy
import pytest
import torch
from scipy import stats

from music_training import files
from music_training.errors import UserError
from music_training.musicgen.training import LanguageModelSettings
from training_checks import validate_conditioning as conditioning

SETTINGS = LanguageModelSettings(model="lm_tiny", conditioning="lut")


@pytest.fixture
def captioned(outputs):
    """Writes a training manifest whose tracks (two clips each) have the given captions; None: no sidecar."""

    def write(captions):
        lines = []
        for number, caption in enumerate(captions):
            for part in range(2):
                path = outputs / "segments" / "x" / f"track{number:03d}_{part:04d}.wav"
                if caption is not None:
                    files.write_json(path.with_suffix(".json"), {"description": caption})
                lines.append(json.dumps({"path": files.relative(path), "duration": 10.0}) + "\n")
        files.write_text(outputs / "egs" / "x" / "train" / "data.jsonl", "".join(lines))
        return "x"

    return write


MOODS = ("dark", "bright", "calm", "wild", "warm", "cold", "sad", "glad", "slow", "fast", "low", "high")
GOOD = [f"a {mood} track number {number} with bass and drums" for number, mood in enumerate(MOODS)]


def findings(report):
    return {finding.subject: finding.severity for finding in report.findings if finding.severity != "ok"}


def test_good_captions_have_no_findings(captioned):
    report = conditioning.check(captioned(GOOD), SETTINGS)
    assert findings(report) == {} and report.passed
    figures = report.figures
    assert (figures["clips"], figures["tracks"], figures["distinct"], figures["described"]) == (24, 12, 12, 1.0)
    assert figures["words_median"] == 9 and figures["vocabulary"] == 7 + 2 * 12
    assert [row["caption"] for row in report.rows] == ["shortest", "longest", "commonest (1 tracks)"]


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        ([None] * 12, {"descriptions": "fault"}),
        ([""] * 12, {"descriptions": "fault"}),
        (["  "] * 8 + GOOD[:4], {"descriptions": "warning"}),
        ([None] * 3 + GOOD[:9], {"descriptions": "note"}),
        (["music"] * 2 + GOOD[:10], {"empty phrases": "warning"}),
        (["https://example.org/track.mp3 is the place"] + GOOD[:11], {"empty phrases": "warning"}),
        ([GOOD[0]] * 6 + GOOD[:6], {"boiler-plate": "warning"}),
        ([GOOD[number // 2] for number in range(24)], {"doubles": "note"}),
        (list(MOODS), {"lengths": "warning"}),
        (GOOD[:11] + ["word " * 400], {"lengths": "warning"}),
        (["this is a track of ours"] * 6 + ["of this track ours is a"] * 6, {"boiler-plate": "warning", "vocabulary": "warning"}),
    ],
)
def test_captions_that_steer_nothing(captioned, captions, expected):
    assert findings(conditioning.check(captioned(captions), SETTINGS)) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"conditioning": "none"}, {"unconditional": "note"}),
        ({"conditioning": "t5"}, {}),
        ({"hydra": ["classifier_free_guidance.training_dropout=1.0"]}, {"dropout": "fault"}),
        ({"hydra": ["classifier_free_guidance.training_dropout=0"]}, {"dropout": "warning"}),
        ({"hydra": ["fuser.cross=[]"]}, {"fuser": "fault"}),
        ({"hydra": ["conditioners.description.lut.n_bins=16"]}, {"vocabulary": "warning"}),
    ],
)
def test_the_conditioner_against_the_data(captioned, changes, expected):
    assert findings(conditioning.check(captioned(GOOD), SETTINGS.model_copy(update=changes))) == expected


def test_a_sample_is_spread_over_all_clips(captioned):
    dataset = captioned(GOOD[:6] + [None] * 6)
    assert conditioning.check(dataset, None, num_samples=6).figures["described"] == pytest.approx(0.5)
    assert conditioning.check(dataset, None, num_samples=0).figures["clips"] == 24


def test_mistakes_are_one_line(captioned, outputs):
    with pytest.raises(UserError, match="no clips in train"):
        conditioning.check(captioned([]))
    with pytest.raises(UserError, match="run notebook 03_segment_audio first"):
        conditioning.check("nowhere")


# The permutation test


def test_without_effect_its_p_values_are_uniform():
    """Kolmogorov and Smirnov find nothing against it over 200 data sets, and no more than 5% fall below 5% by far."""
    random = numpy.random.default_rng(0)
    values = []
    for number in range(200):
        seeds = random.standard_normal((1, 4, 5))  # what a seed does to every text alike
        values.append(conditioning.permutation_test(seeds + random.standard_normal((3, 4, 5)), 99, number)[1])
    assert stats.kstest(values, "uniform").pvalue > 0.01
    assert 0.01 <= numpy.mean(numpy.array(values) <= 0.05) <= 0.1


def test_an_effect_is_found_even_below_what_the_seed_does():
    random = numpy.random.default_rng(1)
    texts = 1.5 * random.standard_normal((4, 1, 8))
    features = texts + 2 * random.standard_normal((1, 6, 8)) + random.standard_normal((4, 6, 8))
    statistic, p = conditioning.permutation_test(features)
    assert statistic > 0.02 and p == pytest.approx(1 / 1000)
    assert conditioning.permutation_test(features) == (statistic, p)


def test_a_model_that_ignores_the_text_gives_one():
    features = numpy.random.default_rng(2).standard_normal((1, 5, 4)).repeat(3, 0)
    assert conditioning.permutation_test(features)[1] == 1.0
    with pytest.raises(ValueError, match="at least two of each"):
        conditioning.permutation_test(features[:1])


def test_the_effect_through_sound():
    """A stand-in for a model whose texts are pitches, beside one that only knows its seed."""

    def clip(pitch, seed):
        generator = torch.Generator().manual_seed(seed)
        time = torch.arange(16000) / 32000
        phase = 6 * torch.rand(1, generator=generator)
        return (0.3 * torch.sin(2 * torch.pi * pitch * time + phase) + 0.02 * torch.randn(16000, generator=generator))[None]

    pitches = {"low": 200.0, "middle": 900.0, "high": 4000.0}
    good = conditioning.effect(lambda text, seed: conditioning.timbre(clip(pitches[text], seed), 32000), list(pitches), 4)
    assert good.passed and good.figures["p"] <= 0.01
    assert json.loads(good.json())["figures"]["p"] == good.figures["p"]
    deaf = conditioning.effect(lambda text, seed: conditioning.timbre(clip(200.0 + 300 * seed, seed), 32000), list(pitches), 4)
    assert not deaf.passed and deaf.figures["p"] == 1.0 and "none to be seen" in deaf.findings[0].message


@pytest.mark.parametrize("form", [["training_checks/validate_conditioning.py"], ["-m", "training_checks.validate_conditioning"]])
def test_both_ways_to_call_it(outputs, form):
    ended = subprocess.run([sys.executable, *form, "--num-samples", "10"], cwd=files.REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.startswith("error: ") and len(ended.stderr.splitlines()) == 1
