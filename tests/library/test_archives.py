"""Archives: unpacked whole, resumed, and nothing outside the target."""

import io
import os
import random
import signal
import stat
import subprocess
import sys
import tarfile
import time
import zipfile

import pytest
from fault_server import FaultServer

from music_training.errors import UserError
from music_training.library import archives, downloads, remote


def make_zip(path, members, compression=zipfile.ZIP_BZIP2):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def make_tar(path, *infos, mode="w"):
    with tarfile.open(path, mode) as archive:
        for info, content in infos:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def member(name, kind=tarfile.REGTYPE, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".extracted" not in path.parts
    }


MEMBERS = {f"set/{n % 10:03d}/{n:06d}.mp3": random.Random(n).randbytes(n * 7) for n in range(60)}


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_all_members_arrive_and_a_second_run_does_nothing(tmp_path, kind):
    archive = tmp_path / f"a.{kind}"
    if kind == "zip":
        make_zip(archive, MEMBERS)
    else:
        folder = (member("set", tarfile.DIRTYPE), b"")
        make_tar(archive, folder, *((member(name), content) for name, content in MEMBERS.items()), mode="w:gz" if "gz" in kind else "w")
    got = archives.extract(archive, tmp_path / "got")
    assert tree(tmp_path / "got") == MEMBERS
    assert (got.files, got.bytes) == (60, sum(map(len, MEMBERS.values())))
    archive.unlink()
    assert archives.extract(archive, tmp_path / "got") == got  # finished: the archive is not needed


def test_a_choice_has_its_own_record(tmp_path):
    archive = make_zip(tmp_path / "a.zip", MEMBERS)
    assert archives.extract(archive, tmp_path / "got", choose=lambda name: "/001/" in name, key="one").files == 6
    assert archives.extract(archive, tmp_path / "got", choose=lambda name: "/002/" in name, key="two").files == 6
    assert len(tree(tmp_path / "got")) == 12


def test_extraction_resumes_by_member(tmp_path, monkeypatch):
    archive = make_zip(tmp_path / "a.zip", MEMBERS)
    write, written = archives._write, []

    def stop_after_20(opened, entry, folder, name):
        if len(written) == 20:
            raise KeyboardInterrupt
        write(opened, entry, folder, name)
        written.append(entry.name)

    monkeypatch.setattr(archives, "_write", stop_after_20)
    with pytest.raises(KeyboardInterrupt):
        archives.extract(archive, tmp_path / "got")
    monkeypatch.setattr(archives, "_write", lambda *given: (written.append(given[1].name), write(*given)))
    archives.extract(archive, tmp_path / "got")
    assert len(written) == len(set(written)) == 60
    assert tree(tmp_path / "got") == MEMBERS


def test_consuming_needs_no_second_copy_and_survives_a_stop(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "CUT", 2000)
    archive = make_zip(tmp_path / "a.zip", MEMBERS)
    size, write, count, peak = archive.stat().st_size, archives._write, [0], []

    def watched(opened, entry, folder, name):
        count[0] += 1
        if count[0] == 30:
            raise KeyboardInterrupt
        write(opened, entry, folder, name)
        peak.append(archive.stat().st_size + sum(path.stat().st_size for path in folder.rglob("*.mp3")))

    monkeypatch.setattr(archives, "_write", watched)
    with pytest.raises(KeyboardInterrupt):
        archives.extract(archive, tmp_path / "got", consume=True)
    assert archive.stat().st_size < size
    wanted = downloads.Wanted(("http://127.0.0.1:9/never-asked",), archive, digests={"sha1": "0" * 40})
    archives.fetch_and_extract(wanted, tmp_path / "got", consume=True)
    assert tree(tmp_path / "got") == MEMBERS
    assert not archive.exists()
    assert max(peak) < size + 6000


def test_another_choice_of_a_half_consumed_archive_fetches_it_again(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "CUT", 2000)
    (tmp_path / "served").mkdir()
    make_zip(tmp_path / "served" / "a.zip", MEMBERS)
    write = archives._write

    def stopped(opened, entry, folder, name):
        write(opened, entry, folder, name)
        if "000030" in entry.name:
            raise KeyboardInterrupt

    with FaultServer(tmp_path / "served") as server:
        wanted = downloads.Wanted(
            (server.url + "a.zip",), tmp_path / "a.zip", digests={"sha1": downloads.digest_of(tmp_path / "served" / "a.zip", "sha1")}
        )
        even = lambda name: int(name[-5]) % 2 == 0  # noqa: E731
        monkeypatch.setattr(archives, "_write", stopped)
        with pytest.raises(KeyboardInterrupt):
            archives.fetch_and_extract(wanted, tmp_path / "got", choose=even, key="even", consume=True)
        monkeypatch.setattr(archives, "_write", write)
        archives.fetch_and_extract(wanted, tmp_path / "got", consume=True)
        assert tree(tmp_path / "got") == MEMBERS and len(server.requests) == 2


