"""Training states on disk: ``ckpt/state_<step>.th``, the newest one also as ``ckpt/last.th``.

A state takes its name when it is whole and on the disk, so that a kill or a full disk leaves the ones before it. It
holds tensors, plain values and the configuration, and is read with ``weights_only=True``.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from .. import files
from ..errors import UserError
from ..trainer.checkpoints import write_state

LAST = "last.th"


def save(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write the state after ``step`` updates, make it the last one and remove all but the ``keep`` newest."""
    files.sweep(folder)
    path = folder / f"state_{step:08d}.th"
    with files.atomic(path) as temporary, files.full_disk_is_told(path), open(temporary, "wb") as stream:
        write_state(state, stream)
    with files.atomic(folder / LAST) as temporary:
        try:
            os.link(path, temporary)
        except OSError:  # a volume without hard links
            shutil.copyfile(path, temporary)
    for old in states(folder)[max(1, keep) :]:
        old.unlink()
    return path


def states(folder: Path) -> list[Path]:
    """The states in a folder, newest first."""
    return sorted(folder.glob("state_*.th"), reverse=True)


def newest(folder: Path) -> Path | None:
    """The state of the latest step; None where there is none."""
    found = states(folder)
    return found[0] if found else folder / LAST if (folder / LAST).is_file() else None


def load(path: Path) -> dict[str, Any]:
    """Read a state onto the CPU; UserError where the file is none."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError) as error:
        raise UserError(f"{path}: not a readable training state ({str(error).splitlines()[0]})") from None
