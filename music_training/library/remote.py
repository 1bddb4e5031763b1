"""A file on a server that is read in places: a few members of a 93 GiB zip without the other 93 GiB.

:class:`RemoteFile` is a seekable, read-only file over ``Range`` requests, good enough for ``zipfile``. All answers must
come from one version of the file. A server without ranges raises :class:`NoRanges`; fetch the whole archive then.
"""

from __future__ import annotations

import os
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .. import files
from ..errors import UserError
from ..progress import Progress
from . import archives, downloads

AHEAD = 1 << 16  # bytes asked for where zipfile asks for less
HEADER = 30 + 2048  # bytes: a local header of zip and a generous name


class NoRanges(UserError):
    """The server sends whole files only."""


class RemoteFile(archives.ReadOnly):
    """A file at ``url`` as a seekable stream; ``tail`` (offset, bytes) saves reading the zip directory again."""

    def __init__(self, url: str, policy: downloads.Policy | None = None, like: RemoteFile | None = None):
        self.url, self.policy = url, policy or downloads.Policy()
        self._spans = list(like._spans) if like else []
        self._validator, self.size = (like._validator, like.size) if like else (None, 0)
        self.received = 0
        if like is None:
            self._load(0, 1)

    def load(self, start: int, end: int) -> None:
        """Bring bytes [start, end) here in one request, in place of what was loaded before."""
        self._spans = [self._load(start, min(end, self.size))]

    def keep(self) -> None:
        """Keep what was read so far for the files made ``like`` this one."""
        merged = sorted(self._spans)
        self._spans = [merged[0]] if merged else []
        for start, content in merged[1:]:
            before, known = self._spans[-1]
            if start <= before + len(known):
                self._spans[-1] = (before, known + content[max(0, before + len(known) - start) :])
            else:
                self._spans.append((start, content))

    def readinto(self, buffer) -> int:
        wanted = min(len(buffer), self.size - self.position)
        if wanted <= 0:
            return 0
        start, content = self._span(self.position, wanted)
        piece = content[self.position - start : self.position - start + wanted]
        buffer[: len(piece)] = piece
        self.position += len(piece)
        return len(piece)

    def _span(self, position: int, wanted: int) -> tuple[int, bytes]:
        for start, content in self._spans:
            if start <= position < start + len(content):
                return start, content
        span = self._load(position, min(position + max(wanted, AHEAD), self.size))
        self._spans.append(span)
        return span

    def _load(self, start: int, end: int) -> tuple[int, bytes]:
        content = bytearray()

        def attempt(url: str) -> None:
            first = start + len(content)
            with downloads.request(url, {"Range": f"bytes={first}-{end - 1}"}, self.policy) as response:
                span = downloads.content_range(response.headers.get("Content-Range"))
                if response.status != 206 or span is None:
                    response.close()
                    raise NoRanges(f"{url}: the server does not send parts of files")
                now = downloads.validator(response.headers)
                if span[0] != first or (self.size and (span[2], now) != (self.size, self._validator)):
                    raise downloads.Fault("the file changed while it was being read", final=True)
                self.size, self._validator = span[2], now
                while block := response.read1(downloads.BLOCK):
                    content.extend(block)
            if len(content) != end - start:
                raise downloads.Fault(f"{len(content)} of {end - start} bytes came")

        downloads.patiently([self.url], attempt, lambda: len(content), self.policy, self.url.rsplit("/", 1)[-1])
        self.received += len(content)
        return start, bytes(content)


def pick(
    url: str,
    folder: Path,
    choose: Callable[[str], bool],
    *,
    checksums: str = "",
    digest: str = "sha1",
    workers: int = 4,
    policy: downloads.Policy | None = None,
) -> list[str]:
    """Unpack the members of a remote zip whose name ``choose`` takes into ``folder``; returns their names.

    Members that are there in full are not read again. ``checksums`` names a member with a line of hex digest and path
    (relative to that member's folder) for each file: every file is checked against it, besides zip's own CRC.
    """
    whole = RemoteFile(url, policy)
    with zipfile.ZipFile(whole) as archive:
        archives.check(archives.zip_entries(archive), url, compressed=whole.size)
        listed = _checksums(archive, checksums) if checksums else {}
        infos = [info for info in archive.infolist() if not info.is_dir() and choose(info.filename)]
        whole.keep()
    todo = [info for info in infos if archives.size_of(folder / info.filename) != info.file_size]
    downloads.refuse_if_full(folder, sum(info.file_size for info in todo))
    threads = threading.local()

    def work(info: zipfile.ZipInfo) -> int:
        if not hasattr(threads, "stream"):
            threads.stream = RemoteFile(url, policy, like=whole)
            threads.archive = zipfile.ZipFile(threads.stream)
        threads.stream.load(info.header_offset, info.header_offset + HEADER + info.compress_size)
        with threads.archive.open(info) as source:
            _land(source, folder / info.filename, listed.get(info.filename), digest, f"{url}: {info.filename}")
        return info.file_size

    shown = Progress(sum(info.file_size for info in todo) / 1e6, f"{url.rsplit('/', 1)[-1]}, {len(todo)} members", "MB")
    with shown, ThreadPoolExecutor(workers) as pool:
        for size in pool.map(work, todo):
            shown.update(size / 1e6)
    return [info.filename for info in infos]


def _land(source, path: Path, expected: str | None, digest: str, name: str) -> None:
    with files.atomic(path) as temporary:
        with open(temporary, "wb") as target:
            shutil.copyfileobj(source, target, downloads.BLOCK)
        if expected and (found := downloads.digest_of(temporary, digest)) != expected:
            raise downloads.DownloadError(f"{name}: {digest} is {found}, expected {expected}")


def _checksums(archive: zipfile.ZipFile, member: str) -> dict[str, str]:
    root = os.path.dirname(member)
    return parse_checksums(archive.read(member).decode(), f"{root}/" if root else "")


def parse_checksums(text: str, prefix: str = "") -> dict[str, str]:
    """``<hex>  <path>`` lines as path to digest."""
    pairs: Iterable[list[str]] = (line.split(None, 1) for line in text.splitlines() if line.strip())
    listed: Mapping[str, str] = {prefix + path.strip().lstrip("*"): value.lower() for value, path in pairs}
    return dict(listed)
