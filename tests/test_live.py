"""The live view reads a growing file, and says what stands in it: curves, throughput, time and money to go."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from music_training import files, live, prices, progress, runs
from music_training.prices import Price


def row(step: int, stage: str = "train", seconds: float = 2.0, **values) -> dict:
    return {"step": step, "epoch": 1, "stage": stage, "seconds": seconds, **values}


@pytest.fixture
def run(outputs):
    return runs.create("musicgen", run_name="one")


def write(run, *rows: dict, mode: str = "a") -> None:
    with open(run / "metrics.jsonl", mode, encoding="utf-8") as stream:
        stream.writelines(json.dumps(one) + "\n" for one in rows)


@pytest.fixture
def panel(monkeypatch):
    """As if JupyterLab looked on; what the widget shows is in ``value``."""

    class Panel:
        value = ""

    monkeypatch.setattr(live.progress, "live", lambda: True)
    monkeypatch.setattr(live, "_panel", Panel)
    monkeypatch.setattr(live, "EVERY", 0.0)
    monkeypatch.setattr(progress, "_widget", lambda *_: None)
    return Panel


# Where it stands


def test_time_and_rate_are_those_of_the_rows():
    rows = [row(step, seconds=5.0) for step in range(10, 210, 10)] + [row(200, "valid", 10.0)]
    now = live.standing(rows, 400)
    assert (now.step, now.steps, now.spent) == (200, 400, 110.0)
    assert now.rate == pytest.approx(190 / 105) and now.left == pytest.approx(200 / now.rate)
    fast = rows + [row(step, seconds=1.0) for step in range(210, 410, 10)]
    assert live.standing(fast, 1000).rate == pytest.approx(10)  # the latest rows count


def test_rows_without_time_are_timed_by_who_reads_them():
    rows = [{"step": step, "loss": 1.0} for step in (10, 20, 30)]
    assert live.standing(rows, 60, [(100.0, 10), (110.0, 30)]) == live.Standing(30, 60, 2.0, 10.0, 15.0)
    assert live.standing(rows, 60) == live.Standing(30, 60, None, None, None)
    assert live.standing([], 60).text() == "step 0 of 60 (0%)"


def test_the_line_says_time_money_and_memory():
    now = live.Standing(50, 200, 0.5, 100.0, 300.0)
    text = now.text(Price(36.0, "a GPU"), [(10240, 143360), (512, 143360)])
    assert text == "step 50 of 200 (25%), 0.5 steps/s, 5:00 to go, $1.00 of about $4.00, GPU 10.0 of 140 GiB, GPU 0.5 of 140 GiB"
    assert "$" not in now.text(Price(0.0, "no GPU")) and "$" not in now.text(Price(None, "unknown"))
    assert live.money(live.Standing(200, 200, None, 100.0, None), Price(36.0, "a GPU")) == ["$1.00"]


# Curves


def test_a_curve_is_a_picture_with_a_name_and_both_ends():
    rows = [row(step, ce=10 - step / 10) for step in range(1, 51)] + [row(50, "valid", ce=6.0)]
    picture = ElementTree.fromstring(live.curve(rows, "ce"))
    assert picture.get("aria-label") == "ce: 5 at step 50; between 5 and 9.9"
    points = [tuple(map(float, point.split(","))) for point in picture.find("polyline").get("points").split()]
    assert len(points) == 50
    assert all(x2 > x1 and y2 > y1 for (x1, y1), (x2, y2) in zip(points, points[1:], strict=False))  # it falls: y grows downwards
    assert len(picture.findall("circle")) == 1
    assert [text.text for text in picture.findall("text")] == ["9.9", "5", "ce", "1", "50", "5"]


def test_a_long_run_is_thinned_to_means_and_gaps_are_left_out():
    rows = [row(step, ce=float(step % 2)) for step in range(10_000)] + [row(10_000, ce=None)]
    points = live._points(rows, "ce", "train")
    assert len(points) == live.POINTS and all(value == 0.5 for _, value in points)
    assert points[0][0] == pytest.approx(24.5)


def test_one_row_and_equal_values_are_a_picture_too():
    for rows in ([row(3, ce=1.0)], [row(3, ce=1.0), row(4, ce=1.0)], [row(5, "valid", ce=2.0)]):
        assert "nan" not in live.curve(rows, "ce")


def test_losses_and_gradient_are_shown_and_names_are_escaped():
    text = live.html([row(1, ce=3.0, grad_norm=0.5, lr=1e-3, other=1.0)], live.Standing(1, 2, None, None, None), title="<b>run</b>")
    assert re.findall(r'aria-label="(\w+)', text) == ["ce", "grad_norm", "lr"]
    assert "<b>run</b>" not in text and "&lt;b&gt;run" in text
    trainer = live.html([{"step": 1, "loss": 3.0, "gradient_norm": 0.5, "learning_rate": 1e-3}], live.Standing(1, 2, None, None, None))
    assert re.findall(r'aria-label="(\w+)', trainer) == ["loss", "gradient_norm", "learning_rate"]
    assert "no rows of metrics yet" in live.html([], live.Standing(0, 2, None, None, None))


# A growing file


def test_a_growing_file_is_followed(run, panel):
    view = live.View(run, 100)
    assert "no rows" in view._panel.value
    write(run, row(10, ce=5.0))
    assert view.look() and not view.look()
    with open(run / "metrics.jsonl", "a") as stream:
        stream.write('{"step": 20, "ce"')  # half a row
    assert not view.look()
    with open(run / "metrics.jsonl", "a") as stream:
        stream.write(': 4.0, "seconds": 2.0}\n')
    assert view.look() and [one["step"] for one in view.rows] == [10, 20]
    assert "step 20 of 100 (20%), 5 steps/s, 0:16 to go" in view._panel.value


def test_who_comes_back_sees_the_whole_curve(run, panel):
    write(run, *(row(step, ce=5.0) for step in range(10, 60, 10)))
    assert len(live.View(run, 100).rows) == 5 and "step 50 of 100" in live.View(run, 100)._panel.value


@pytest.mark.parametrize("later", [2, 8])  # rows after the resume: fewer and more than were dropped
def test_a_run_that_went_back_is_read_again(run, later):
    write(run, *(row(step, ce=5.0) for step in range(10, 80, 10)))
    view = live.View(run, 100)
    kept = [row(step, ce=5.0) for step in (10, 20, 30)]
    resumed = [row(step, ce=1.0, more="x" * step) for step in range(40, 40 + 10 * later, 10)]
    write(run, *kept, *resumed, mode="w")
    assert view.look()
    assert view.rows == kept + resumed


def test_headless_it_is_timed_lines(run, monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    monkeypatch.setenv("MUSIC_PRICE_PER_HOUR", "36")
    write(run, row(10, ce=5.0))
    with live.Live(run, 30) as shown:
        write(run, row(20, ce=4.5, seconds=100.0))
        shown.look()
        assert 'http-equiv="refresh"' in live.page_of(run).read_text() and "step 20 of 30" in live.page_of(run).read_text()
        write(run, row(30, ce=4.0, seconds=98.0))
    page = live.page_of(run).read_text()
    assert "refresh" not in page and "step 30 of 30" in page and "<svg" in page
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("one: 20/30 steps") and lines[0].endswith("ce 4.500, $1.02 of about $2.02")
    assert re.fullmatch(r"one: 30/30 steps, .* steps/s, done in 0:00, ce 4.000, \$2.00 of about \$2.00", lines[-1])


def test_a_run_is_watched_by_its_name_until_it_ends(run, capsys):
    files.write_text(run / "config.yaml", "optim: {epochs: 3, updates_per_epoch: 10}\n")
    write(run, row(10, ce=5.0))
    runs.write_metadata(run, status="finished")
    live.watch("one")
    assert capsys.readouterr().out.startswith("one: 10/30 steps")


def test_planned_steps_of_either_kind_of_run(run):
    write(run, row(7))
    assert live.planned_steps(run) == 7
    files.write_text(run / "config.yaml", "training: {max_steps: 450, epochs: 1000}\n")
    assert live.planned_steps(run) == 450


def test_prices_come_from_the_table_where_none_is_given(run, monkeypatch):
    monkeypatch.delenv("MUSIC_PRICE_PER_HOUR", raising=False)
    assert live.View(run, 1).price == prices.per_hour()
    assert live.View(run, 1, 2.5).price.hourly == 2.5


def test_no_torch_is_loaded_for_it():
    code = "import sys, music_training.live; print('torch' in sys.modules, 'ipywidgets' in sys.modules, 'pandas' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=files.REPOSITORY)
    assert ended.stdout.split() == ["False"] * 3
