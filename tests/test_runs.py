"""Run folders: names, metadata, and a metrics file that survives kills and resumes."""

import json
import re

import pytest

from music_training import runs
from music_training.errors import UserError


def test_a_run_has_the_one_layout_and_name(outputs):
    run = runs.create("mert95m", "my first try!")
    assert re.fullmatch(r"run_\d{8}_\d{6}_mert95m_my-first-try", run.name)
    assert run.parent == outputs / "training"
    assert {path.name for path in run.iterdir()} == {"ckpt", "logs", "metadata.yaml"}
    assert runs.read_metadata(run)["system"] == "mert95m"


def test_two_runs_in_one_second_are_two_folders():
    assert len({runs.create("cnn") for _ in range(4)}) == 4
    assert [row["name"] for row in runs.listing()] == sorted(row["name"] for row in runs.listing())


def test_a_named_run_is_never_overwritten():
    runs.create("cnn", run_name="baseline_v1")
    with pytest.raises(UserError, match="--resume baseline_v1"):
        runs.create("cnn", run_name="baseline_v1")
    with pytest.raises(UserError, match="letters, digits"):
        runs.create("cnn", run_name="../elsewhere")
    with pytest.raises(UserError, match="did you mean 'baseline_v1'"):
        runs.find("baseline_v2")
    assert runs.find("baseline_v1").name == "baseline_v1"


def test_metadata_is_added_to():
    run = runs.create("cnn")
    runs.write_metadata(run, status="finished", step=7)
    known = runs.read_metadata(run)
    assert (known["status"], known["step"], known["name"]) == ("finished", 7, run.name)


def test_resumed_metrics_drop_later_rows_and_a_torn_line():
    run = runs.create("cnn")
    metrics = runs.Metrics(run)
    for step in range(1, 6):
        metrics.append(step, loss=1.0 / step)
    metrics.append(5, val_loss=float("nan"))
    metrics.close()
    before = metrics.path.read_bytes()
    metrics.path.write_bytes(before + b'{"step": 6, "lo')
    assert len(runs.read_metrics(run)) == 6
    runs.Metrics(run).close()
    assert metrics.path.read_bytes() == before

    runs.Metrics(run, keep_through=3).close()
    assert [row["step"] for row in runs.read_metrics(run)] == [1, 2, 3]


def test_metrics_read_as_rows_and_as_a_table():
    run = runs.create("cnn")
    metrics = runs.Metrics(run)
    metrics.append(1, loss=2.0, lr=0.1)
    metrics.append(1, val_loss=3.0)
    metrics.append(2, loss=float("inf"))
    metrics.close()
    assert all(json.loads(line) for line in metrics.path.read_text().splitlines())
    assert runs.read_metrics(run)[-1]["loss"] is None
    table = runs.metrics_table(run)
    assert list(table.index) == [1, 2]
    assert table.loc[1, "val_loss"] == 3.0 and table.loc[1, "loss"] == 2.0
    assert runs.metrics_table(runs.create("cnn")).empty
