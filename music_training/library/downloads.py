"""Files fetched over HTTP whole and verified, or one clear error: never a wrong file.

A download grows as ``<name>.part`` beside its target, with ``<name>.part.json`` saying which version of which address
it is a part of. It goes on from there by ``Range`` and ``If-Range`` and appends only to a 206 whose ``Content-Range``
begins where the part ends; on a 200 it starts again. When all bytes are there the digest decides, the file is flushed
and takes its name, and the folder's ``.downloads.jsonl`` remembers size, mtime and digest, so that the next run costs
one ``stat`` a file.
"""

from __future__ import annotations

import contextlib
import email.utils
import errno
import fcntl
import hashlib
import json
import os
import random
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import urllib3

from .. import config, files
from ..errors import UserError
from ..progress import Progress

BLOCK = 1 << 20  # bytes
RECEIPTS = ".downloads.jsonl"
TRY_AGAIN = {408, 425, 429, 500, 502, 503, 504}
HEADERS = {"User-Agent": "music-training", "Accept-Encoding": "identity"}
POOL = urllib3.PoolManager(maxsize=16, retries=False)


class Policy(config.Settings):
    """How patient a download is; times in seconds.

    ``tries`` failures in a row without 1 MiB of progress end with an address; ``stall`` is the longest silence, and
    also the longest time at under 1 KiB/s; waits grow as ``backoff * 2**n`` with jitter up to ``longest_wait``, which
    also bounds what a server may ask for by ``Retry-After``.
    """

    tries: int = 8
    stall: float = 60.0
    backoff: float = 1.0
    longest_wait: float = 300.0


class DownloadError(UserError):
    """A file could not be had; the message says from where and why."""


class Fault(Exception):
    """One failed try; ``wait`` is what the server asked for (s), ``final`` that this address is not worth another."""

    def __init__(self, message: str, wait: float = 0.0, final: bool = False):
        super().__init__(message)
        self.wait, self.final = wait, final


@dataclass(frozen=True)
class Wanted:
    """A file to fetch: its addresses in order, where it goes, and what is known of it (bytes, hex digests)."""

    urls: tuple[str, ...]
    path: Path
    size: int | None = None
    digests: Mapping[str, str] = field(default_factory=dict)


def fetch(
    url: str,
    path: Path | str,
    *,
    sha1: str | None = None,
    sha256: str | None = None,
    md5: str | None = None,
    size: int | None = None,
    mirrors: Iterable[str] = (),
    verify: bool = False,
    policy: Policy | None = None,
) -> Path:
    """Fetch ``url`` (else one of ``mirrors``, in order) to ``path``, and show rate and ETA; nothing is done for a file that is there.

    ``verify`` reads an existing file in full instead of trusting its recorded size and mtime. Raises DownloadError.
    """
    digests = {name: value for name, value in (("sha1", sha1), ("sha256", sha256), ("md5", md5)) if value}
    wanted = Wanted((url, *mirrors), Path(path), size, digests)
    fetch_all([wanted], label=Path(path).name, workers=1, verify=verify, policy=policy)
    return Path(path)


def fetch_all(
    wanted: Iterable[Wanted],
    *,
    label: str = "download",
    workers: int = 4,
    verify: bool = False,
    policy: Policy | None = None,
    tolerate: bool = False,
) -> dict[Path, str]:
    """Fetch several files at a time; returns the faults (path to message), which is empty unless ``tolerate``.

    Without ``tolerate`` a DownloadError names the first files that could not be had, after all others were fetched.
    """
    wanted = list(wanted)
    receipts = {folder: Receipts(folder) for folder in {item.path.parent for item in wanted}}
    todo = [item for item in wanted if not present(item, receipts[item.path.parent], verify)]
    if not todo:
        return {}
    needed = sum(item.size or 0 for item in todo) - sum(_size(part_of(item.path)) for item in todo if item.size)
    refuse_if_full(todo[0].path.parent, needed)
    faults: dict[Path, str] = {}
    total = sum(item.size for item in todo) / 1e6 if all(item.size for item in todo) else None
    with Progress(total, label, "MB") as shown:
        meter = _Meter(shown)

        def work(item: Wanted) -> None:
            try:
                _Transfer(item, receipts[item.path.parent], policy or Policy(), meter, verify).run()
            except DownloadError as error:
                faults[item.path] = str(error)

        if len(todo) == 1 or workers <= 1:
            for item in todo:
                work(item)
        else:
            with ThreadPoolExecutor(workers) as pool:
                running = [pool.submit(work, item) for item in todo]
                try:
                    for done in as_completed(running):
                        done.result()
                except BaseException:  # Ctrl-C, a full disk: the downloads under way end at their next block
                    meter.stopped = True
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
    if faults and not tolerate:
        few = [faults[path] for path in sorted(faults)[:3]]
        more = f" (and {len(faults) - len(few)} more files)" if len(faults) > len(few) else ""
        raise DownloadError("; ".join(few) + more)
    return faults


