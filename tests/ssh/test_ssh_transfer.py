"""push, pull and sync against a real sshd: whole trees, kills in the middle, what is left out and what is never deleted."""

import hashlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from stand_ins import v2_pod


@pytest.fixture
def pod(laptop, sshd, api):
    api.pods = [v2_pod("abc123", "pod", sshd.port)]
    done = laptop.run("config", "--identity", sshd.identity)
    assert done.returncode == 0, done.stderr
    return sshd


def make_tree(root: Path, count: int, big: int = 0) -> None:
    """``count`` small files in folders and one of ``big`` bytes, the same for the same arguments."""
    source = random.Random(count)
    root.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        path = root / f"folder {number % 7}" / f"part{number % 3}" / f"file {number} 'ü'.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.randbytes(source.randrange(3000)))
    if big:
        (root / "z").mkdir()  # rsync takes a folder's files before its subfolders: this one comes last
        (root / "z" / "big.bin").write_bytes(source.randbytes(big))


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(root.rglob("*")) if path.is_file()
    }


def slow_rsync(folder: Path) -> dict[str, str]:
    """An environment whose rsync sends 2 MB/s at most, so that a kill meets it at work."""
    (folder / "bin").mkdir()
    wrapper = folder / "bin" / "rsync"
    wrapper.write_text('#!/bin/sh\nexec /usr/bin/rsync --bwlimit=2000 "$@"\n')
    wrapper.chmod(0o755)
    return {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}


def wait_until(process, condition) -> None:
    """Wait until ``condition()`` holds while the tool is still at work."""
    for _ in range(2000):
        if condition():
            return
        assert process.poll() is None, f"over too early: {process.returncode}"
        time.sleep(0.01)
    pytest.fail("nothing arrived in 20 s")


def running(word: str) -> bytes:
    """The command lines of all processes that mention ``word``."""
    return subprocess.run(["pgrep", "-a", "-f", "--", word], capture_output=True, check=False).stdout


def kill_in_the_middle(process, target: Path, number: int) -> None:
    """Wait until files have arrived, then send ``number`` to the tool and everything it started."""
    wait_until(process, lambda: sum(1 for path in target.rglob("file*") if path.is_file()) > 20)
    os.killpg(process.pid, number)
    assert process.wait(20) != 0, "the transfer was over before the kill"
    for _ in range(500):  # until the pod's end has noticed and put away what it had
        if b"--server" not in running(str(target)):
            return
        time.sleep(0.02)


