"""Where outputs lie, and how files get there whole: atomic writes, fingerprints, a lock.

A reader never sees half a file: content goes to a temporary name beside its target (``.<name>.<pid>.tmp``), is
flushed to the disk, and takes its place by ``os.replace``. Temporary names start with a dot and end in ``.tmp``; no
reader of this project takes one for a result, and :func:`sweep` removes what a killed process left.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent


def outputs_root() -> Path:
    """The folder under which everything is written: ``$MUSIC_OUTPUTS``, else ``outputs/`` of the repository."""
    return Path(os.environ.get("MUSIC_OUTPUTS") or REPOSITORY / "outputs").expanduser().resolve()


def relative(path: Path | str) -> str:
    """A path as stamps and manifests hold it: relative to the outputs root where it lies under it, else absolute."""
    path, root = Path(os.path.abspath(path)), outputs_root()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def absolute(path: Path | str) -> Path:
    """The inverse of :func:`relative`."""
    return outputs_root() / path


# Atomic writes


@contextlib.contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a temporary file or folder name; on success it replaces ``path``, on an error it is removed.

    The block creates the file (or a folder) under the yielded name. An existing *folder* at ``path`` is replaced too.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    _remove(temporary)
    try:
        yield temporary
        if temporary.is_dir():
            _remove(path)
        else:
            _fsync(temporary)
        os.replace(temporary, path)
        _fsync(path.parent)
    except BaseException:
        _remove(temporary)
        raise


@contextlib.contextmanager
def full_disk_is_told(path: Path | str) -> Iterator[None]:
    """Raise OSError (no space left) where a library that writes ``path`` says so in words of its own, as torch and safetensors do."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        with contextlib.suppress(OSError):
            if cause is None and shutil.disk_usage(Path(path).parent).free < 2**20:
                cause = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        raise cause or error from None


def write_text(path: Path | str, text: str) -> Path:
    """Write text atomically; returns the path."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: Path | str, content: Any) -> Path:
    """Write indented JSON atomically; returns the path."""
    return write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Parse a JSON file; None where it is missing or was not written by :func:`write_json` (unreadable)."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None


def sweep(folder: Path | str) -> int:
    """Remove temporary files and folders left directly in ``folder`` by killed processes; returns how many."""
    left = list(Path(folder).glob(".*.tmp"))
    for path in left:
        _remove(path)
    return len(left)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Fingerprints


def digest(path: Path | str) -> str:
    """SHA-256 of a file's content, as hex."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(stream)


def _digest(stream) -> str:  # Python 3.10 has no hashlib.file_digest
    state = hashlib.sha256()
    while block := stream.read(1 << 20):
        state.update(block)
    return state.hexdigest()


def fingerprint(path: Path | str) -> dict[str, Any] | None:
    """What identifies a file or a folder; None where there is nothing.

    A file: size, mtime and SHA-256. A folder: the digest of its listing (relative path and size of every file below
    it; outside the outputs root, where others write, the mtime too), without reading the files: meant for a person's
    own folder of audio, not for one with 300,000 segments.
    """
    path = Path(path)
    if path.is_file():
        status = path.stat()
        return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": digest(path)}
    if path.is_dir():
        return {"listing": hashlib.sha256("\n".join(_listing(path)).encode("utf-8", "surrogateescape")).hexdigest()}
    return None


def names_fingerprint(folder: Path | str) -> dict[str, Any] | None:
    """What identifies a large folder of written-once files: its mtime and the digest of its names; None without it.

    While the mtime stands, no name in the folder came or went, so that :func:`matches` costs one stat a folder.
    """
    try:
        mtime = os.stat(folder).st_mtime_ns
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return {"names": hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest(), "mtime_ns": mtime}


def matches(path: Path | str, known: dict[str, Any] | None) -> bool:
    """Whether what lies at ``path`` is what ``known`` (a fingerprint) says.

    Size and mtime suffice where they agree; after a move that changed the mtime the content decides.
    """
    path = Path(path)
    if known is not None and "names" in known:
        same = path.is_dir() and path.stat().st_mtime_ns == known["mtime_ns"]
        return same or (names_fingerprint(path) or {}).get("names") == known["names"]
    if known is None or "listing" in known or not path.is_file():
        return known == fingerprint(path)
    status = path.stat()
    if status.st_size != known["size"]:
        return False
    return status.st_mtime_ns == known["mtime_ns"] or digest(path) == known["sha256"]


def _listing(folder: Path) -> list[str]:
    ours = folder.resolve().is_relative_to(outputs_root())  # may have been moved by a tool that sets new times
    lines = []
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(root, name)
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(path)
                lines.append(f"{os.path.relpath(path, folder)}\t{status.st_size}\t{0 if ours else status.st_mtime_ns}")
    return lines


# Lock


@contextlib.contextmanager
def lock(path: Path | str, what: str, wait: float = 0.0) -> Iterator[None]:
    """Hold an exclusive lock file, or raise UserError naming the holder after ``wait`` seconds.

    The lock is the kernel's (``fcntl.lockf``): it goes with its process however that ends, and is not inherited by
    forked workers, so a dead holder never has to be cleaned up after. Nothing is written to the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait
    with open(path, "a") as stream:
        while True:
            try:
                fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except (BlockingIOError, PermissionError):
                if time.monotonic() >= deadline:
                    raise UserError(f"{what} is already running{_holder(stream)}; wait for it or stop it, then run again") from None
                time.sleep(0.1)
        yield


def _holder(stream) -> str:
    """The process that holds a lock, as the kernel tells it (a holder on another machine has no number here)."""
    layout = "hhqqi"  # struct flock: type, whence, start, length, process
    asked = struct.pack(layout, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    process = struct.unpack(layout, fcntl.fcntl(stream, fcntl.F_GETLK, asked))[-1]
    return f" as process {process}" if process > 0 else " elsewhere"
