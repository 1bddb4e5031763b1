"""Downloads: whatever the server does, the right file or one clear error."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
from fault_server import FaultServer

from music_training.errors import UserError
from music_training.library import downloads

QUICK = downloads.Policy(backoff=0.0005, stall=2.0, longest_wait=0.01)


@pytest.fixture
def server(tmp_path):
    (tmp_path / "served").mkdir()
    with FaultServer(tmp_path / "served") as running:
        yield running


def serve(server, name, size, seed=0):
    content = random.Random(seed).randbytes(size)
    (server.root / name).write_bytes(content)
    return content


def digests_of(content):
    return {name: hashlib.new(name, content).hexdigest() for name in ("sha1", "sha256", "md5")}


def test_fetch_verifies_and_a_second_run_asks_nothing(server, tmp_path):
    content = serve(server, "a.bin", 300_000)
    path = tmp_path / "got" / "a.bin"
    downloads.fetch(server.url + "a.bin", path, **digests_of(content), policy=QUICK)
    assert path.read_bytes() == content
    asked = len(server.requests)
    downloads.fetch(server.url + "a.bin", path, **digests_of(content), policy=QUICK)
    assert len(server.requests) == asked
    assert sorted(item.name for item in path.parent.iterdir()) == [".downloads.jsonl", "a.bin"]


def test_verify_finds_a_changed_byte_that_size_and_mtime_hide(server, tmp_path):
    content = serve(server, "a.bin", 1000)
    path = tmp_path / "a.bin"
    downloads.fetch(server.url + "a.bin", path, sha1=digests_of(content)["sha1"], policy=QUICK)
    status = path.stat()
    path.write_bytes(b"x" + content[1:])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    downloads.fetch(server.url + "a.bin", path, sha1=digests_of(content)["sha1"], policy=QUICK)
    assert path.read_bytes() != content  # the cheap check cannot know
    downloads.fetch(server.url + "a.bin", path, sha1=digests_of(content)["sha1"], policy=QUICK, verify=True)
    assert path.read_bytes() == content


def test_a_moved_file_is_recognised_by_its_digest(server, tmp_path):
    content = serve(server, "a.bin", 1000)
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    downloads.fetch(server.url + "a.bin", path, md5=digests_of(content)["md5"], policy=QUICK)
    assert not server.requests


def test_a_drop_is_resumed_where_it_happened(server, tmp_path):
    content = serve(server, "a.bin", 100_000)
    server.plan["a.bin"] = [{"kind": "close", "at": 60_000}]
    downloads.fetch(server.url + "a.bin", tmp_path / "a.bin", sha256=digests_of(content)["sha256"], policy=QUICK)
    assert (tmp_path / "a.bin").read_bytes() == content
    assert [asked for _, asked in server.requests] == [None, "bytes=60000-"]


def test_a_200_to_a_range_request_starts_again(server, tmp_path):
    content = serve(server, "a.bin", 100_000)
    server.plan["a.bin"] = [{"kind": "close", "at": 60_000}, {"kind": "ignore_range"}]
    downloads.fetch(server.url + "a.bin", tmp_path / "a.bin", policy=QUICK)
    assert (tmp_path / "a.bin").read_bytes() == content


def test_a_file_that_changed_between_tries_is_never_mixed(server, tmp_path):
    serve(server, "a.bin", 100_000)
    new = random.Random(9).randbytes(100_000)
    server.plan["a.bin"] = [{"kind": "close", "at": 60_000}, {"kind": "replace", "content": new}]
    downloads.fetch(server.url + "a.bin", tmp_path / "a.bin", policy=QUICK)  # no checksum: the validator alone protects
    assert (tmp_path / "a.bin").read_bytes() == new


def test_without_validator_and_checksum_nothing_is_appended(server, tmp_path):
    server.validators = False
    content = serve(server, "a.bin", 100_000)
    server.plan["a.bin"] = [{"kind": "close", "at": 60_000}]
    downloads.fetch(server.url + "a.bin", tmp_path / "a.bin", policy=QUICK)
    assert (tmp_path / "a.bin").read_bytes() == content
    assert [asked for _, asked in server.requests] == [None, None]


def test_retry_after_is_obeyed_within_reason(server, tmp_path, monkeypatch):
    content = serve(server, "a.bin", 1000)
    waits = []
    monkeypatch.setattr(downloads.time, "sleep", waits.append)
    server.plan["a.bin"] = [{"kind": "status", "code": 429, "retry_after": 7}, {"kind": "status", "code": 503, "retry_after": 100_000}]
    downloads.fetch(server.url + "a.bin", tmp_path / "a.bin", policy=downloads.Policy(longest_wait=300))
    assert (tmp_path / "a.bin").read_bytes() == content
    assert [wait for wait in waits if wait >= 7] == [7.0, 300]


def test_a_wrong_checksum_is_an_error_and_leaves_no_file(server, tmp_path):
    serve(server, "a.bin", 1000)
    with pytest.raises(downloads.DownloadError, match=r"a\.bin.*sha1 is [0-9a-f]{40}, expected 0{40}"):
        downloads.fetch(server.url + "a.bin", tmp_path / "a.bin", sha1="0" * 40, policy=QUICK)
    assert not (tmp_path / "a.bin").exists()
    assert len(server.requests) == 3


def test_mirrors_are_tried_in_order(server, tmp_path):
    content = serve(server, "a.bin", 1000)
    downloads.fetch(server.url + "gone.bin", tmp_path / "b.bin", mirrors=[server.url + "a.bin"], policy=QUICK)
    assert (tmp_path / "b.bin").read_bytes() == content


def test_an_error_names_every_address(server, tmp_path):
    with pytest.raises(downloads.DownloadError, match=r"x\.bin: HTTP 404.*y\.bin: HTTP 404.*run the same command again"):
        downloads.fetch(server.url + "x.bin", tmp_path / "x.bin", mirrors=[server.url + "y.bin"], policy=QUICK)
    with pytest.raises(downloads.DownloadError, match="cannot be fetched"):
        downloads.fetch("ftp://nowhere/x", tmp_path / "x.bin", policy=QUICK)


def test_a_silent_server_is_given_up(server, tmp_path):
    serve(server, "a.bin", 50_000)
    server.plan["a.bin"] = [{"kind": "slow", "delay": 1.0, "piece": 10}] * 3
    policy = downloads.Policy(tries=2, stall=0.2, backoff=0.001)
    with pytest.raises(downloads.DownloadError, match=r"2 tries"):
        downloads.fetch(server.url + "a.bin", tmp_path / "a.bin", policy=policy)


def test_a_full_disk_is_refused_before_the_first_byte(server, tmp_path, monkeypatch):
    serve(server, "a.bin", 5000)
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 4999})())
    with pytest.raises(UserError, match="are free; free some space"):
        downloads.fetch(server.url + "a.bin", tmp_path / "a.bin", policy=QUICK)
    assert not (tmp_path / "a.bin").exists()


def test_several_files_at_a_time_and_tolerated_faults(server, tmp_path):
    contents = {f"{n}.bin": serve(server, f"{n}.bin", 20_000, n) for n in range(8)}
    wanted = [downloads.Wanted((server.url + name,), tmp_path / "many" / name) for name in [*contents, "lost.bin"]]
    faults = downloads.fetch_all(wanted, policy=QUICK, tolerate=True)
    assert [path.name for path in faults] == ["lost.bin"]
    assert {name: (tmp_path / "many" / name).read_bytes() for name in contents} == contents


def test_two_threads_fetch_one_file_once(server, tmp_path):
    content = serve(server, "a.bin", 400_000)
    server.plan["a.bin"] = [{"kind": "slow", "delay": 0.01, "piece": 50_000}]
    digest = digests_of(content)["sha1"]
    job = lambda: downloads.fetch(server.url + "a.bin", tmp_path / "a.bin", sha1=digest, policy=QUICK)  # noqa: E731
    threads = [threading.Thread(target=job) for _ in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert (tmp_path / "a.bin").read_bytes() == content
    assert len(server.requests) == 1


def test_a_stop_ends_all_downloads_at_once(server, tmp_path, monkeypatch):
    for number in range(4):
        serve(server, f"{number}.bin", 2_000_000, number)
        server.plan[f"{number}.bin"] = [{"kind": "slow", "delay": 0.2, "piece": 20_000}]
    whole = downloads._Transfer._copy

    def full(transfer, response):
        if transfer.wanted.path.name == "3.bin":
            raise UserError("the disk is full")
        whole(transfer, response)

    monkeypatch.setattr(downloads._Transfer, "_copy", full)
    with pytest.raises(UserError, match="the disk is full"):
        downloads.fetch_all([downloads.Wanted((f"{server.url}{n}.bin",), tmp_path / f"{n}.bin") for n in range(4)], policy=QUICK)
    assert not list(tmp_path.glob("*.bin")) and all(part.stat().st_size < 2_000_000 for part in tmp_path.glob("*.part"))


def schedule(random_, size):
    """Up to five faults in a row, any of them, at any place."""
    kinds = ["drop", "close", "ignore_range", "status", "wrong_length", "corrupt", "slow", "wrong_range", "replace", "no_validator", "ok"]
    faults = []
    for _ in range(random_.randint(1, 5)):
        kind = random_.choice(kinds)
        fault = {"kind": kind, "at": random_.randrange(size + 1)}
        if kind == "status":
            fault |= {"code": random_.choice([408, 429, 500, 503]), "retry_after": random_.choice([None, 0, 1])}
        elif kind == "wrong_length":
            fault["delta"] = random_.choice([-1, 1, -size // 2, size])
        elif kind == "slow":
            fault |= {"delay": 0.001, "piece": max(1, size // 5)}
        elif kind == "wrong_range":
            fault["shift"] = random_.choice([-1, 1, 100])
        elif kind == "replace":
            fault["content"] = random_.randbytes(random_.choice([size, size + 7]))
        faults.append(fault)
    return faults


@pytest.mark.parametrize("block", range(10))
def test_randomised_fault_schedules(server, tmp_path, block, monkeypatch):
    """240 schedules: 24 a block, over 10 blocks; with a checksum, with only a size, with validators alone."""
    sleep = time.sleep
    monkeypatch.setattr(downloads.time, "sleep", lambda seconds: sleep(min(seconds, 0.002)))
    right = errors = 0
    for number in range(24):
        random_ = random.Random(1000 * block + number)
        size = random_.choice([1, 100, 5_000, 70_000, 1_300_000])
        name = f"{number}.bin"
        content = serve(server, name, size, seed=number)
        protection = random_.choice(["sha1", "sha256", "md5", "validator"])
        faults = schedule(random_, size)
        versions = {content} | {fault["content"] for fault in faults if fault["kind"] == "replace"}
        if protection == "validator":  # a byte flipped under way, or a length understated, cannot be seen by anyone then
            faults = [fault for fault in faults if fault["kind"] not in ("corrupt", "wrong_length", "wrong_range")]
        server.plan[name] = faults
        expected = {protection: hashlib.new(protection, content).hexdigest()} if protection != "validator" else {}
        path = tmp_path / "got" / name
        for _ in range(random_.choice([1, 2])):  # a second run continues, or has nothing to do
            try:
                downloads.fetch(server.url + name, path, **expected, policy=QUICK)
                assert path.read_bytes() == content if expected else path.read_bytes() in versions, (block, number)
                right += 1
            except downloads.DownloadError as error:
                assert expected and len(versions) > 1, (block, number, str(error))  # only another file on the server justifies it
                assert "\n" not in str(error) and name in str(error)
                assert not path.exists()
                errors += 1
    assert right >= 12


FETCHER = """
import sys
from music_training.library import downloads
downloads.fetch(sys.argv[1], sys.argv[2], sha1=sys.argv[3])
"""


@pytest.mark.long
def test_kill_during_a_download_and_again(server, tmp_path):
    content = serve(server, "a.bin", 12_000_000)
    digest = digests_of(content)["sha1"]
    server.plan["a.bin"] = [{"kind": "slow", "delay": 0.005, "piece": 100_000} for _ in range(4)]
    path = tmp_path / "got" / "a.bin"
    command = [sys.executable, "-c", FETCHER, server.url + "a.bin", str(path), digest]
    parts = []
    for size in (1_000_000, 5_000_000, 9_000_000):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        part = downloads.part_of(path)
        while process.poll() is None and not (part.exists() and part.stat().st_size >= size):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        parts.append(part.stat().st_size)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert path.read_bytes() == content
    assert parts == sorted(parts)
    assert all(asked for _, asked in server.requests[1:])  # each went on, none began again