def transfer_with_kill(laptop, tmp_path, words, source, target, number):
    process = laptop.start(*words, env=slow_rsync(tmp_path))
    kill_in_the_middle(process, target, number)
    assert digests(target) != digests(source)
    done = laptop.run(*words)
    assert done.returncode == 0, done.stderr
    assert digests(target) == digests(source)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_pull_is_whole_after_a_kill(laptop, pod, tmp_path, number):
    source, target = tmp_path / "remote", tmp_path / "here" / "outputs"
    make_tree(source, 200, 2_000_000)
    transfer_with_kill(laptop, tmp_path, ["pull", "pod", source, target], source, target, number)
    assert not list(target.glob(".rsync*"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_push_is_whole_after_a_kill(laptop, pod, tmp_path, number):
    source, target = tmp_path / "here", tmp_path / "volume" / "new" / "code"
    make_tree(source, 200, 2_000_000)
    transfer_with_kill(laptop, tmp_path, ["push", "pod", source, target], source, target, number)
    assert not list(target.glob(".rsync*"))


def test_an_interrupted_big_file_is_continued(laptop, pod, tmp_path):
    source, target = tmp_path / "remote", tmp_path / "here"
    make_tree(source, 0, 3_000_000)
    process = laptop.start("pull", "pod", source, target, env=slow_rsync(tmp_path))
    wait_until(process, lambda: any(path.stat().st_size > 1_500_000 for path in target.glob(".rsync-temp/*big*")))
    process.terminate()
    assert process.wait(20) == 128 + signal.SIGTERM
    assert (target / "z" / ".rsync-partial" / "big.bin").stat().st_size > 1_000_000
    assert not (target / "z" / "big.bin").exists()
    done = laptop.run("pull", "pod", source, target, "--stats")
    matched = int(next(line for line in done.stdout.splitlines() if line.startswith("Matched data")).split()[2].replace(",", ""))
    assert matched > 1_000_000
    assert digests(target) == digests(source)


@pytest.mark.long
@pytest.mark.parametrize("direction", ["push", "pull"])
def test_two_thousand_files_and_a_kill(laptop, pod, tmp_path, direction):
    source, target = tmp_path / "from", tmp_path / "to"
    make_tree(source, 2000, 8_000_000)
    words = [direction, "pod", source, target]
    transfer_with_kill(laptop, tmp_path, words, source, target, signal.SIGKILL)
    assert not list(target.rglob(".rsync*"))


def test_a_second_transfer_sends_nothing(laptop, pod, tmp_path):
    source, target = tmp_path / "remote", tmp_path / "here"
    make_tree(source, 20)
    assert laptop.run("pull", "pod", source, target).returncode == 0
    before = {path: path.stat().st_ino for path in target.rglob("*") if path.is_file()}
    assert len(before) == 20
    done = laptop.run("pull", "pod", source, target, "--stats")
    assert "Number of regular files transferred: 0" in done.stdout
    assert {path: path.stat().st_ino for path in target.rglob("*") if path.is_file()} == before


def test_an_orphaned_transfer_is_waited_for(laptop, pod, tmp_path):
    source, target = tmp_path / "remote", tmp_path / "here"
    make_tree(source, 60, 5_000_000)
    process = laptop.start("pull", "pod", source, target, env=slow_rsync(tmp_path), stdout=subprocess.DEVNULL)
    wait_until(process, lambda: any(target.rglob("file*")))
    os.kill(process.pid, signal.SIGKILL)  # rsync goes on alone
    process.wait()
    done = laptop.run("pull", "pod", source, target, "--stats")
    assert done.returncode == 0, done.stderr
    assert "waiting for another transfer" in done.stderr
    assert "Number of regular files transferred: 0" in done.stdout
    assert digests(target) == digests(source)


def test_nothing_is_deleted_unless_asked(laptop, pod, tmp_path):
    source, target = tmp_path / "from", tmp_path / "to"
    make_tree(source, 3)
    for direction in ("push", "pull"):
        for path in (target / "extra", target / "outputs" / "model"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("mine")
        assert laptop.run(direction, "pod", source, target).returncode == 0
        assert (target / "extra").exists()
        would = laptop.run(direction, "pod", source, target, "--delete", "--dry-run")
        assert "*deleting   extra" in would.stdout and (target / "extra").exists()
        assert laptop.run(direction, "pod", source, target, "--delete", "--exclude", "/outputs/").returncode == 0
        assert not (target / "extra").exists() and (target / "outputs" / "model").exists()


def test_push_leaves_out_what_belongs_to_this_machine(laptop, pod, tmp_path):
    source, target = tmp_path / "from", tmp_path / "to"
    names = ["a.py", ".git/config", "x/__pycache__/a.pyc", ".venv/bin/python", ".env", "secret/key", "data/set.txt", "y/outputs/z"]
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    (source / "a.py").chmod(0o755)
    assert laptop.run("push", "pod", source, target, "--exclude", "secret/").returncode == 0
    assert set(digests(target)) == {"a.py", "data/set.txt", "y/outputs/z"}
    assert os.access(target / "a.py", os.X_OK)


def test_pull_leaves_unfinished_files_on_the_pod(laptop, pod, tmp_path):
    source, target = tmp_path / "from", tmp_path / "to"
    for name in ("ckpt/best.safetensors", "ckpt/.best.safetensors.12.tmp", "archive.zip.part"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    assert laptop.run("pull", "pod", source, target).returncode == 0
    assert set(digests(target)) == {"ckpt/best.safetensors"}


def test_sync_sends_code_and_fetches_outputs(laptop, pod, tmp_path, monkeypatch):
    code, outputs = tmp_path / "code", tmp_path / "results"
    make_tree(code, 5)
    remote = tmp_path / "workspace"
    monkeypatch.setenv("MUSIC_OUTPUTS", str(outputs))
    words = ["sync", "pod", "--code", code, "--remote-code", remote / "code", "--remote-outputs", remote / "outputs"]
    first = laptop.run(*words)
    assert first.returncode == 0 and "nothing there yet" in first.stdout
    assert not outputs.exists()
    make_tree(remote / "outputs", 9)
    assert laptop.run(*words).returncode == 0
    assert digests(remote / "code") == digests(code) and digests(outputs) == digests(remote / "outputs")


@pytest.mark.parametrize(
    "words, message",
    [
        (["push", "pod", "{tmp}/absent"], "no such folder"),
        (["push", "pod", "{tmp}", "/w;touch x"], "a remote folder may have"),
        (["push", "pod", "{tmp}", "-e"], "error"),
        (["pull", "pod", "$(id)"], "a remote folder may have"),
        (["pull", "nobody"], "no such pod"),
    ],
)
def test_bad_folders_and_names_are_one_line(laptop, pod, tmp_path, words, message):
    done = laptop.run(*[word.replace("{tmp}", str(tmp_path)) for word in words])
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count("\n") == 1


def test_pulling_a_folder_that_is_not_there_fails(laptop, pod, tmp_path):
    assert laptop.run("pull", "pod", tmp_path / "absent", tmp_path / "to").returncode not in (0, 2)
