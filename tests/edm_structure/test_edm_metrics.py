"""The scores against mir_eval's own published ones."""

import json

import mir_eval
import numpy
import pytest

from music_training.edm_structure import metrics


@pytest.mark.parametrize("number", range(5))
def test_segment_scores_equal_the_published_ones(real_data, number):
    folder = real_data / "mir_eval" / "segment"
    expected = json.loads((folder / f"output{number:02d}.json").read_text())
    (reference, names), (estimate, found) = (
        mir_eval.io.load_labeled_intervals(str(folder / f"{kind}{number:02d}.lab")) for kind in ("ref", "est")
    )
    # the published figures are of intervals that were aligned first, as the published evaluation does
    reference, names = mir_eval.util.adjust_intervals(reference, names, t_min=0.0)
    estimate, found = mir_eval.util.adjust_intervals(estimate, found, t_min=0.0, t_max=reference.max())
    scores = metrics.segments(reference, names, estimate, found)
    assert scores["HR.5F"] == pytest.approx(expected["F-measure@0.5"], abs=1e-9)
    assert scores["HR3F"] == pytest.approx(expected["F-measure@3.0"], abs=1e-9)
    assert scores["PWF"] == pytest.approx(expected["Pairwise F-measure"], abs=1e-9)


@pytest.mark.parametrize("number", range(5))
def test_beat_scores_equal_the_published_ones(real_data, number):
    folder = real_data / "mir_eval" / "beat"
    expected = json.loads((folder / f"output{number:02d}.json").read_text())
    reference, estimate = (mir_eval.io.load_events(str(folder / f"{kind}{number:02d}.txt")) for kind in ("ref", "est"))
    # the published figures leave out the first 5 s
    trimmed = metrics.beats(mir_eval.beat.trim_beats(reference), mir_eval.beat.trim_beats(estimate))
    assert trimmed == pytest.approx(expected["F-measure"], abs=1e-9)


def test_label_accuracy_is_the_share_of_time():
    reference, estimate = numpy.array([[0, 10], [10, 30], [30, 40.0]]), numpy.array([[0, 12], [12, 40.0]])
    scores = metrics.segments(reference, ["intro", "drop", "outro"], estimate, ["intro", "drop"])
    assert scores["label_accuracy"] == pytest.approx((10 + 18) / 40)
    grid = numpy.arange(0, 40, 0.001) + 0.0005
    wanted = numpy.array(["intro", "drop", "outro"])[numpy.searchsorted([10, 30], grid, side="right")]
    found = numpy.array(["intro", "drop"])[(grid > 12).astype(int)]
    assert scores["label_accuracy"] == pytest.approx((wanted == found).mean(), abs=1e-4)


def test_beat_errors_are_named():
    beats = numpy.arange(0, 60, 0.5)
    assert metrics.beat_errors(beats, beats[::2])["tempo_octave_error"]
    assert metrics.beat_errors(beats, beats + 0.25) == {"tempo_octave_error": False, "half_beat_error": True}
    assert not any(metrics.beat_errors(beats, beats + 0.01).values())


def test_summary_has_the_mean_and_an_interval_that_holds_it():
    rng = numpy.random.default_rng(1)
    misses = 0
    for seed in range(40):
        rows = [{"track": "x", "f": float(value)} for value in rng.normal(0.7, 0.1, 30)]
        summary = metrics.summarise(rows, seed=seed, draws=500)["f"]
        assert summary["low"] < summary["mean"] < summary["high"] and summary["tracks"] == 30
        misses += not summary["low"] <= 0.7 <= summary["high"]
    assert misses <= 8  # 2 are to be expected
