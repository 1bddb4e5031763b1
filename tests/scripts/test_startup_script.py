"""The set-up script: its messages, its fast second call, and (long) a whole installation."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from music_training import files

SCRIPT = "scripts/startup_script.sh"
INPUTS = ("requirements.txt", "requirements-nodeps.txt", "requirements-dev.txt", "pyproject.toml", SCRIPT)


@pytest.fixture
def repository(tmp_path):
    """What the set-up reads, in a folder of its own."""
    folder = tmp_path / "repository"
    for name in INPUTS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(files.REPOSITORY / name, folder / name)
    return folder


def run(repository: Path, *arguments: str, **environment: str):
    known = {name: value for name, value in os.environ.items() if not name.startswith("MUSIC_")}
    known |= {"MUSIC_PYTHON": sys._base_executable, **environment}
    command = ["bash", str(repository / SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={k: v for k, v in known.items() if v}, timeout=1800)


def only_line(ended, code: int = 1) -> str:
    assert ended.returncode == code, ended.stdout + ended.stderr
    (line,) = ended.stderr.splitlines()
    return line


def program(folder: Path, name: str, text: str) -> Path:
    path = files.write_text(folder / name, f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_help_does_nothing(repository):
    ended = run(repository, "--help")
    assert ended.returncode == 0 and ended.stdout.startswith("usage: ") and not (repository / ".venv").exists()


def test_an_unknown_option_is_one_line(repository):
    assert "unknown option '--devel'" in only_line(run(repository, "--devel"))


def test_where_it_lies(repository, tmp_path):
    assert run(repository, "--where").stdout == f"{repository}/.venv\n"
    assert run(repository, "--where", MUSIC_VENV=str(tmp_path / "v")).stdout == f"{tmp_path}/v\n"


@pytest.mark.parametrize("kind, network", [("nfs", True), ("fuse", True), ("fuseblk", False), ("ext2/ext3", False), ("overlayfs", False)])
def test_a_network_volume_gets_its_environment_on_the_local_disk(repository, tmp_path, kind, network):
    program(tmp_path / "bin", "stat", f"echo {kind}")
    where = run(repository, "--where", PATH=f"{tmp_path}/bin:{os.environ['PATH']}", HOME="/home/me").stdout.strip()
    assert where == ("/home/me/.venvs/music-training" if network else f"{repository}/.venv")


def test_a_wrong_python_is_one_line(repository, tmp_path):
    old = program(tmp_path, "old", '[ "$1" = --version ] && echo "Python 3.8.10" || echo 3.8')
    assert f"MUSIC_PYTHON={old} is Python 3.8.10; Python 3.10, 3.11 or 3.12 is needed" in only_line(run(repository, MUSIC_PYTHON=str(old)))
    assert "MUSIC_PYTHON=/none: no such program" in only_line(run(repository, MUSIC_PYTHON="/none"))


def test_too_little_disk_is_one_line(repository):
    line = only_line(run(repository, MUSIC_SETUP_GB="9000000"))
    assert "GB free at" in line and "9000000 GB needed" in line
    assert not (repository / ".venv").exists()


def test_a_foreign_folder_is_left_alone(repository, tmp_path):
    kept = files.write_text(tmp_path / "mine" / "thesis.txt", "x")
    assert "exists and is not a virtual environment" in only_line(run(repository, MUSIC_VENV=str(kept.parent)))
    assert kept.read_text() == "x"


def test_no_network_is_one_line_and_no_stamp(repository, tmp_path):
    nothing = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_EXTRA_INDEX_URL": ""}
    ended = run(repository, MUSIC_SETUP_GB="0", **nothing)
    assert only_line(ended).startswith("set-up: error: no network: pip cannot reach its package index; check")
    assert "Python 3." in ended.stdout and not list((repository / ".venv").glob(".setup-*"))
    # What was left half made is taken up again, also where Python is gone from it.
    (repository / ".venv" / "bin" / "python").unlink()
    ended = run(repository, MUSIC_SETUP_GB="0", **nothing)
    assert "left half made" in ended.stdout and "no network" in only_line(ended)


@pytest.fixture
def without_root(tmp_path):
    """A PATH on which nobody is root, without ffmpeg and rsync."""
    folder = tmp_path / "bin"
    program(folder, "id", "echo 1000")
    for name in (
        "bash",
        "dirname",
        "mktemp",
        "rm",
        "cat",
        "grep",
        "sha256sum",
        "stat",
        "ssh",
        "awk",
        "df",
        "du",
        "cut",
        "ls",
        "mkdir",
        "flock",
    ):
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    return folder


def test_missing_programs_are_named_where_nobody_is_root(repository, without_root):
    line = only_line(run(repository, PATH=str(without_root), MUSIC_SETUP_GB="0"))
    assert "missing: ffmpeg rsync" in line and "ask for root: apt-get install ffmpeg rsync" in line


def stamped(repository: Path) -> Path:
    """A virtual environment that looks as if the set-up had ended."""
    venv = repository / ".venv"
    program(venv / "bin", "python", "exit 0")
    files.write_text(venv / "pyvenv.cfg", "home = /usr/bin\nversion = 3.11.7\n")
    state = hashlib.sha256(f"run\n{repository}\n{sys._base_executable}\n".encode() + b"home = /usr/bin\nversion = 3.11.7\n")
    for name in INPUTS:
        state.update((repository / name).read_bytes())
    files.write_text(venv / ".setup-run", f"{state.hexdigest()}  -\n")
    return venv


def test_the_second_call_starts_no_python_and_changes_nothing(repository):
    venv = stamped(repository)
    program(venv / "bin", "python", "touch $0.started")
    ended = run(repository)
    assert (ended.returncode, ended.stdout) == (0, f"set-up: up to date: {venv}\n"), ended.stderr
    assert sorted(os.listdir(venv / "bin")) == ["python"]


@pytest.mark.parametrize("changed", INPUTS)
def test_a_change_sets_up_again(repository, changed):
    stamped(repository)
    with open(repository / changed, "a") as stream:
        stream.write("# changed\n")
    assert "GB needed" in only_line(run(repository, MUSIC_SETUP_GB="9000000"))


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_whole_set_up_interrupted_continued_and_used(repository):
    (repository / "music_training").mkdir()
    files.write_text(repository / "music_training" / "__init__.py", "")
    (repository / "README.md").write_text("x")
    environment = {**os.environ, "MUSIC_PYTHON": sys._base_executable}
    environment.pop("MUSIC_VENV", None)
    command = ["bash", str(repository / SCRIPT)]
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run(command, env=environment, timeout=25, capture_output=True)
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    python = repository / ".venv" / "bin" / "python"
    for module in ("torchaudio.transforms", "transformers", "peft", "music_training", "symusic", "onnxruntime", "flashy"):
        fresh = subprocess.run([python, "-c", f"import {module}"], capture_output=True, text=True, cwd="/")
        assert fresh.returncode == 0, f"{module}: {fresh.stderr[-2000:]}"
    kernels = subprocess.run([python, "-m", "jupyter", "kernelspec", "list", "--json"], capture_output=True, text=True, cwd="/").stdout
    assert '"music-training"' in kernels
    assert "up to date" in run(repository).stdout