def refuse_if_full(folder: Path, needed: int) -> None:
    """UserError where the disk of ``folder`` has not ``needed`` bytes free."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder}: {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free; free some space or give another folder"
        )


def part_of(path: Path) -> Path:
    """Where an unfinished download lies."""
    return path.with_name(f"{path.name}.part")


# What is already there


class Receipts:
    """The journal of a folder's downloads: one JSON line a file, the last one counts; a torn line is ignored."""

    _guard = threading.Lock()

    def __init__(self, folder: Path):
        self._path = folder / RECEIPTS
        self._rows: dict[str, dict[str, Any]] = {}
        with contextlib.suppress(FileNotFoundError):
            for line in self._path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(json.JSONDecodeError, KeyError, TypeError):
                    row = json.loads(line)
                    self._rows[row["name"]] = row

    def get(self, name: str) -> dict[str, Any] | None:
        """What is recorded of a file."""
        return self._rows.get(name)

    def record(self, path: Path, digests: Mapping[str, str]) -> None:
        """Append what ``path`` is now."""
        status = path.stat()
        row = {"name": path.name, "size": status.st_size, "mtime_ns": status.st_mtime_ns, **digests}
        with self._guard, open(self._path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
            self._rows[path.name] = row


def present(wanted: Wanted, receipts: Receipts, verify: bool = False) -> bool:
    """Whether the file is there and right: by its receipt where size and mtime agree, else (or to ``verify``) by its digest."""
    try:
        status = wanted.path.stat()
    except FileNotFoundError:
        return False
    known = receipts.get(wanted.path.name) or {}
    if wanted.size is not None and status.st_size != wanted.size:
        return False
    digests = {**{name: known[name] for name in ("sha1", "sha256", "md5") if name in known}, **_lower(wanted.digests)}
    if not digests:
        return False  # nothing says what this file should be
    same = known.get("size") == status.st_size and known.get("mtime_ns") == status.st_mtime_ns
    if same and not verify and all(known.get(name) == value for name, value in digests.items()):
        return True
    if _digests(wanted.path, digests) != digests:
        return False
    receipts.record(wanted.path, digests)
    return True


def digest_of(path: Path, name: str) -> str:
    """The digest (sha1, sha256, md5) of a file, as hex."""
    return _digests(path, [name])[name]


def _digests(path: Path, names: Iterable[str]) -> dict[str, str]:
    states = {name: hashlib.new(name, usedforsecurity=False) for name in names}
    with open(path, "rb") as stream:
        _feed(states, stream)
    return {name: state.hexdigest() for name, state in states.items()}


def _feed(states: Mapping[str, Any], stream: BinaryIO) -> int:
    count = 0
    while block := stream.read(BLOCK):
        for state in states.values():
            state.update(block)
        count += len(block)
    return count


def _lower(digests: Mapping[str, str]) -> dict[str, str]:
    return {name: value.lower() for name, value in digests.items()}


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


# Requests


@contextlib.contextmanager
def request(url: str, headers: Mapping[str, str], policy: Policy) -> Iterator[urllib3.BaseHTTPResponse]:
    """Open ``url`` for streaming; whatever goes wrong in the block is raised as a Fault. Status 200, 206 and 416 pass."""
    try:
        response = POOL.request(
            "GET",
            url,
            headers={**HEADERS, **headers},
            preload_content=False,
            decode_content=False,
            timeout=urllib3.Timeout(connect=min(20.0, policy.stall), read=policy.stall),
            retries=urllib3.Retry(total=None, connect=0, read=0, redirect=10, status=0, other=0, raise_on_status=False),
        )
    except (urllib3.exceptions.LocationValueError, urllib3.exceptions.URLSchemeUnknown) as error:
        raise Fault(f"not an address: {error}", final=True) from None
    except urllib3.exceptions.HTTPError as error:
        raise Fault(_plain(error)) from None
    whole = False
    try:
        if response.status in TRY_AGAIN:
            raise Fault(f"HTTP {response.status}", wait=_retry_after(response.headers.get("Retry-After")))
        if response.status not in (200, 206, 416):
            raise Fault(f"HTTP {response.status} {response.reason or ''}".strip(), final=True)
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise Fault("the server sends a compressed form of the file that was not asked for")
        yield response
        whole = True
    except urllib3.exceptions.HTTPError as error:
        raise Fault(_plain(error)) from None
    finally:
        if whole and response.status != 416:
            response.release_conn()
        else:
            response.close()


def patiently(urls: Iterable[str], attempt: Callable[[str], None], reached: Callable[[], int], policy: Policy, what: str) -> None:
    """Call ``attempt(url)`` until it returns: again after a Fault, with waits, then with the next address.

    ``reached()`` is how many bytes are there: 1 MiB more than ever before sets the count of failures back to none.
    """
    said = []
    for url in urls:
        failures, high, fault = 0, reached(), None
        while failures < policy.tries:
            try:
                return attempt(url)
            except Fault as raised:
                fault = raised
            failures = 1 if reached() >= high + (1 << 20) else failures + 1
            high = max(high, reached())
            if fault.final:
                break
            if failures < policy.tries:
                wait = fault.wait or policy.backoff * 2 ** (failures - 1) * random.uniform(0.5, 1.0)
                time.sleep(min(wait, policy.longest_wait))
        said.append(f"{url}: {fault}" + (f" ({failures} tries)" if failures > 1 else ""))
    raise DownloadError(f"{what} cannot be fetched: " + "; ".join(said) + "; run the same command again to continue")


def _retry_after(value: str | None) -> float:
    if not value:
        return 0.0
    if value.strip().isdigit():
        return float(value)
    with contextlib.suppress(TypeError, ValueError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0


def _plain(error: Exception) -> str:
    text = str(getattr(error, "reason", None) or error)
    return re.sub(r"<[^<>]* object at 0x[0-9a-f]+>:? ?", "", text).strip() or type(error).__name__


def content_range(value: str | None) -> tuple[int, int, int] | None:
    """``bytes 5-9/10`` as (5, 9, 10); None where it does not say all three."""
    match = re.fullmatch(r"\s*bytes\s+(\d+)-(\d+)/(\d+)\s*", value or "")
    return tuple(int(part) for part in match.groups()) if match else None


def validator(headers: Mapping[str, str]) -> str | None:
    """What ``If-Range`` may carry: a strong ETag, else the date of the last change."""
    tag = headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")


class _Meter:
    """Adds up the bytes of several downloads for one progress line."""

    def __init__(self, shown: Progress):
        self._shown, self._guard, self._bytes = shown, threading.Lock(), 0
        self.stopped = False

    def __call__(self, count: int) -> None:
        if self.stopped:
            raise InterruptedError("another download ended all of them")
        with self._guard:
            self._bytes += count
            self._shown.to(round(self._bytes / 1e6, 1))


# One download


class _Transfer:
    """The state of one download: the open part, how far it is, and the digest so far."""

    def __init__(self, wanted: Wanted, receipts: Receipts, policy: Policy, meter: _Meter, verify: bool):
        self.wanted, self.receipts, self.policy, self.meter, self.verify = wanted, receipts, policy, meter, verify
        self.digests = _lower(wanted.digests)
        self.part = part_of(wanted.path)
        self.note = self.part.with_name(f"{self.part.name}.json")
        self.offset, self.wrong = 0, 0
        self.known: dict[str, Any] = {}

    def run(self) -> None:
        self.part.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.part) as self.stream:
            if self.wanted.path.exists() and present(self.wanted, Receipts(self.part.parent), self.verify):  # another process was faster
                self._clear()
                return
            self._resume()
            patiently(self.wanted.urls, self._attempt, lambda: self.offset, self.policy, self.wanted.path.name)
            self.stream.flush()
            os.fsync(self.stream.fileno())
            os.replace(self.part, self.wanted.path)
            self.receipts.record(self.wanted.path, {name: state.hexdigest() for name, state in self.states.items()})
            self._clear()

    def _clear(self) -> None:
        self.note.unlink(missing_ok=True)
        self.part.unlink(missing_ok=True)

    def _resume(self) -> None:
        """Take up the part that an earlier run left."""
        self.known = files.read_json(self.note) or {}
        self._reset_states()
        self.stream.seek(0)
        self.offset = _feed(self.states, self.stream) if self.known else 0
        if not self.known:
            self.stream.truncate(0)
        self.meter(self.offset)

    def _reset_states(self) -> None:
        self.states = {name: hashlib.new(name, usedforsecurity=False) for name in self.digests or ("sha256",)}

    def _restart(self, known: Mapping[str, Any]) -> None:
        """Throw the part away and note what the new one will be a part of."""
        self.stream.seek(0)
        self.stream.truncate(0)
        self.meter(-self.offset)
        self.offset = 0
        self._reset_states()
        self.known = dict(known)
        files.write_json(self.note, self.known)

    def _attempt(self, url: str) -> None:
        if not self._whole():
            self._receive(url)
        if not self._whole():
            raise Fault(f"the connection ended after {self.offset} of {self.known.get('size') or 'unknown'} bytes")
        found = {name: self.states[name].hexdigest() for name in self.digests}
        if found != self.digests:
            self.wrong += 1
            name = next(name for name in found if found[name] != self.digests[name])
            self._restart({})
            last = self.wrong >= 3  # a resumed part may be to blame, or one bad transfer; not three
            self.wrong = 0 if last else self.wrong
            raise Fault(f"{name} is {found[name]}, expected {self.digests[name]}", final=last)

    def _whole(self) -> bool:
        return self.offset > 0 and self.offset == self.known.get("size") or bool(self.known.get("ended"))

    def _receive(self, url: str) -> None:
        headers = {}
        if self.offset and self._may_resume(url):
            headers["Range"] = f"bytes={self.offset}-"
            if self.known.get("url") == url and self.known.get("validator"):
                headers["If-Range"] = self.known["validator"]
        elif self.offset:
            self._restart({})
        with request(url, headers, self.policy) as response:
            if response.status == 416:
                self._restart({})
                raise Fault("the server does not have the rest of the file (HTTP 416)")
            if response.status == 206:
                self._check_continuation(response, url)
            else:
                self._begin(response, url)
            self._copy(response)
            if self.known.get("size") is None and not self.digests:  # chunked, and properly ended
                self.known["ended"] = True

    def _may_resume(self, url: str) -> bool:
        """Without a digest only the server can vouch that the rest belongs to the part."""
        return bool(self.digests) or (self.known.get("url") == url and bool(self.known.get("validator")))

    def _begin(self, response: urllib3.BaseHTTPResponse, url: str) -> None:
        length = response.headers.get("Content-Length")
        size = int(length) if length and length.isdigit() else None
        if self.wanted.size is not None and size is not None and size != self.wanted.size:
            raise Fault(f"the server offers {size} bytes, expected {self.wanted.size}")
        if size is None and not response.chunked and self.wanted.size is None and not self.digests:
            raise Fault("the server states no length and no checksum is known: a cut file could not be told from a whole one", final=True)
        size = self.wanted.size if size is None else size
        refuse_if_full(self.part.parent, size or 0)
        self._restart({"url": url, "validator": validator(response.headers), "size": size})

    def _check_continuation(self, response: urllib3.BaseHTTPResponse, url: str) -> None:
        span, size = content_range(response.headers.get("Content-Range")), self.known.get("size")
        fits = span is not None and span[0] == self.offset > 0 and span[1] == span[2] - 1 and size in (None, span[2])
        now = validator(response.headers)
        if fits and self.known.get("url") == url and now and self.known.get("validator") and now != self.known["validator"]:
            fits = False
        if not fits:
            self._restart({})
            raise Fault(f"the server's answer does not continue the file (Content-Range {response.headers.get('Content-Range')!r})")
        refuse_if_full(self.part.parent, span[2] - self.offset)
        if size is None:
            self.known["size"] = span[2]

    def _copy(self, response: urllib3.BaseHTTPResponse) -> None:
        window, since = 0, time.monotonic()
        while block := response.read1(BLOCK):
            try:
                self.stream.write(block)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise UserError(f"{self.part}: the disk is full; free some space and run the same command again") from None
                raise
            for state in self.states.values():
                state.update(block)
            self.offset += len(block)
            self.meter(len(block))
            window += len(block)
            if (now := time.monotonic()) - since > self.policy.stall:
                if window < 1024 * self.policy.stall:
                    raise Fault(f"only {window} bytes came in {now - since:.0f} s")
                window, since = 0, now
        if self.known.get("size") is None and self.digests:  # a length was never stated: the digest is the judge
            self.known["ended"] = True


@contextlib.contextmanager
def _locked(part: Path) -> Iterator[BinaryIO]:
    """Open the part for one process (or thread) at a time; it may have taken its final name while this one waited."""
    while True:
        with open(part, "a+b", buffering=0) as stream:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(stream, fcntl.LOCK_EX)
            if part.exists() and os.fstat(stream.fileno()).st_ino == part.stat().st_ino:
                yield stream
                return
