"""Files get to their place whole: under kill -9, on a full disk, beside a reader; locks and fingerprints."""

import errno
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from music_training import files
from music_training.errors import UserError


def test_relative_and_absolute_are_inverse_under_the_root_and_keep_other_paths(outputs):
    inside, outside = outputs / "a" / "b.txt", Path("/somewhere/else.wav")
    assert files.relative(inside) == "a/b.txt"
    assert files.absolute("a/b.txt") == inside
    assert files.absolute(files.relative(outside)) == outside
    assert files.relative(outputs.with_name("outputs2") / "x").startswith("/")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = files.write_text(tmp_path / "a.txt", "old")
    with pytest.raises(ZeroDivisionError), files.atomic(target) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_replaces_a_folder(tmp_path):
    target = tmp_path / "run"
    for name in ("one", "two"):
        with files.atomic(target) as temporary:
            temporary.mkdir()
            (temporary / name).write_text(name)
    assert os.listdir(target) == ["two"] and os.listdir(tmp_path) == ["run"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), files.atomic(tmp_path / "a"):
        pass


def test_sweep_removes_only_what_killed_processes_left(tmp_path):
    (tmp_path / ".a.json.77.tmp").write_text("half")
    (tmp_path / ".run.78.tmp").mkdir()
    (tmp_path / ".run.78.tmp" / "x").write_text("x")
    (tmp_path / "kept.tmp").write_text("x")
    (tmp_path / ".hidden").write_text("x")
    assert files.sweep(tmp_path) == 2
    assert sorted(os.listdir(tmp_path)) == [".hidden", "kept.tmp"]


def test_json_that_cannot_be_read_is_none(tmp_path):
    (tmp_path / "a").write_text('{"x": ')
    assert files.read_json(tmp_path / "a") is None
    assert files.read_json(tmp_path / "missing") is None
    assert files.read_json(tmp_path / "a" / "below") is None
    assert files.read_json(files.write_json(tmp_path / "b", {"ä": [1]})) == {"ä": [1]}


WRITER = """
import sys
from pathlib import Path
from music_training import files
number = 0
while True:
    number += 1
    files.write_text(Path(sys.argv[1]), f"{number % 10}" * 300_000)
"""


def test_kill_at_random_moments_never_leaves_half_a_file(tmp_path):
    target = tmp_path / "a.txt"
    moments, seen = random.Random(1), 0
    for _ in range(12):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(target)], cwd=files.REPOSITORY)
        while not target.exists():
            time.sleep(0.005)
            assert process.poll() is None
        time.sleep(moments.random() * 0.15)
        process.kill()
        process.wait()
        text = target.read_text()
        assert len(text) == 300_000 and len(set(text)) == 1
        seen += len(list(tmp_path.glob(".*.tmp")))
        target.unlink()
        files.sweep(tmp_path)
        assert os.listdir(tmp_path) == []
    assert seen > 0, "no kill hit a write: the test shows nothing"


def test_a_reader_beside_a_writer_sees_whole_files(tmp_path):
    target = files.write_text(tmp_path / "a.txt", "a" * 100_000)
    stop = threading.Event()

    def write():
        while not stop.is_set():
            for letter in "ab":
                files.write_text(target, letter * 100_000)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        texts, deadline = set(), time.monotonic() + 30
        while len(texts) < 2 and time.monotonic() < deadline:  # the writer may be slow to begin
            texts.update(target.read_text() for _ in range(300))
    finally:
        stop.set()
        thread.join()
    assert texts == {"a" * 100_000, "b" * 100_000}


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True)
    if not mounted or mounted.returncode:
        pytest.skip("a small tmpfs cannot be mounted here (needs root)")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_leaves_the_old_file(small_disk):
    target = files.write_text(small_disk / "a", "old")
    with pytest.raises(OSError) as caught:
        files.write_text(target, "x" * 1_000_000)
    assert caught.value.errno == errno.ENOSPC
    assert target.read_text() == "old" and os.listdir(small_disk) == ["a"]


def test_a_full_disk_is_one_line_of_a_command(small_disk):
    program = (
        "import sys; from pathlib import Path; from music_training import errors, files;"
        "errors.run_command(lambda: files.write_text(Path(sys.argv[1]), 'x' * 1_000_000))"
    )
    ended = subprocess.run([sys.executable, "-c", program, small_disk / "a"], cwd=files.REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == 2 and "the disk is full" in ended.stderr and len(ended.stderr.splitlines()) == 1


# Fingerprints


def test_a_file_is_known_by_its_content_after_a_move(tmp_path):
    path = files.write_text(tmp_path / "a", "text")
    known = files.fingerprint(path)
    os.utime(path, (1, 1))
    assert files.matches(path, known)
    path.write_text("TEXT")
    assert not files.matches(path, known)
    path.write_text("longer text")
    assert not files.matches(path, known)
    path.unlink()
    assert not files.matches(path, known) and files.matches(path, None)


def test_a_folder_is_known_by_its_listing(tmp_path):
    folder = tmp_path / "audio"
    files.write_text(folder / "b" / "x.wav", "1")
    files.write_text(folder / "a.wav", "2")
    known = files.fingerprint(folder)
    assert files.matches(folder, known)
    files.write_text(folder / "c.wav", "3")
    assert not files.matches(folder, known)
    (folder / "c.wav").unlink()
    assert files.matches(folder, known)
    shutil.rmtree(folder)
    folder.write_text("a file")
    assert not files.matches(folder, known)


def test_digest_agrees_with_sha256sum(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(random.Random(0).randbytes(3_000_001))
    expected = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]
    assert files.digest(path) == expected
    with open(path, "rb") as stream:
        assert files._digest(stream) == expected


# Lock

HOLDER = """
import sys, time
from music_training import files
with files.lock(sys.argv[1], "the test"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path / "lock"], cwd=files.REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_live_holder_is_named(holder, tmp_path):
    message = rf"the test is already running as process {holder.pid};"
    with pytest.raises(UserError, match=message), files.lock(tmp_path / "lock", "the test"):
        pass


def test_a_dead_holder_holds_nothing(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with files.lock(tmp_path / "lock", "the test"):
        pass
    with files.lock(tmp_path / "lock", "the test"):
        pass


def test_waiting_for_a_holder_that_ends(holder, tmp_path):
    threading.Timer(0.3, holder.kill).start()
    with files.lock(tmp_path / "lock", "the test", wait=20):
        pass


def test_a_forked_worker_does_not_keep_the_lock(tmp_path):
    program = """
import os, sys, time
from music_training import files
with files.lock(sys.argv[1], "the test"):
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    os._exit(0)
"""
    ended = subprocess.Popen([sys.executable, "-c", program, tmp_path / "lock"], cwd=files.REPOSITORY, stdout=subprocess.PIPE, text=True)
    child = int(ended.stdout.readline())
    try:
        ended.wait()
        with files.lock(tmp_path / "lock", "the test"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def _count(folder, number):
    for _ in range(20):
        with files.lock(folder / "lock", "counting", wait=60):
            value = int((folder / "n").read_text())
            files.write_text(folder / "n", str(value + 1))


def test_the_lock_excludes(tmp_path):
    (tmp_path / "n").write_text("0")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_count, args=(tmp_path, number)) for number in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert (tmp_path / "n").read_text() == "40"
