"""Stages: a step of the pipeline that is done once, and known to be done.

A stage is up to date only if its parameters, the fingerprints of its inputs and its listed outputs all match its
stamp, ``outputs/.stages/<scope>/<name>-<hash of name, version and parameters>.json``. The stamp is written last. A
stage that is killed remembers, beside the stamp, what it asked to remember (its unfinished run folder), and gets it
back when it is started again with the same parameters and inputs. Paths in stamps are relative to the outputs root or
to the repository, so that either can be moved.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import files
from .errors import UserError

IN_REPOSITORY = "repository:"  # before the path of an input that comes with the code
LOCK_WAIT = 10.0  # seconds: a killed notebook's kernel takes up to 3 s to notice that it is alone


@dataclass(frozen=True)
class Made:
    """What a stage made: ``outputs`` are fingerprinted; ``result`` (JSON) is handed to later readers of the stamp.

    ``folders`` hold too many files to fingerprint each: only that no name in them came or went is looked at.
    """

    outputs: list[Path]
    result: dict[str, Any] = field(default_factory=dict)
    folders: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class StageResult:
    """How a stage ended: whether it was skipped, how long it took (s) and the ``result`` its maker returned."""

    name: str
    skipped: bool
    seconds: float
    result: dict[str, Any]


class Draft:
    """The memory of an unfinished stage: small JSON values that outlive a killed process."""

    def __init__(self, path: Path, inputs: Mapping[str, Any], force: bool):
        self._path, self._inputs = path, {name: _identity(known) for name, known in inputs.items()}
        self.forced = force  # what an earlier run left is not to be built upon
        known = None if force else files.read_json(path)
        self.memory: dict[str, Any] = known["memory"] if known and known["inputs"] == self._inputs else {}

    def remember(self, **values: Any) -> None:
        """Keep ``values`` for the next try, at once."""
        self.memory.update(values)
        files.write_json(self._path, {"inputs": self._inputs, "memory": self.memory})


def run(
    name: str,
    make: Callable[[Draft], Made],
    *,
    scope: str,
    params: Mapping[str, Any],
    inputs: Iterable[Path] = (),
    version: int = 1,
    force: bool = False,
) -> StageResult:
    """Make a stage unless it is up to date, say so in one line, and return its result.

    ``make(draft)`` does the work and returns a :class:`Made`. ``version`` belongs to the code: raise it when the code
    would make other outputs from the same parameters and inputs. ``$MUSIC_FORCE=1`` forces as ``force`` does.
    """
    force = force or os.environ.get("MUSIC_FORCE") == "1"
    params = json.loads(json.dumps(params, sort_keys=True))
    inputs = list(inputs)
    stamp_path = stamp_file(name, scope, params, version)
    _tell_runner(stamp_path)
    if not force and (done := _done(name, stamp_path, inputs)):
        return done
    with files.lock(stamp_path.with_suffix(".lock"), f"stage {name} ({scope})", wait=LOCK_WAIT):
        if not force and (done := _done(name, stamp_path, inputs)):  # another process made it while this one waited
            return done
        known = {_name(path): files.fingerprint(path) for path in inputs}
        start = time.monotonic()
        draft_path = stamp_path.with_suffix(".unfinished.json")
        made = make(Draft(draft_path, known, force))
        seconds = time.monotonic() - start
        outputs = {files.relative(path): files.fingerprint(path) for path in made.outputs}
        outputs.update((files.relative(path), files.names_fingerprint(path)) for path in made.folders)
        missing = [path for path, known_output in outputs.items() if known_output is None]
        if missing:
            raise RuntimeError(f"stage {name} did not write {', '.join(missing)}")
        files.write_json(
            stamp_path,
            {
                "stage": name,
                "version": version,
                "params": params,
                "inputs": known,
                "outputs": outputs,
                "result": made.result,
                "seconds": round(seconds, 2),
                "finished": time.strftime("%Y-%m-%dT%H:%M:%S"),
            },
        )
        draft_path.unlink(missing_ok=True)
        print(f"{name}: done in {seconds:.1f} s", flush=True)
        return StageResult(name, False, seconds, made.result)


def stamp_file(name: str, scope: str, params: Mapping[str, Any], version: int = 1) -> Path:
    """Where the stamp of a stage with these parameters lies."""
    key = hashlib.sha256(json.dumps([name, version, params], sort_keys=True).encode()).hexdigest()[:12]
    return files.outputs_root() / ".stages" / scope / f"{name}-{key}.json"


def latest(name: str, scope: str, made_by: str) -> dict[str, Any]:
    """The result of the stage ``name`` that ended last in ``scope``; UserError naming ``made_by`` where none has."""
    stamps = [files.read_json(path) for path in (files.outputs_root() / ".stages" / scope).glob(f"{name}-*.json")]
    done = [stamp for stamp in stamps if stamp and "finished" in stamp and outputs_match(stamp)]
    if not done:
        raise UserError(f"{scope}: {name} has not been done yet; run {made_by} first")
    return max(done, key=lambda stamp: stamp["finished"])["result"]


def outputs_match(stamp: Mapping[str, Any]) -> bool:
    """Whether every output that a stamp lists is still what it was."""
    return all(files.matches(files.absolute(path), known) for path, known in stamp["outputs"].items())


def inputs_unchanged(stamp: Mapping[str, Any]) -> bool:
    """Whether every input that a stamp lists is still what it was."""
    return all(files.matches(input_path(name), known) for name, known in stamp["inputs"].items())


def input_path(name: str) -> Path:
    """Where an input lies that a stamp lists."""
    inside = name.removeprefix(IN_REPOSITORY)
    return files.absolute(name) if inside == name else files.REPOSITORY / inside


def _done(name: str, stamp_path: Path, inputs: list[Path]) -> StageResult | None:
    stamp = files.read_json(stamp_path)
    if not (stamp and _inputs_match(stamp, inputs) and outputs_match(stamp)):
        return None
    print(f"{name}: up to date", flush=True)
    return StageResult(name, True, 0.0, stamp["result"])


def _inputs_match(stamp: Mapping[str, Any], inputs: list[Path]) -> bool:
    return list(stamp["inputs"]) == [_name(path) for path in inputs] and inputs_unchanged(stamp)


def _name(path: Path) -> str:
    """A path of an input as stamps hold it."""
    name = files.relative(path)
    inside = Path(name).is_absolute() and Path(name).is_relative_to(files.REPOSITORY)
    return f"{IN_REPOSITORY}{Path(name).relative_to(files.REPOSITORY).as_posix()}" if inside else name


def _identity(known: Mapping[str, Any] | None) -> Any:
    """The part of a fingerprint that says what the content is, not when it was written."""
    return known and (known.get("sha256") or known.get("listing"))


def _tell_runner(stamp_path: Path) -> None:
    """Add the stamp to the list that the notebook runner keeps for the notebook being run (``$MUSIC_STAGE_LIST``)."""
    listing = os.environ.get("MUSIC_STAGE_LIST")
    if listing:
        with open(listing, "a", encoding="utf-8") as stream:
            stream.write(f"{files.relative(stamp_path)}\n")
