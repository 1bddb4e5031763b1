"""Bring what is finished to another place and back: to a repository of the Hugging Face hub, or by rsync.

Only what complete stamps vouch for is taken: the outputs and inputs of their stages, the executed notebooks and, of
the runs among them, all but the training state. ``.stages/backup.json`` goes along and lists every file with its size,
time and SHA-256; it changes in one step with the files it lists, so that a killed backup leaves the one before. A
backup adds and renews, it never deletes. Folders of very many files travel to the hub as one archive each.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import files, runs, stages
from .errors import UserError

LIST = ".stages/backup.json"
PACK_FROM = 500  # files in a folder; the hub is slow with very many small ones and limits their number
STATE = ("last.th", "state_*.th", "state.pt", "step_*")  # of a training: large, and of use only to train on
STREAMS = 8  # downloads at a time
Known = dict[str, dict[str, Any]]  # path relative to the outputs root -> size, mtime_ns, sha256


@dataclass
class Plan:
    """What belongs to a backup: ``files``, the times (ns) of ``folders`` whose time counts, ``incomplete`` stamps left out."""

    files: Known = field(default_factory=dict)
    folders: dict[str, int] = field(default_factory=dict)
    incomplete: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(known["size"] for known in self.files.values())


def plan(training_state: bool = False) -> Plan:
    """Everything under the outputs root that complete stamps vouch for; ``training_state``: also what training goes on from."""
    root = files.outputs_root()
    found, wanted = Plan(), set()
    before = (files.read_json(root / LIST) or {}).get("files", {})  # spares reading again what has not changed
    for stamp_path in sorted((root / ".stages").rglob("*.json")):
        stamp = files.read_json(stamp_path)
        if not isinstance(stamp, dict) or not ("finished" in stamp or "executed" in stamp):
            continue
        made = stamp["outputs"] if "finished" in stamp else stamp["executed"]
        if not all(files.matches(files.absolute(path), known) for path, known in made.items()):
            found.incomplete.append(files.relative(stamp_path))
            continue
        wanted.add(stamp_path)
        for path in [*map(files.absolute, made), *map(stages.input_path, stamp.get("inputs", ()))]:
            if path.is_relative_to(root):
                wanted |= set(_below(path))
                if "names" in (made.get(files.relative(path)) or ()):
                    found.folders[files.relative(path)] = path.stat().st_mtime_ns
    trained = {path.relative_to(runs.folder()).parts[0] for path in wanted if path.is_relative_to(runs.folder())}
    for run in trained:
        wanted |= {path for path in _below(runs.folder() / run) if training_state or not _is_state(path)}
    wanted |= set(_below(root / "samples" / "index.html"))
    for path in sorted(wanted):
        status, name = path.stat(), files.relative(path)
        known = before.get(name, {})
        same = (known.get("size"), known.get("mtime_ns")) == (status.st_size, status.st_mtime_ns)
        digest = known["sha256"] if same else files.digest(path)
        found.files[name] = {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": digest}
    return found


def _below(path: Path) -> Iterator[Path]:
    """The files at or below a path, without what a process is just writing."""
    if path.is_file():
        yield path
    for folder, folders, names in os.walk(path):
        folders[:] = (name for name in folders if not _is_temporary(name))
        yield from (Path(folder) / name for name in names if not _is_temporary(name))


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


def _is_state(path: Path) -> bool:
    return any(Path(part).match(pattern) for part in path.parts[-2:] for pattern in STATE)


# There


class Place:
    """Somewhere else: ``read_list()`` gives the list that lies there, ``send`` and ``fetch`` bring files there and back."""

    packs = False  # whether large folders travel as archives

    def read_list(self) -> dict[str, Any]:
        """The list of the last whole backup; empty where there is none."""
        raise NotImplementedError

    def send(self, paths: dict[str, Path], changed: Known) -> None:
        """Bring files (name there -> file here) there, all or none visible, and check those of ``changed``."""
        raise NotImplementedError

    def fetch(self, names: list[str], folder: Path) -> Iterable[tuple[str, Path]]:
        """Bring files into ``folder``; yields name and file as they come."""
        raise NotImplementedError


def backup(place: Place, training_state: bool = False, dry_run: bool = False) -> Plan:
    """Bring to ``place`` what is new or changed there; returns the plan. UserError where the place cannot be reached."""
    made = plan(training_state)
    there = place.read_list()
    packed = _packed(made.files) if place.packs else {}
    alone = {name: known for name, known in made.files.items() if Path(name).parent.as_posix() not in packed}
    changed = {name: known for name, known in alone.items() if _content(there.get("files", {}).get(name)) != _content(known)}
    packs = {folder: name for folder, name in packed.items() if there.get("packs", {}).get(name, {}).get("files") != _inside(made, folder)}
    for name in made.incomplete:
        print(f"left out, not complete: {name}")
    size = sum(known["size"] for part in (changed, *(_inside(made, folder) for folder in packs)) for known in part.values())
    new = f"{len(changed)} files, {len(packs)} folders, {size / 1e6:.1f} MB"
    print(f"{len(made.files)} files, {made.size / 1e6:.1f} MB; new or changed: {new}")
    if dry_run:
        print("\n".join([*changed, *packs]))
        return made
    if not changed and not packs:
        print("up to date")
        return made
    listing = {
        "files": {**there.get("files", {}), **alone},
        "folders": {**there.get("folders", {}), **made.folders},
        "packs": dict(there.get("packs", {})),
    }
    root = files.outputs_root()
    with tempfile.TemporaryDirectory(dir=root, prefix=".backup-") as temporary:
        paths = {name: root / name for name in changed}
        for folder, name in packs.items():
            paths[name] = _pack(root, _inside(made, folder), Path(temporary) / Path(name).name)
            known = {"size": paths[name].stat().st_size, "sha256": files.digest(paths[name])}
            listing["packs"][name] = {**known, "folder": folder, "files": _inside(made, folder)}
            changed[name] = known
        paths[LIST] = files.write_json(Path(temporary) / "list.json", listing)
        place.send(paths, changed)
    files.write_json(root / LIST, {**listing, "files": {**listing["files"], **made.files}})
    print(f"done: {len(changed)} sent and checked")
    return made


def restore(place: Place, overwrite: bool = False) -> int:
    """Put everything back that ``place`` holds and that is not here; returns how many files and folders came.

    Files that are here with another content stay, unless ``overwrite``. Each file is checked before it takes its place,
    stamps come last, and what was done before a kill is not done again. UserError where there is no backup.
    """
    listing = place.read_list()
    if not listing:
        raise UserError("there is no whole backup; was the last one finished?")
    root, kept = files.outputs_root(), []
    wanted: dict[str, dict[str, Any]] = {}
    for name, known in listing["files"].items():
        _check_name(name)
        here = root / name
        if here.is_file() and here.stat().st_size == known["size"] and files.digest(here) == known["sha256"]:
            os.utime(here, ns=(known["mtime_ns"], known["mtime_ns"]))
        elif here.exists() and not overwrite:
            kept.append(name)
        else:
            wanted[name] = known
    for name, known in listing["packs"].items():
        for inside in known["files"]:
            _check_name(inside)
        if not all(files.matches(root / inside, about) for inside, about in known["files"].items()):
            wanted[name] = known
    print(f"{len(wanted)} to fetch, {sum(known['size'] for known in wanted.values()) / 1e6:.1f} MB")
    folder = root / ".restore"  # what a killed restore had fetched of a file is used again
    folder.mkdir(parents=True, exist_ok=True)
    stamps = [name for name in wanted if name.startswith(".stages/")]
    for names in ([name for name in wanted if name not in stamps], stamps):
        for name, path in place.fetch(names, folder):
            _put(root, name, path, wanted[name])
    shutil.rmtree(folder)
    for name, time in listing["folders"].items():
        if (root / name).is_dir():
            os.utime(root / name, ns=(time, time))
    files.write_json(root / LIST, listing)
    if kept:
        print(f"{len(kept)} files are here with another content and stay ({kept[0]} ...); --overwrite replaces them")
    print(f"done: {len(wanted)} restored and checked")
    return len(wanted)


def _check_name(name: str) -> None:
    if name.startswith("/") or ".." in Path(name).parts:
        raise UserError(f"{name!r}: a backup must not name files outside the outputs folder")


def _put(root: Path, name: str, path: Path, known: dict[str, Any]) -> None:
    """Check what came and let it take its place; a pack is unpacked."""
    if path.stat().st_size != known["size"] or files.digest(path) != known["sha256"]:
        path.unlink()
        raise UserError(f"{name}: is not what the list of the backup says; was the last backup finished? Run it again where it came from")
    if "files" not in known:
        os.utime(path, ns=(known["mtime_ns"], known["mtime_ns"]))
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, root / name)
        return
    with files.atomic(root / known["folder"]) as temporary, tarfile.open(path) as archive:
        temporary.mkdir()
        for inside, about in known["files"].items():
            member = archive.extractfile(Path(inside).name)
            with open(temporary / Path(inside).name, "wb") as stream:
                shutil.copyfileobj(member, stream)
            os.utime(temporary / Path(inside).name, ns=(about["mtime_ns"], about["mtime_ns"]))
    path.unlink()


def _content(known: dict[str, Any] | None) -> tuple | None:
    return known and (known["size"], known["sha256"])


# Packs


def _packed(known: Known) -> dict[str, str]:
    """The folders that travel as archives, and what these are called."""
    counts: dict[str, int] = {}
    for name in known:
        folder = Path(name).parent.as_posix()
        counts[folder] = counts.get(folder, 0) + 1
    nested = {Path(folder).parent.as_posix() for folder in counts}  # of folders in folders only the innermost
    return {folder: f"packs/{folder}.tar" for folder, count in counts.items() if count >= PACK_FROM and folder not in nested}


def _inside(made: Plan, folder: str) -> Known:
    return {name: known for name, known in made.files.items() if Path(name).parent.as_posix() == folder}


def _pack(root: Path, inside: Known, path: Path) -> Path:
    """The same files give the same archive, byte by byte."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, known in sorted(inside.items()):
            about = tarfile.TarInfo(Path(name).name)
            about.size = known["size"]
            with open(root / name, "rb") as stream:
                archive.addfile(about, stream)
    return path


