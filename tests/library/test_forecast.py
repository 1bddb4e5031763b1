"""Forecasts: figures before anything is fetched, and refusals in one line."""

import os

import pytest

from music_training.errors import UserError
from music_training.library import catalogue, forecast
from music_training.library.sources import command, fma, jamendo


def test_published_sizes(outputs):
    small = fma.forecast_rows(fma.FmaSettings())
    assert sum(row.download for row in small) == pytest.approx(7.2 * 2**30 + 342 * 2**20, rel=0.01)
    large = fma.forecast_rows(fma.FmaSettings(subset="large"))
    assert forecast.peak(large) < 1.05 * 93 * 2**30  # consumed while it is unpacked, not twice
    kept = fma.forecast_rows(fma.FmaSettings(subset="large", keep_archive=True))
    assert forecast.peak(kept) > 1.9 * 93 * 2**30
    few = fma.forecast_rows(fma.FmaSettings(subset="large", limit=100))
    assert few[-1].download < 0.2e9 and few[-1].files == 101
    low = jamendo.forecast_rows(jamendo.JamendoSettings())
    assert low[0].download == 156e9 and low[0].files == 55_801
    assert not outputs.exists()  # nothing is fetched for a forecast


def test_what_the_disk_cannot_hold_is_refused(tmp_path, monkeypatch):
    rows = [forecast.row("a", 1e9, 2e9, 10, peak=3e9), forecast.row("b", 0, 1e9, 5)]
    assert forecast.peak(rows) == 3e9
    real = os.statvfs(tmp_path)

    def disk(free_blocks, free_inodes):
        values = list(real)
        values[4], values[7] = free_blocks, free_inodes
        monkeypatch.setattr(forecast.os, "statvfs", lambda _: os.statvfs_result(values))

    disk(int(4e9) // real.f_frsize, 100)
    forecast.refuse(rows, tmp_path)
    disk(int(2.5e9) // real.f_frsize, 100)
    with pytest.raises(UserError, match=r"3\.0 GB are needed and 2\.5 GB are free"):
        forecast.refuse(rows, tmp_path)
    forecast.refuse(rows, tmp_path / "not" / "there", there=10**9)
    disk(int(4e9) // real.f_frsize, 14)
    if real.f_files:
        with pytest.raises(UserError, match="15 files are needed and 14 inodes are free"):
            forecast.refuse(rows, tmp_path)


def test_the_dry_run_of_a_profile():
    rows = command.forecast_of("02a_download_fma", "fma_small_mini")
    assert rows[-1].step == "FMA small, 100 tracks"
    assert (
        command.forecast_of("02a_download_fma", "fma_small_mini", {"limit": 7, "overrides": ["seed=2"]})[-1].step == "FMA small, 7 tracks"
    )
    assert {row.step.split()[0] for row in command.forecast_of("02c_download_edm", "edm")} == {"GiantSteps", "annotation", "FMA", "Jamendo"}
    assert command.forecast_of("02d_download_stems_midi", "edm") and command.forecast_of("04_train_codec", "edm") == []
    assert command.forecast_of("03_segment_audio", "fma_small_mini") == []
    catalogue.write(catalogue.path_of("fma_small_mini"), [catalogue.Track(f"{n}", "x", "s", "a", duration=30.0) for n in range(10)])
    (row,) = command.forecast_of("03_segment_audio", "fma_small_mini")
    assert row.files == 40 and row.disk == 40 * 640_044


def test_the_table_adds_up():
    table = forecast.table([forecast.row("a", 1e9, 2e9, 10), forecast.row("b", 3e9, 1e9, 5)])
    assert list(table.iloc[-1][["download GB", "disk GB", "files"]]) == [4.0, 3.0, 15]
