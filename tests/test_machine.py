"""The machine's description honours a container's limits and needs no torch."""

import os
import shutil
import subprocess
import sys

import psutil
import pytest

from music_training import files, machine


def test_without_limits_it_is_the_machine(tmp_path):
    assert machine.cpu_count(tmp_path) == len(psutil.Process().cpu_affinity())
    assert machine.memory_limit(tmp_path) == psutil.virtual_memory().total


@pytest.mark.parametrize("text, cores", [("max 100000", None), ("100000 100000", 1), ("50000 100000", 1), ("99900000 100000", None)])
def test_cpu_quota_of_version_2(tmp_path, text, cores):
    (tmp_path / "cpu.max").write_text(f"{text}\n")
    assert machine.cpu_count(tmp_path) == (cores or machine.cpu_count(tmp_path / "none"))


@pytest.mark.parametrize("quota, cores", [("-1", None), ("100000", 1)])
def test_cpu_quota_of_version_1(tmp_path, quota, cores):
    files.write_text(tmp_path / "cpu" / "cpu.cfs_quota_us", quota)
    files.write_text(tmp_path / "cpu" / "cpu.cfs_period_us", "100000")
    assert machine.cpu_count(tmp_path) == (cores or machine.cpu_count(tmp_path / "none"))


def test_memory_limit_of_both_versions(tmp_path):
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.memory_limit(tmp_path) == psutil.virtual_memory().total
    (tmp_path / "memory.max").write_text("1000000\n")
    assert machine.memory_limit(tmp_path) == 1_000_000
    files.write_text(tmp_path / "memory" / "memory.limit_in_bytes", "900000")
    assert machine.memory_limit(tmp_path) == 900_000


def test_the_disk_of_a_folder_that_is_not_there_yet(outputs):
    free, total = machine.disk(outputs / "not" / "yet")
    assert total == shutil.disk_usage(outputs.parent).total and 0 < free <= total


def test_gpus_as_the_driver_reports_them(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.gpus() == []
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA A40, 46068 MiB'\necho 'NVIDIA A40, 46068 MiB'\n")
    program.chmod(0o755)
    assert machine.gpus() == ["NVIDIA A40, 46068 MiB"] * 2
    program.write_text("#!/bin/sh\nexit 9\n")
    assert machine.gpus() == []


def test_the_table_names_what_is_missing(monkeypatch):
    monkeypatch.setattr(machine, "PACKAGES", ("numpy", "no-such-package"))
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    values = machine.describe()["value"]
    assert values["no-such-package"] == "not installed" and values["numpy"][0].isdigit()
    assert values["ffmpeg"].startswith("missing") and values["cpu"].endswith("cores")
    assert machine.draw().axes


def test_no_torch_is_loaded():
    program = """
import sys
from music_training import machine, pipeline
machine.describe()
pipeline.table("mini")
print("torch" in sys.modules)
"""
    output = subprocess.run([sys.executable, "-c", program], cwd=files.REPOSITORY, capture_output=True, text=True, env=os.environ)
    assert output.stdout == "False\n", output.stderr
