"""Archives unpacked safely: zip and tar, resumed member by member, and never a file outside the target.

All members are looked at before the first is written. A path that is absolute or climbs out, a link that leads out, a
device, a name that stands twice, and more expanded bytes than the limit are refused with the member's name. A member
appears under its name only when it is whole, so a killed run goes on with the next. ``consume`` eats the archive
while it is unpacked (from its end, which is cut off), so that a 93 GiB archive does not need 186 GiB.
"""

from __future__ import annotations

import contextlib
import io
import lzma
import os
import posixpath
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from .. import files
from ..errors import UserError
from ..progress import Progress
from . import downloads

RATIO = 100  # expanded bytes a byte of archive, at most; text and silence reach 30
FLOOR = 1 << 28  # bytes that a small archive may always expand to
SYNC = 1 << 28  # bytes from which an extraction ends with a flush of the disk
CUT = 1 << 28  # bytes between two cuts of an archive that is consumed

DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, ValueError, RuntimeError, OSError)


@dataclass(frozen=True)
class Entry:
    """A member: its name, kind (file, folder, link, other), expanded size, where it lies, and what it links to."""

    name: str
    kind: str
    size: int
    offset: int = 0
    target: str = ""


@dataclass(frozen=True)
class Extracted:
    """What an archive gave: files and bytes (expanded), and the names of the members that were taken."""

    files: int
    bytes: int
    names: list[str]


class Consumed(UserError):
    """An archive that an earlier, unfinished run has shortened lacks a member that is wanted now."""


def extract(
    archive: Path | str,
    folder: Path | str,
    *,
    choose: Callable[[str], bool] | None = None,
    key: str = "all",
    limit: int | None = None,
    consume: bool = False,
    delete: bool = False,
) -> Extracted:
    """Unpack the members whose name ``choose`` takes (all without it) into ``folder``.

    ``key`` names the choice: an extraction that is recorded as finished under the same key is not looked at again.
    ``limit`` bounds the expanded bytes (100 times the archive without it). ``consume`` (zip) shortens the archive as it
    goes and removes it; ``delete`` removes it at the end. UserError names the member that is refused.
    """
    archive, folder = Path(archive), Path(folder)
    if known := finished(archive, folder, key):
        return known
    if not archive.is_file():
        if _index(archive, folder).exists():
            raise Consumed(f"{archive}: consumed, but not unpacked to the end")
        raise UserError(f"{archive}: no such archive")
    folder.mkdir(parents=True, exist_ok=True)
    lock = files.lock(folder / ".extracted" / f"{archive.name}.lock", f"unpacking of {archive.name}", wait=3600)
    with lock, _open(archive, folder) as opened:
        check(opened.entries, archive.name, opened.compressed, limit)
        chosen = [entry for entry in opened.entries if choose is None or choose(entry.name)]
        regular = [entry for entry in chosen if entry.kind in ("file", "link")]
        todo = [entry for entry in regular if size_of(folder / entry.name) != entry.size or entry.kind == "link"]
        there = archive.stat().st_size
        if _index(archive, folder).exists() and any(entry.kind == "file" and entry.offset >= there for entry in todo):
            raise Consumed(f"{archive}: partly consumed for another selection")
        downloads.refuse_if_full(folder, sum(entry.size for entry in todo))
        for entry in chosen:
            if entry.kind == "folder":
                _inside(folder, entry.name, archive.name).mkdir(parents=True, exist_ok=True)
        if consume and opened.seekable:
            todo.sort(key=lambda entry: -entry.offset)
        todo.sort(key=lambda entry: entry.kind == "link")
        cut = opened.end
        with Progress(sum(entry.size for entry in todo) / 1e6, f"unpacking {archive.name}", "MB") as shown:
            for entry in todo:
                _write(opened, entry, folder, archive.name)
                shown.update(entry.size / 1e6)
                if consume and opened.seekable and entry.kind == "file" and cut - entry.offset >= CUT:
                    opened.cut(cut := entry.offset)
        result = Extracted(len(regular), sum(entry.size for entry in regular), [entry.name for entry in regular])
        if sum(entry.size for entry in todo) > SYNC:  # so much may still be in memory only when the record is written
            os.sync()
        files.write_json(_receipt(archive, folder, key), asdict(result))
    if consume or delete:
        archive.unlink(missing_ok=True)
        _index(archive, folder).unlink(missing_ok=True)
    return result


