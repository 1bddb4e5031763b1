"""What exported ratings say: right answers against guessing, mean scores with confidence intervals, preferences.

Files of several listeners, JSON or CSV, are taken together. Everything is computed from single trials, scores and
choices; what the page computed is not used.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from music_training import files
from music_training.errors import UserError
from training_checks.report import Report

FORMAT = "listening-page-ratings"
LEVEL = 0.95  # of confidence
PASS = 90  # a listener who scores the hidden reference lower, in over 15% of the ratings, is left out (ITU-R BS.1534-3)
MISSED = 0.15


@dataclass(frozen=True)
class Answer:
    """One trial, score or choice: ``kind`` abx, rating or preference; ``values`` are its own fields."""

    kind: str
    listener: str
    session: str
    table: str
    clip: str
    values: dict[str, Any]


def read(path: Path) -> list[Answer]:
    """The answers of an exported file; UserError where it is none."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = _from_json(json.loads(text)) if text.lstrip().startswith("{") else _from_csv(text)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not an export of the listening page ({type(error).__name__}: {error})") from None
    if not found:
        raise UserError(f"{path}: no ratings in it; rate something on the page and export again")
    return found


def analyse_files(paths: list[Path | str] | None = None) -> Report:
    """What exported files say; None: those in ``outputs/samples/ratings``. Without any a note says how to come by them."""
    folder = files.outputs_root() / "samples" / "ratings"
    chosen = sorted([*folder.glob("*.json"), *folder.glob("*.csv")]) if paths is None else [Path(path).expanduser() for path in paths]
    if not chosen:
        report = Report("listening tests: no ratings yet")
        report.add("note", "ratings", "none exported", f"rate on the page, export, and put the file into {files.relative(folder)}")
        return report
    return analyse([one for path in chosen for one in read(path)])


def analyse(answers: list[Answer]) -> Report:
    """Findings for every comparison, and the figures behind them as rows."""
    answers = list({(one.session, json.dumps(one.values, sort_keys=True), one.kind): one for one in answers}.values())  # exported twice
    listeners = sorted({one.listener for one in answers})
    report = Report(f"listening tests: {len({one.session for one in answers})} sessions of {len(listeners)} listener(s)")
    for kind, judge in (("abx", _abx), ("rating", _ratings), ("preference", _preferences)):
        of_kind = [one for one in answers if one.kind == kind]
        for table in sorted({one.table for one in of_kind}):
            judge(report, table, [one for one in of_kind if one.table == table])
    unmatched = len({one.session for one in answers if one.values.get("matched") in (False, "false")})
    if unmatched:
        report.add("warning", "levels", f"{unmatched} session(s) without level matching", "louder is often taken for better: match levels")
    return report


def _abx(report: Report, table: str, answers: list[Answer]) -> None:
    from scipy.stats import binomtest

    for pair, trials in _grouped(answers, lambda one: tuple(sorted((one.values["version_a"], one.values["version_b"])))).items():
        right = sum(one.values["x"] == one.values["answer"] for one in trials)
        test = binomtest(right, len(trials), 0.5, alternative="greater")
        low, high = binomtest(right, len(trials), 0.5).proportion_ci(LEVEL, "exact")
        subject = f"{table}: ABX of {pair[0]} and {pair[1]}"
        message = f"{right} of {len(trials)} right ({right / len(trials):.0%}, 95% CI {low:.0%} to {high:.0%}), p = {test.pvalue:.3g}"
        report.add("ok" if test.pvalue < 1 - LEVEL else "note", subject, message + _heard(test.pvalue))
        row = {"kind": "abx", "table": table, "a": pair[0], "b": pair[1], "n": len(trials), "right": right}
        report.rows.append(row | {"value": right / len(trials), "low": low, "high": high, "p": test.pvalue})


def _heard(p: float) -> str:
    return ": a difference is heard" if p < 1 - LEVEL else ": no difference is shown"


def _ratings(report: Report, table: str, answers: list[Answer]) -> None:
    for listener, own in _grouped(answers, lambda one: one.listener).items():
        hidden = [one.values["score"] for one in own if one.values["role"] == "reference"]
        missed = sum(score < PASS for score in hidden)
        if hidden and missed > MISSED * len(hidden):
            share = f"{missed} of {len(hidden)} hidden references scored below {PASS}"
            report.add("note", f"{table}: listener {listener or '(no name)'}", f"left out: {share}")
            answers = [one for one in answers if one.listener != listener]
    scores: dict[str, dict[str, float]] = {}
    for version, own in _grouped(answers, lambda one: one.values["version"]).items():
        scores[version] = {one.session: one.values["score"] for one in own}
        values = list(scores[version].values())
        mean, (low, high) = statistics.fmean(values), mean_interval(values)
        role = own[0].values["role"]
        report.add(
            "ok", f"{table}: {version}{f' ({role})' if role else ''}", f"{mean:.1f} ({_range(low, high)}) over {len(values)} rating(s)"
        )
        report.rows.append({"kind": "rating", "table": table, "a": version, "n": len(values), "value": mean, "low": low, "high": high})
    _differences(report, table, scores)


