"""Progress: timed lines where nobody looks on, a bounded number of them, and honest figures."""

import time

import pytest

from music_training import progress
from music_training.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets forward by itself."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


def test_lines_are_few_however_many_updates(clock, capsys):
    for _ in progress.progress(range(10_000), "work", unit="files"):
        clock.now += 0.01
    lines = capsys.readouterr().out.splitlines()
    assert 10 <= len(lines) <= 12
    assert lines[-1] == "work: 10000/10000 files, 100 files/s, done in 1:40"
    assert all(line.startswith("work: ") for line in lines)


def test_rate_and_eta(clock, capsys):
    shown = Progress(100, "train", "steps")
    clock.now += 20
    shown.update(25, note="loss 2.50")
    assert capsys.readouterr().out == "train: 25/100 steps, 1.25 steps/s, ETA 1:00, loss 2.50\n"
    clock.now += 20
    shown.to(80)
    assert capsys.readouterr().out == "train: 80/100 steps, 2 steps/s, ETA 0:10, loss 2.50\n"


def test_an_unknown_total_shows_no_eta(clock, capsys):
    with Progress(None, "read") as shown:
        clock.now += 11
        shown.update(3)
    assert "ETA" not in capsys.readouterr().out


def test_an_error_is_no_completion(clock, capsys):
    with pytest.raises(ZeroDivisionError), Progress(10, "work") as shown:
        clock.now += 5
        shown.update(2)
        raise ZeroDivisionError
    assert capsys.readouterr().out.splitlines()[-1] == "work: 2/10 it, 0.4 it/s, stopped in 0:05"


@pytest.mark.parametrize(
    "seconds, text", [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3599.4, "59:59"), (3661, "1:01:01"), (90000, "25:00:00")]
)
def test_times_as_people_read_them(seconds, text):
    assert progress.clock(seconds) == text


def test_generators_need_no_length(capsys):
    assert list(progress.progress((n for n in range(3)), "x")) == [0, 1, 2]
    assert "3 it" in capsys.readouterr().out


def test_nothing_passes_in_no_time(capsys):
    with Progress(0, "empty"):
        time.sleep(0)
    assert "done" in capsys.readouterr().out