def fetch_and_extract(
    wanted: downloads.Wanted,
    folder: Path | str,
    *,
    choose: Callable[[str], bool] | None = None,
    key: str = "all",
    consume: bool = False,
    delete: bool = False,
    verify: bool = False,
    policy: downloads.Policy | None = None,
) -> Extracted:
    """Fetch an archive and unpack it; one that was finished, or is half consumed, is not fetched again."""
    folder = Path(folder)
    if known := finished(wanted.path, folder, key):
        return known
    if _index(wanted.path, folder).exists():
        try:
            return extract(wanted.path, folder, choose=choose, key=key, consume=consume, delete=delete)
        except Consumed as error:
            print(f"{error}; it is fetched again", flush=True)
            wanted.path.unlink(missing_ok=True)
            _index(wanted.path, folder).unlink()
    downloads.fetch_all([wanted], label=wanted.path.name, verify=verify, policy=policy)
    return extract(wanted.path, folder, choose=choose, key=key, consume=consume, delete=delete)


def finished(archive: Path, folder: Path, key: str = "all") -> Extracted | None:
    """What an earlier, finished extraction under this key gave; None where there was none."""
    known = files.read_json(_receipt(Path(archive), Path(folder), key))
    return Extracted(**known) if known else None


def _receipt(archive: Path, folder: Path, key: str) -> Path:
    return folder / ".extracted" / f"{archive.name}.{key}.json"


def _index(archive: Path, folder: Path) -> Path:
    return folder / ".extracted" / f"{archive.name}.tail"


def size_of(path: Path) -> int | None:
    """The size of a regular file (bytes), None where there is none."""
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


# What is refused


def check(entries: Iterable[Entry], name: str, compressed: int, limit: int | None = None) -> None:
    """Refuse an archive with a member that is not safe to unpack; UserError names it."""
    limit = max(FLOOR, RATIO * compressed) if limit is None else limit
    seen: dict[str, str] = {}
    total = 0
    for entry in entries:
        plain = posixpath.normpath(entry.name)
        if not entry.name or "\0" in entry.name or entry.name.startswith(("/", "\\")) or entry.name[1:3] in (":\\", ":/"):
            raise _refused(name, entry, "its path is absolute")
        if plain == ".." or plain.startswith("../") or ".." in entry.name.replace("\\", "/").split("/"):
            raise _refused(name, entry, "its path leads out of the target folder")
        if entry.kind == "other":
            raise _refused(name, entry, "it is neither a file nor a folder")
        if entry.kind == "link" and seen.get(posixpath.normpath(entry.target)) != "file":
            raise _refused(name, entry, f"it is a link to {entry.target!r}, which is no earlier file of the archive")
        if plain in seen and not (entry.kind == seen[plain] == "folder"):
            raise _refused(name, entry, "its name stands twice")
        parents = plain.split("/")[:-1]
        for depth in range(1, len(parents) + 1):
            if seen.setdefault("/".join(parents[:depth]), "folder") != "folder":
                raise _refused(name, entry, "a file stands where its folder should be")
        seen[plain] = "file" if entry.kind == "link" else entry.kind
        total += entry.size
        if total > limit:
            raise _refused(name, entry, f"the archive expands to more than {limit} bytes")


def _refused(archive: str, entry: Entry, why: str) -> UserError:
    return UserError(f"{archive}: member {entry.name!r} is refused: {why}; nothing was unpacked")


def _inside(folder: Path, name: str, archive: str) -> Path:
    """The path of a member below ``folder``, also where links lie in the folder already."""
    path = folder / name
    if not Path(os.path.realpath(path.parent)).is_relative_to(os.path.realpath(folder)):
        raise UserError(f"{archive}: member {name!r} is refused: a link in {folder} leads out of it")
    return path


def _write(opened: _Opened, entry: Entry, folder: Path, archive: str) -> None:
    """Write one member whole; members are not flushed one by one."""
    path = _inside(folder, entry.name, archive)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with opened.read(entry) if entry.kind == "file" else open(folder / entry.target, "rb") as source, open(temporary, "wb") as target:
            shutil.copyfileobj(source, target, downloads.BLOCK)
            written = target.tell()
        if written != entry.size:
            raise UserError(f"{archive}: member {entry.name!r} has {written} bytes, its header says {entry.size}; fetch the archive again")
        os.replace(temporary, path)
    except DAMAGE as error:
        if isinstance(error, UserError) or getattr(error, "errno", None):
            raise
        raise UserError(f"{archive}: member {entry.name!r} cannot be read ({error}); fetch the archive again") from None
    finally:
        temporary.unlink(missing_ok=True)


# The two kinds of archives