def _differences(report: Report, table: str, scores: dict[str, dict[str, float]]) -> None:
    """Every two versions over the sessions that scored both: Wilcoxon's signed ranks, corrected after Holm."""
    from scipy.stats import wilcoxon

    rows = []
    for a, b in itertools.combinations(scores, 2):
        differences = [scores[a][session] - scores[b][session] for session in scores[a] if session in scores[b]]
        if len(differences) < 2:
            continue
        low, high = mean_interval(differences)
        p = float(wilcoxon(differences).pvalue) if any(differences) else 1.0
        row = {"kind": "rating difference", "table": table, "a": a, "b": b, "n": len(differences)}
        rows.append(row | {"value": statistics.fmean(differences), "low": low, "high": high, "p": p})
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p"] = p
        message = f"{row['value']:+.1f} ({_range(row['low'], row['high'])}) over {row['n']} ratings, p = {p:.3g} (Holm)"
        report.add("ok" if p < 1 - LEVEL else "note", f"{table}: {row['a']} minus {row['b']}", message + _heard(p))
    report.rows += rows


def _preferences(report: Report, table: str, answers: list[Answer]) -> None:
    from scipy.stats import binomtest

    for pair, own in _grouped(answers, lambda one: tuple(sorted((one.values["version_a"], one.values["version_b"])))).items():
        choices = [one.values["choice"] * (1 if one.values["version_b"] == pair[1] else -1) for one in own]
        better = sum(choice > 0 for choice in choices)
        decided = sum(choice != 0 for choice in choices)
        p = binomtest(better, decided, 0.5).pvalue if decided else 1.0
        low, high = binomtest(better, decided, 0.5).proportion_ci(LEVEL, "exact") if decided else (0.0, 1.0)
        message = f"preferred {better} times, the other {decided - better}, neither {len(choices) - decided}"
        report.add(
            "ok" if p < 1 - LEVEL else "note",
            f"{table}: {pair[1]} over {pair[0]}",
            f"{message} (95% CI {low:.0%} to {high:.0%} of the decided), p = {p:.3g} (sign test)" + _heard(p),
        )
        row = {"kind": "preference", "table": table, "a": pair[1], "b": pair[0], "n": len(choices)}
        report.rows.append(row | {"value": better / decided if decided else 0.5, "low": low, "high": high, "p": p})


def mean_interval(values: list[float]) -> tuple[float, float]:
    """Student's interval of the mean; infinite for a single value."""
    from scipy.stats import t

    if len(values) < 2:
        return -float("inf"), float("inf")
    half = t.ppf((1 + LEVEL) / 2, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    mean = statistics.fmean(values)
    return mean - half, mean + half


def holm(ps: list[float]) -> list[float]:
    """p-values of a family, each corrected (Holm 1979)."""
    corrected, highest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[index]))
        corrected[index] = highest
    return corrected


def _range(low: float, high: float) -> str:
    return f"95% CI {low:.1f} to {high:.1f}" if high < float("inf") else "one value: no interval"


def _grouped(answers: list[Answer], key) -> dict[Any, list[Answer]]:
    found = defaultdict(list)
    for one in answers:
        found[key(one)].append(one)
    return dict(found)


def _from_json(content: dict) -> list[Answer]:
    if content.get("format") != FORMAT:
        raise ValueError(f"no field format: {FORMAT}")
    answers = []
    for one in content["ratings"]:
        own = {"matched": one.get("matched")}
        if one["kind"] == "abx":
            parts = [{"trial": i + 1, "version_a": one["a"], "version_b": one["b"], **trial} for i, trial in enumerate(one["trials"])]
        elif one["kind"] == "rating":
            parts = one["scores"]
        else:
            parts = [{"version_a": one["a"], "version_b": one["b"], "choice": one["choice"]}]
        row = one["row"]
        answers += [_answer({**one, **row, "clip": row["name"]}, {**own, **part}) for part in parts]
    return answers


def _from_csv(text: str) -> list[Answer]:
    rows = [{name: _plain(value) for name, value in row.items()} for row in csv.DictReader(io.StringIO(text, newline=""))]
    return [_answer(row, row) for row in rows]


def _plain(text: str) -> str:
    """A cell without the mark that keeps a spreadsheet from taking it for a formula."""
    return text[1:] if re.match(r"'[=+\-@\t\r]", text) else text


FIELDS = {
    "abx": {"trial": int, "version_a": str, "version_b": str, "x": str, "answer": str},
    "rating": {"trial": int, "version": str, "role": str, "score": float},
    "preference": {"version_a": str, "version_b": str, "choice": int},
}


def _answer(common: dict, own: dict) -> Answer:
    kind = common["kind"]
    if kind not in FIELDS:
        raise ValueError(f"kind {kind!r}: one of {', '.join(FIELDS)}")
    values = {name: cast(own[name]) for name, cast in FIELDS[kind].items()}
    if kind == "rating" and not 0 <= values["score"] <= 100:
        raise ValueError(f"score {values['score']:g}: from 0 to 100")
    if kind == "abx" and not {values["x"], values["answer"]} <= {"a", "b"}:
        raise ValueError(f"x {values['x']!r}, answer {values['answer']!r}: a or b")
    values["matched"] = str(own.get("matched")).lower()
    return Answer(kind, common["listener"], common["session"], f"{common['section']}, {common['title']}", common["clip"], values)
