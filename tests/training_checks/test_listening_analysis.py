"""The analysis of ratings: against figures worked out by hand, over several listeners, and for files that are none."""

import json
import random

import pytest

from music_training.errors import UserError
from training_checks.listening_page import analysis

ROW = {"id": "1", "section": "Codec", "title": "Reconstruction", "name": "clip", "text": ""}


def abx(right: int, count: int, session: str = "s", **more) -> dict:
    trials = [{"x": "a", "answer": "a" if i < right else "b"} for i in range(count)]
    return {
        "kind": "abx",
        "row": ROW,
        "session": session,
        "listener": "L",
        "a": "one",
        "b": "two",
        "matched": True,
        "trials": trials,
    } | more


def rating(session: str, listener: str = "L", **scores) -> dict:
    roles = {"original": "reference", "low": "anchor"}
    lines = [{"trial": i, "version": name, "role": roles.get(name, ""), "score": score} for i, (name, score) in enumerate(scores.items())]
    return {"kind": "rating", "row": ROW, "session": session, "listener": listener, "matched": True, "scores": lines}


def preference(session: str, a: str, b: str, choice: int) -> dict:
    return {"kind": "preference", "row": ROW, "session": session, "listener": "L", "matched": True, "a": a, "b": b, "choice": choice}


def export(tmp_path, *ratings: dict):
    path = tmp_path / f"{random.random()}.json"
    path.write_text(json.dumps({"format": analysis.FORMAT, "version": 1, "ratings": ratings}), encoding="utf-8")
    return path


def report_of(tmp_path, *ratings: dict):
    return analysis.analyse(analysis.read(export(tmp_path, *ratings)))


@pytest.mark.parametrize(
    "right, count, p, low, high",
    [(9, 10, 11 / 1024, 0.5550, 0.9975), (10, 10, 1 / 1024, 0.6915, 1.0), (5, 10, 638 / 1024, 0.1871, 0.8129)],  # Clopper-Pearson tables
)
def test_abx_against_guessing(tmp_path, right, count, p, low, high):
    (row,) = report_of(tmp_path, abx(right, count)).rows
    assert (row["n"], row["right"]) == (count, right) and row["p"] == pytest.approx(p)
    assert (row["low"], row["high"]) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_sessions_are_pooled_whatever_was_called_a_and_counted_once(tmp_path):
    first, second = export(tmp_path, abx(4, 5)), export(tmp_path, abx(5, 5, "t", a="two", b="one", listener="M"))
    report = analysis.analyse([one for path in (first, second, first) for one in analysis.read(path)])
    assert [(row["n"], row["right"]) for row in report.rows] == [(10, 9)]
    assert "2 sessions of 2 listener" in report.title


def test_scores_have_student_s_interval_and_differences_are_corrected(tmp_path):
    scores = [(100, 60, 20), (95, 70, 10), (98, 65, 30), (92, 55, 25), (100, 62, 15), (97, 66, 12)]
    report = report_of(tmp_path, *(rating(str(i), original=a, codec=b, low=c) for i, (a, b, c) in enumerate(scores)))
    codec = next(row for row in report.rows if row["kind"] == "rating" and row["a"] == "codec")
    # mean 63, standard deviation 5.2154, t(.975, 5) = 2.5706: 63 -+ 5.473
    assert (codec["value"], codec["low"], codec["high"]) == (
        pytest.approx(63),
        pytest.approx(57.527, abs=0.01),
        pytest.approx(68.473, abs=0.01),
    )
    differences = [row for row in report.rows if row["kind"] == "rating difference"]
    # all six signs agree: two-sided signed ranks 2 / 2^6, times three after Holm
    assert [row["p"] for row in differences] == [pytest.approx(3 * 2 / 64)] * 3


def test_one_score_has_no_interval(tmp_path):
    report = report_of(tmp_path, rating("a", original=95, codec=50))
    assert "one value: no interval" in str(report.findings[0]) and len(report.rows) == 2
    assert report.print() == 0


def test_a_listener_who_misses_the_reference_is_left_out_and_named(tmp_path):
    deaf = [rating(f"d{i}", "Deaf", original=40, codec=90) for i in range(3)]
    fine = [rating(f"f{i}", "Fine", original=95 + i, codec=50 + i) for i in range(3)]
    report = report_of(tmp_path, *deaf, *fine)
    assert any("Deaf" in finding.subject and "left out: 3 of 3" in finding.message for finding in report.findings)
    assert {row["a"]: row["value"] for row in report.rows if row["kind"] == "rating"} == {"original": 96, "codec": 51}
    assert analysis.analyse(analysis.read(export(tmp_path, *deaf))).rows == []  # nobody left


def test_preferences_are_a_sign_test_of_the_decided(tmp_path):
    votes = [preference(str(i), *(("old", "new", 2) if i % 2 else ("new", "old", -1))) for i in range(8)]
    report = report_of(tmp_path, *votes, preference("x", "old", "new", 0), preference("y", "new", "old", 1))
    (row,) = report.rows
    assert (row["n"], row["p"]) == (10, pytest.approx(2 * (1 + 9) / 2**9))  # 8 of 9 decided
    assert pytest.approx(row["value"] if row["a"] == "new" else 1 - row["value"]) == 8 / 9


def test_holm_is_monotone_and_at_most_one():
    assert analysis.holm([0.01, 0.04, 0.03, 0.005]) == [pytest.approx(value) for value in (0.03, 0.06, 0.06, 0.02)]
    assert analysis.holm([0.9, 0.8]) == [1.0, 1.0] and analysis.holm([]) == []


def test_unmatched_levels_are_a_warning(tmp_path):
    assert any(finding.severity == "warning" for finding in report_of(tmp_path, abx(5, 5, matched=False)).findings)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "{}",
        "a,b\n1,2\n",
        '{"format": "other", "ratings": []}',
        '{"format": "listening-page-ratings", "ratings": []}',
        json.dumps({"format": analysis.FORMAT, "ratings": [{"kind": "other", "row": ROW}]}),
        json.dumps({"format": analysis.FORMAT, "ratings": [abx(1, 2, trials=[{"x": "a", "answer": "c"}])]}),
        json.dumps({"format": analysis.FORMAT, "ratings": [rating("s", codec=101)]}),
        json.dumps({"format": analysis.FORMAT, "ratings": [rating("s", codec="NaN")]}),
        json.dumps({"format": analysis.FORMAT, "ratings": [1]}),
        json.dumps({"format": analysis.FORMAT, "ratings": 1}),
    ],
)
def test_what_is_no_export_is_one_line(tmp_path, content):
    path = tmp_path / "odd.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"odd\.json: (not an export|no ratings)"):
        analysis.read(path)


def test_exports_in_the_ratings_folder_are_found_and_their_absence_is_said(outputs):
    assert "put the file into samples/ratings" in str(analysis.analyse_files().findings[0])
    folder = outputs / "samples" / "ratings"
    folder.mkdir(parents=True)
    for name in ("anna", "ben"):
        export(folder, abx(9, 10, session=name, listener=name))
    assert [row["n"] for row in analysis.analyse_files().rows] == [20]
    with pytest.raises(FileNotFoundError):
        analysis.analyse_files(["gone.json"])