def zip_with(path, name, content=b"x", mode=stat.S_IFREG | 0o644):
    info = zipfile.ZipInfo("placeholder")
    info.filename = info.orig_filename = name
    info.external_attr = mode << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("fine.txt", "fine")
        archive.writestr(info, content)
    return path


EVIL_TARS = {
    "absolute": (member("/etc/evil"), "absolute"),
    "climbs": (member("a/../../evil"), "leads out"),
    "symlink": (member("evil", tarfile.SYMTYPE, "/etc/passwd"), "link to '/etc/passwd'"),
    "symlink_up": (member("a/evil", tarfile.SYMTYPE, "../../evil"), "link to"),
    "hardlink": (member("evil", tarfile.LNKTYPE, "../evil"), "link to"),
    "device": (member("evil", tarfile.CHRTYPE), "neither a file nor a folder"),
    "fifo": (member("evil", tarfile.FIFOTYPE), "neither a file nor a folder"),
}


@pytest.mark.parametrize("case", EVIL_TARS)
def test_evil_tars_are_refused_by_name(tmp_path, case):
    info, why = EVIL_TARS[case]
    archive = make_tar(tmp_path / "a.tar", (member("fine.txt"), b"fine"), (info, b""))
    with pytest.raises(UserError, match=f"a.tar: member '.*evil' is refused: .*{why}"):
        archives.extract(archive, tmp_path / "got" / "deep")
    assert tree(tmp_path / "got") == {}
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("name", ["/etc/evil", "../evil", "a/../../evil", "C:\\evil", "..\\evil"])
def test_evil_zip_names_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="evil' is refused"):
        archives.extract(zip_with(tmp_path / "a.zip", name), tmp_path / "got")
    assert tree(tmp_path / "got") == {}


def test_evil_zip_links_and_devices_are_refused(tmp_path):
    with pytest.raises(UserError, match="'evil' is refused: it is a link to '/etc/passwd'"):
        archives.extract(zip_with(tmp_path / "a.zip", "evil", b"/etc/passwd", stat.S_IFLNK | 0o777), tmp_path / "got")
    with pytest.raises(UserError, match="'evil' is refused: it is neither"):
        archives.extract(zip_with(tmp_path / "b.zip", "evil", b"", stat.S_IFCHR | 0o666), tmp_path / "got")


def test_duplicates_and_files_as_folders_are_refused(tmp_path):
    twice = make_tar(tmp_path / "a.tar", (member("a"), b"1"), (member("./a"), b"2"))
    with pytest.raises(UserError, match="'./a' is refused: its name stands twice"):
        archives.extract(twice, tmp_path / "got")
    with pytest.warns(UserWarning), zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("a", "1")
        archive.writestr("a", "2")
    with pytest.raises(UserError, match="'a' is refused: its name stands twice"):
        archives.extract(tmp_path / "b.zip", tmp_path / "got")
    with pytest.raises(UserError, match="'a/b' is refused: a file stands where its folder should be"):
        archives.extract(make_tar(tmp_path / "c.tar", (member("a"), b"1"), (member("a/b"), b"2")), tmp_path / "got")


def test_a_zip_bomb_is_refused_before_it_goes_off(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_BZIP2) as archive, archive.open("zeros.bin", "w") as target:
        for _ in range(300):
            target.write(bytes(1 << 20))
    assert (tmp_path / "bomb.zip").stat().st_size < 10_000
    with pytest.raises(UserError, match="'zeros.bin' is refused: the archive expands to more than 268435456 bytes"):
        archives.extract(tmp_path / "bomb.zip", tmp_path / "got")


def test_a_member_larger_than_its_header_says_is_refused(tmp_path):
    archive = make_zip(tmp_path / "a.zip", {"a.bin": b"z" * 5000}, zipfile.ZIP_DEFLATED)
    content = bytearray(archive.read_bytes())
    for mark, place in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = content.index(mark) + place
        content[at : at + 4] = (100).to_bytes(4, "little")
    archive.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.bin.*fetch the archive again"):
        archives.extract(archive, tmp_path / "got")
    assert tree(tmp_path / "got") == {}


def test_links_inside_become_copies(tmp_path):
    archive = make_tar(
        tmp_path / "a.tar",
        (member("d/a"), b"content"),
        (member("d/b", tarfile.LNKTYPE, "d/a"), b""),
        (member("e/c", tarfile.SYMTYPE, "../d/a"), b""),
    )
    archives.extract(archive, tmp_path / "got")
    assert tree(tmp_path / "got") == {"d/a": b"content", "d/b": b"content", "e/c": b"content"}
    assert not any(path.is_symlink() for path in (tmp_path / "got").rglob("*"))


