"""Run folders: ``outputs/training/<run>/{ckpt/,logs/,config.yaml,metadata.yaml,metrics.jsonl}``, the same for every system.

A run is named ``run_{YYYYMMDD}_{HHMMSS}_{system}_{description}`` unless a person names it. ``metadata.yaml`` says what
the run is and how it stands; ``metrics.jsonl`` holds one JSON row per logged step and is only ever appended to, except
that a resumed run drops the rows after the checkpoint it continues from.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import config, files
from .errors import UserError

CHECKPOINTS = "ckpt"  # JupyterLab cannot open a folder named "checkpoints"
_PACKAGES = ("torch", "accelerate", "transformers", "audiocraft", "numpy")


def folder() -> Path:
    """Where all runs lie: ``outputs/training``."""
    return files.outputs_root() / "training"


def create(system: str, description: str = "default", run_name: str | None = None) -> Path:
    """Make a new run folder with its first metadata and return its path.

    ``run_name`` replaces the name made of time, system and description; UserError where a run of that name exists.
    """
    if run_name is not None and (not re.fullmatch(r"[\w.+-]+", run_name) or run_name.startswith(".")):
        raise UserError(f"run name {run_name!r}: letters, digits and . _ + - only, and no dot in front")
    stem = run_name or f"run_{time.strftime('%Y%m%d_%H%M%S')}_{_slug(system)}_{_slug(description) or 'default'}"
    run, number = folder() / stem, 1
    folder().mkdir(parents=True, exist_ok=True)
    while True:
        try:
            run.mkdir()
            break
        except FileExistsError:
            if run_name is not None:
                raise UserError(f"{run}: this run exists; resume it (--resume {run_name}) or give another --run-name") from None
            number += 1
            run = folder() / f"{stem}_{number}"
    (run / CHECKPOINTS).mkdir()
    (run / "logs").mkdir()
    write_metadata(
        run,
        name=run.name,
        system=system,
        description=description,
        created=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        status="created",
        command=" ".join(sys.argv),
        host=platform.node(),
        python=platform.python_version(),
        packages={name: version for name in _PACKAGES if (version := _version(name))},
        commit=_commit(),
    )
    return run


def find(name: str | Path) -> Path:
    """The folder of a run given by its name or its path; UserError with a close name otherwise."""
    for run in (folder() / name, Path(name).expanduser()):
        if run.is_dir():
            return run.resolve()
    raise UserError(f"run {str(name)!r}: not found under {folder()}{config.suggest(str(name), [row['name'] for row in listing()])}")


def listing() -> list[dict[str, Any]]:
    """The metadata of all runs, oldest first; ``path`` is each run's folder."""
    rows = [{"name": path.parent.name, **read_metadata(path.parent), "path": path.parent} for path in folder().glob("*/metadata.yaml")]
    return sorted(rows, key=lambda row: (str(row.get("created", "")), row["name"]))


def write_metadata(run: Path, **values: Any) -> None:
    """Add ``values`` to a run's ``metadata.yaml``, replacing those of the same name (atomically)."""
    files.write_text(run / "metadata.yaml", config.dump({**read_metadata(run), **values}))


def read_metadata(run: Path) -> dict[str, Any]:
    """A run's metadata; empty where there is none."""
    path = run / "metadata.yaml"
    return config.read_yaml(path) if path.is_file() else {}


class Metrics:
    """Writer of a run's ``metrics.jsonl``: append-only, flushed row by row.

    A new writer drops what a killed process left: a last line without its end, and, where ``keep_through`` (the step
    of the checkpoint that is continued) or ``keep_rows`` (how many rows there were then) is given, what came later.
    ``rows`` counts the rows.
    """

    def __init__(self, run: Path, keep_through: int | None = None, keep_rows: int | None = None):
        self.path, self.rows = run / "metrics.jsonl", 0
        with open(self.path, "a+b") as stream:
            stream.seek(0)
            keep = 0
            for line in stream:
                if not line.endswith(b"\n") or self.rows == keep_rows:
                    break
                if keep_through is not None and json.loads(line)["step"] > keep_through:
                    break
                keep += len(line)
                self.rows += 1
            stream.truncate(keep)
        self._stream = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (open for as long as the run)

    def append(self, step: int, **values: Any) -> None:
        """Write a row; numbers that are not finite become null, which JSON can hold."""
        row = {"step": step, **{name: _plain(value) for name, value in values.items()}}
        self._stream.write(json.dumps(row) + "\n")
        self._stream.flush()
        self.rows += 1

    def flush(self) -> None:
        """Bring all rows to the disk."""
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Flush to the disk and close."""
        self.flush()
        self._stream.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's ``metrics.jsonl`` in their order; a half-written last line is left out."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


def new_rows(run: Path, position: int) -> tuple[list[dict[str, Any]], int]:
    """The complete rows of ``metrics.jsonl`` from byte ``position`` on, and the position to ask from next time."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        return [], 0
    with open(path, "rb") as stream:
        if position > path.stat().st_size:  # a resumed run dropped rows
            position = 0
        stream.seek(position)
        text = stream.read()
    whole = text[: text.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines()], position + len(whole)


def metrics_table(run: Path):
    """The metrics of a run as a pandas table, indexed by step; values logged at one step share its row."""
    import pandas

    table = pandas.DataFrame(read_metrics(run))
    return table.groupby("step").last() if len(table) else table


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", text).strip("-.")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the code, where the repository is a git checkout."""
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=files.REPOSITORY, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
