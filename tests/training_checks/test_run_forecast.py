"""The forecast's arithmetic, the search for a batch with a memory that is full, and three real steps."""

import dataclasses

import pytest

from music_training import files, runs
from music_training.errors import UserError
from music_training.musicgen.training import CodecSettings, LanguageModelSettings
from training_checks import forecast
from training_checks.forecast import Measured, OutOfMemory

PLAIN = Measured(step_seconds=0.5, valid_seconds=10.0, memory=10**9, parameters=10**6, batch_size=2, device="cpu")
CODEC = {"04_train_codec": CodecSettings(model="codec_tiny", epochs=3, updates_per_epoch=100, batch_size=2)}


@pytest.mark.parametrize("room", [0, 1, 2, 3, 7, 31, 32, 33, 4096])
def test_bisection_finds_the_largest_batch(room):
    asked = []

    def fits(size):
        asked.append(size)
        return size <= room

    assert forecast.largest_batch(fits) == room
    assert len(asked) <= 26 and len(asked) == len(set(asked))


def test_bisection_within_bounds():
    assert forecast.largest_batch(lambda size: True, most=100) == 100
    assert forecast.largest_batch(lambda size: size <= 50, multiple=4) == 48


def test_a_batch_is_searched_with_real_steps_until_the_memory_is_full(monkeypatch):
    seen = []

    def measure(overrides, steps=3):
        size = int(overrides[-1].removeprefix("dataset.batch_size="))
        seen.append((size, steps))
        if size > 13:
            raise OutOfMemory("CUDA out of memory")
        return PLAIN

    monkeypatch.setattr(forecast, "measure", measure)
    assert forecast.find_batch_size(["a=1"]) == 13
    assert forecast.find_batch_size(["a=1"], processes=4) == 52
    assert all(steps == 1 for _, steps in seen)
    settings = {"04_train_codec": CODEC["04_train_codec"].model_copy(update={"batch_size": 64})}
    report = forecast.check(settings, "tones", "", price=1, find_batch=True)
    fault = next(finding for finding in report.findings if finding.severity == "fault")
    assert fault.subject == "04_train_codec memory" and "64 does not fit" in fault.message and "13 fit" in fault.message


def test_time_memory_disk_and_money(monkeypatch):
    monkeypatch.setattr(forecast, "measure", lambda overrides: PLAIN)
    report = forecast.check(CODEC, "tones", "", price=3.6, hours=0.01, budget=0.1)
    (row,) = report.rows
    seconds = 3 * (100 * 0.5 + 10)
    assert (row["steps"], row["steps/s"], row["hours"], row["memory GB"]) == (300, 2.0, 0.05, 1.0)
    assert row["cost"] == "$0.18" and report.figures["forecast_cost"] == pytest.approx(seconds / 3600 * 3.6)
    faults = {finding.subject: finding.message for finding in report.findings if finding.severity == "fault"}
    assert faults == {"time": "0.05 h are needed, 0.01 h are allowed", "money": "$0.18 are needed, $0.10 are allowed"}
    assert forecast.check(CODEC, "tones", "", price=3.6, hours=1, budget=1).passed
    assert forecast.check(CODEC, "tones", "", budget=0).passed  # a machine that is there costs nothing


def test_a_gpu_without_a_price_and_one_that_nobody_knows(monkeypatch):
    monkeypatch.setattr(forecast, "measure", lambda overrides: PLAIN)
    monkeypatch.setattr(forecast.prices.machine, "gpus", lambda: ["Some GPU, 1 MiB"])
    report = forecast.check(CODEC, "tones", "", budget=1)
    assert [finding.severity for finding in report.findings if finding.subject == "money"] == ["warning"]
    with pytest.raises(UserError, match="did you mean 'H200'"):
        forecast.check(CODEC, "tones", "", price="H20")


def test_checkpoints_that_do_not_fit_and_memory_that_is_nearly_full(monkeypatch):
    large = dataclasses.replace(PLAIN, parameters=10**15, memory=10**15)
    monkeypatch.setattr(forecast, "measure", lambda overrides: large)
    found = {finding.subject: finding.severity for finding in forecast.check(CODEC, "tones", "").findings}
    assert found["04_train_codec disk"] == "fault" and found["04_train_codec memory"] == "warning"


def test_what_needs_no_training_or_has_no_codec_yet(outputs):
    settings = {
        "04_train_codec": CodecSettings(pretrained="facebook/encodec_32khz"),
        "05_train_musicgen": LanguageModelSettings(model="lm_tiny"),
    }
    report = forecast.check(settings, "tones", "nowhere")
    assert [finding.severity for finding in report.findings] == ["ok", "note"] and report.rows == []


def test_running_out_of_memory_in_the_measuring_process_is_told_apart(outputs, tmp_path, monkeypatch):
    import torch

    from music_training.musicgen import train

    def full(argv):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")

    monkeypatch.setattr(train, "main", full)
    forecast._measure(tmp_path / "out.json", "x", 3, [])
    assert files.read_json(tmp_path / "out.json") == {"out_of_memory": "CUDA out of memory. Tried to allocate 20 GiB."}


@pytest.mark.long
def test_three_real_steps_of_a_real_configuration(egs):
    overrides = CodecSettings(model="codec_tiny", adversarial=False, batch_size=2, segment_seconds=0.5, workers=0).overrides(egs)
    measured = forecast.measure(overrides)
    assert 0 < measured.step_seconds < 60 and measured.valid_seconds > 0
    assert 10**8 < measured.memory < 10**10
    assert 10**3 < measured.parameters < 10**6 and measured.batch_size == 2 and measured.device == "cpu"
    assert runs.listing() == []
    with pytest.raises(UserError, match="forecast's steps failed: .*egs/nowhere/train: no manifest"):
        forecast.measure([*overrides, "datasource.train=egs/nowhere/train"])