@dataclass
class _Opened:
    """An open archive: its entries, how to read one, and how to cut it short."""

    entries: list[Entry]
    read: Callable[[Entry], contextlib.AbstractContextManager[BinaryIO]]
    compressed: int
    end: int = 0
    seekable: bool = False
    cut: Callable[[int], None] = lambda offset: None


def zip_entries(archive: zipfile.ZipFile) -> list[Entry]:
    """The members of a zip."""
    entries = []
    for info in archive.infolist():
        mode = info.external_attr >> 16
        kind = "folder" if info.is_dir() else "file"
        target = ""
        if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            kind = "link" if stat.S_ISLNK(mode) else "other"
            if kind == "link":
                target = posixpath.join(posixpath.dirname(info.filename), archive.read(info).decode("utf-8", "replace")[:4096])
        entries.append(Entry(info.orig_filename, kind, 0 if kind == "link" else info.file_size, info.header_offset, target))
    return _with_link_sizes(entries)


def _tar_entries(archive: tarfile.TarFile) -> list[Entry]:
    entries = []
    for info in archive:
        kind = "file" if info.isreg() else "folder" if info.isdir() else "link" if info.issym() or info.islnk() else "other"
        target = ""
        if kind == "link":
            target = info.linkname if info.islnk() else posixpath.join(posixpath.dirname(info.name), info.linkname)
        entries.append(Entry(info.name, kind, info.size if kind == "file" else 0, info.offset, target))
    return _with_link_sizes(entries)


def _with_link_sizes(entries: list[Entry]) -> list[Entry]:
    sizes = {posixpath.normpath(entry.name): entry.size for entry in entries if entry.kind == "file"}
    return [
        Entry(entry.name, "link", sizes.get(posixpath.normpath(entry.target), 0), entry.offset, posixpath.normpath(entry.target))
        if entry.kind == "link"
        else entry
        for entry in entries
    ]


@contextlib.contextmanager
def _open(archive: Path, folder: Path) -> Iterator[_Opened]:
    tail = _index(archive, folder)
    try:
        if tail.exists() or zipfile.is_zipfile(archive):
            with open(archive, "rb") as stream, zipfile.ZipFile(_Whole(stream, tail) if tail.exists() else stream) as opened:
                yield _zip(opened, archive, tail)
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as opened:
                entries = _tar_entries(opened)
                while opened.fileobj.read(downloads.BLOCK):  # to the end, where a compressed stream has its checksum
                    pass
                members = {info.name: info for info in opened.getmembers()}
                yield _Opened(entries, lambda entry: opened.extractfile(members[entry.name]), archive.stat().st_size)
        else:
            raise UserError(f"{archive}: neither a zip nor a tar archive; fetch it again")
    except DAMAGE as error:
        if isinstance(error, UserError) or getattr(error, "errno", None):
            raise
        raise UserError(f"{archive}: not a readable archive ({error}); fetch it again") from None


def _zip(opened: zipfile.ZipFile, archive: Path, tail: Path) -> _Opened:
    size = opened.fp.seek(0, io.SEEK_END)

    def cut(offset: int) -> None:
        """Keep the directory of the zip beside, once, then shorten the archive."""
        if not tail.exists():
            with open(archive, "rb") as stream, files.atomic(tail) as temporary:
                stream.seek(opened.start_dir)
                temporary.write_bytes(opened.start_dir.to_bytes(8, "big") + stream.read())
        os.sync()  # what is cut off here has to be safe there
        os.truncate(archive, min(offset, archive.stat().st_size))

    def read(entry: Entry):
        return opened.open(names[entry.name])

    names = {info.orig_filename: info for info in opened.infolist()}
    return _Opened(zip_entries(opened), read, size, opened.start_dir, True, cut)


class ReadOnly(io.RawIOBase):
    """A seekable stream of ``size`` bytes; who derives from it reads at ``position`` in ``readinto`` and moves it on."""

    size = 0
    position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence])
        return self.position


class _Whole(ReadOnly):
    """A zip whose end was cut off, read as if it were whole: the front of the archive, a hole, and the kept directory."""

    def __init__(self, stream: BinaryIO, tail: Path):
        kept = tail.read_bytes()
        self._stream, self._start, self._tail = stream, int.from_bytes(kept[:8], "big"), kept[8:]
        self.size = self._start + len(self._tail)

    def readinto(self, buffer) -> int:
        if self.position >= self._start:
            first = self.position - self._start
            piece = self._tail[first : first + len(buffer)]
        else:
            self._stream.seek(self.position)
            piece = self._stream.read(min(len(buffer), self._start - self.position))
        buffer[: len(piece)] = piece
        self.position += len(piece)
        return len(piece)