def test_a_link_that_lies_in_the_target_is_not_followed(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "got").mkdir()
    (tmp_path / "got" / "d").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="leads out of it"):
        archives.extract(make_zip(tmp_path / "a.zip", {"d/a": "1"}), tmp_path / "got")
    assert list((tmp_path / "outside").iterdir()) == []


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_a_damaged_archive_is_one_error(tmp_path, name):
    path = tmp_path / name
    if name.endswith("zip"):
        make_zip(path, MEMBERS)
    else:
        make_tar(path, *((member(key), content) for key, content in MEMBERS.items()), mode="w:gz")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(UserError, match="fetch (it|the archive) again"):
        archives.extract(path, tmp_path / "got")
    assert all(MEMBERS[key] == value for key, value in tree(tmp_path / "got").items())
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError, match="neither a zip nor a tar"):
        archives.extract(path, tmp_path / "got")


# Members picked out of a remote zip


def listing(members):
    import hashlib

    return "".join(f"{hashlib.sha1(content).hexdigest()}  {name.removeprefix('set/')}\n" for name, content in members.items())


def test_a_few_members_are_picked_without_the_rest(tmp_path):
    (tmp_path / "served").mkdir()
    make_zip(
        tmp_path / "served" / "a.zip", {"set/checksums": listing(MEMBERS), "set/big.bin": random.Random(0).randbytes(3_000_000), **MEMBERS}
    )
    with FaultServer(tmp_path / "served") as server:
        server.plan["a.zip"] = [{"kind": "ok"}, {"kind": "close", "at": 100}, {"kind": "status", "code": 503}]
        policy = downloads.Policy(backoff=0.001)
        chosen = lambda name: "/003/" in name  # noqa: E731
        names = remote.pick(server.url + "a.zip", tmp_path / "got", chosen, checksums="set/checksums", policy=policy)
        assert tree(tmp_path / "got") == {name: content for name, content in MEMBERS.items() if "/003/" in name}
        assert sorted(names) == sorted(tree(tmp_path / "got"))
        before = len(server.requests)
        remote.pick(server.url + "a.zip", tmp_path / "got", lambda name: "/003/" in name, policy=policy)
        assert len(server.requests) - before <= 4  # the directory alone
        server.ranges = False
        with pytest.raises(remote.NoRanges):
            remote.pick(server.url + "a.zip", tmp_path / "got", lambda name: True, policy=policy)


def test_a_picked_member_that_differs_from_the_list_is_refused(tmp_path):
    (tmp_path / "served").mkdir()
    make_zip(tmp_path / "served" / "a.zip", {"set/checksums": listing(MEMBERS), **MEMBERS, "set/003/000013.mp3": b"other"})
    with FaultServer(tmp_path / "served") as server, pytest.raises(downloads.DownloadError, match=r"000013\.mp3: sha1 is"):
        remote.pick(server.url + "a.zip", tmp_path / "got", lambda name: "/003/" in name, checksums="set/checksums")
    assert "set/003/000013.mp3" not in tree(tmp_path / "got")


# Long: many entries, and kills

EXTRACTOR = """
import re, sys
from pathlib import Path
from music_training.library import archives
archives.extract(sys.argv[1], sys.argv[2], consume=len(sys.argv) > 3)
print("peak", re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])  # ru_maxrss would be the parent's
"""


@pytest.mark.long
@pytest.mark.parametrize("consume", [False, True])
def test_ten_thousand_entries_killed_three_times(tmp_path, consume):
    archive = tmp_path / "many.zip"
    content = random.Random(0).randbytes(1 << 20)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_BZIP2) as target:
        for n in range(10_500):
            target.writestr(f"fma_small/{n // 1000:03d}/{n:06d}.mp3", content[n * 7 : n * 7 + 2000 + n % 500])
    command = [sys.executable, "-c", EXTRACTOR, str(archive), str(tmp_path / "got"), *(["consume"] if consume else [])]
    seen = []
    for count in (1000, 4000, 8000):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while process.poll() is None and sum(1 for _ in (tmp_path / "got").glob("*/*/*.mp3")) < count:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        seen.append(sum(1 for _ in (tmp_path / "got").glob("*/*/*.mp3")))
    before = {path: path.stat().st_ino for path in (tmp_path / "got").glob("*/*/*.mp3")}
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    got = tree(tmp_path / "got")
    assert len([name for name in got if name.endswith(".mp3")]) == 10_500
    assert all(got[f"fma_small/{n // 1000:03d}/{n:06d}.mp3"] == content[n * 7 : n * 7 + 2000 + n % 500] for n in range(10_500))
    assert all(path.stat().st_ino == inode for path, inode in before.items())  # members that were there were not written again
    assert seen == sorted(seen)
    inodes = sum(1 for _ in os.scandir(tmp_path / "got" / "fma_small" / "000"))
    assert inodes == 1000  # one inode a member, nothing left of the killed runs
    assert int(done.stdout.split("peak")[-1]) < 200_000  # KiB