# By rsync


class Rsync(Place):
    """A folder on this machine, or ``host:folder`` by ssh."""

    def __init__(self, target: str):
        self.target = target.rstrip("/") + "/"

    def read_list(self) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as temporary:
            done = self._run("-t", f"{self.target}{LIST}", f"{temporary}/", check=False)
            if done.returncode not in (0, 23):  # 23: it is not there
                raise UserError(f"{self.target}: {_reason(done)}")
            return files.read_json(Path(temporary) / Path(LIST).name) or {}

    def send(self, paths: dict[str, Path], changed: Known) -> None:
        root = files.outputs_root()
        files.write_json(root / LIST, files.read_json(paths[LIST]))
        # All names change in one go at the end; until then, and after a kill, everything lies beside them in .~tmp~.
        options = ["-lt", "--from0", "--files-from=-", "--mkpath", "--timeout=120"]
        names = "\0".join(sorted(paths))
        self._run(*options, "--ignore-times", "--delay-updates", f"{root}/", self.target, text=names)
        checked = self._run(*options, "--dry-run", "--checksum", "--itemize-changes", f"{root}/", self.target, text="\0".join(changed))
        differing = [line.split(" ", 1)[1] for line in checked.stdout.splitlines() if line[:1] in "<>" and line[1:2] == "f"]
        if differing:
            raise UserError(f"{self.target}{differing[0]}: is not what was sent, or changed meanwhile; run the backup again")

    def fetch(self, names: list[str], folder: Path) -> Iterable[tuple[str, Path]]:
        if names:
            options = ["-lt", "--from0", "--files-from=-", "--timeout=120", "--partial-dir=.rsync-partial"]
            self._run(*options, self.target, f"{folder}/", text="\0".join(names))
        return ((name, folder / name) for name in names)

    def _run(self, *words: str, text: str = "", check: bool = True) -> subprocess.CompletedProcess:
        try:
            done = subprocess.run(["rsync", *words], input=text, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise UserError("rsync is not installed; as root: apt-get install rsync") from None
        if check and done.returncode:
            raise UserError(f"{self.target}: {_reason(done)}; run the same command again, it continues")
        return done


def _reason(done: subprocess.CompletedProcess) -> str:
    return next((line for line in done.stderr.splitlines() if line.strip()), f"rsync ended with {done.returncode}")


# To the hub


class Hub(Place):
    """A repository of the Hugging Face hub (``user/name``); the token is huggingface_hub's own: ``$HF_TOKEN`` or ``hf auth login``."""

    packs = True

    def __init__(self, repository: str, public: bool = False):
        from huggingface_hub import HfApi

        self.repository, self.public, self.api = repository, public, HfApi()

    def read_list(self) -> dict[str, Any]:
        from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

        with _one_line(self.repository):
            try:
                self.revision = self.api.repo_info(self.repository).sha  # of this very state, whatever is sent meanwhile
                with tempfile.TemporaryDirectory() as temporary:
                    return files.read_json(self.api.hf_hub_download(self.repository, LIST, revision=self.revision, local_dir=temporary))
            except (EntryNotFoundError, RepositoryNotFoundError):
                return {}

    def send(self, paths: dict[str, Path], changed: Known) -> None:
        """One commit for all; what a killed one had uploaded of large files is not sent again."""
        from huggingface_hub import CommitOperationAdd

        with _one_line(self.repository):
            self.api.create_repo(self.repository, private=not self.public, exist_ok=True)
            adds = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path)) for name, path in paths.items()]
            done = self.api.create_commit(self.repository, adds, commit_message=f"Backup of {len(changed)} files")
            found = {}
            names = list(changed)
            for start in range(0, len(names), 500):
                for entry in self.api.get_paths_info(self.repository, names[start : start + 500], revision=done.oid):
                    found[entry.path] = (entry.size, entry.lfs.sha256 if entry.lfs else None, entry.blob_id)
        for name, known in changed.items():
            size, sha256, blob = found.get(name, (None, None, None))
            if size != known["size"] or (sha256 != known["sha256"] if sha256 else blob != _git_blob(paths[name])):
                raise UserError(f"{self.repository}: {name} is not there as it was sent, or changed meanwhile; run the backup again")

    def fetch(self, names: list[str], folder: Path) -> Iterable[tuple[str, Path]]:
        def get(name: str) -> tuple[str, Path]:
            return name, Path(self.api.hf_hub_download(self.repository, name, revision=self.revision, local_dir=folder))

        with _one_line(self.repository), ThreadPoolExecutor(STREAMS) as pool:
            try:
                yield from pool.map(get, names)
            finally:
                pool.shutdown(cancel_futures=True)


def _git_blob(path: Path) -> str:
    """The name that git gives a file's content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextlib.contextmanager
def _one_line(repository: str) -> Iterator[None]:
    """Errors of the hub and of the network as one line, which never holds the token."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    try:
        yield
    except (LocalTokenNotFoundError, HFValidationError) as error:
        raise UserError(f"{repository}: {str(error).splitlines()[0]}") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no answer"
        hint = "; set HF_TOKEN to a token that may write there" if status in (401, 403) else "; run the same command again, it continues"
        raise UserError(f"{repository}: the hub answered {status}{hint}") from None
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "requests"):  # which one depends on the version
            raise
        raise UserError(
            f"{repository}: the hub cannot be reached ({type(error).__name__}); run the same command again, it continues"
        ) from None


def open_place(hub: str | None, rsync: str | None, public: bool = False) -> Place:
    """The place that a command line names."""
    return Hub(hub, public) if hub else Rsync(rsync)
