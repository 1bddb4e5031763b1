"""Checkpoints that a kill cannot break: folders of safetensors weights and a training state that holds no code.

``ckpt/step_00000100`` is written under a temporary name and renamed when it is whole; ``last`` and ``best`` are made
of hard links to its files (copies where the volume has no links). A folder counts once it bears its name, and
:func:`newest` takes the one of the latest step, so that a kill between two renames loses nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch

from .. import files
from ..errors import UserError

WEIGHTS, AVERAGED, STATE, ABOUT = "model.safetensors", "averaged.safetensors", "state.pt", "checkpoint.json"


def save(folder: Path, step: int, model: torch.nn.Module, averaged: dict | None, state: dict[str, Any], about: dict[str, Any]) -> Path:
    """Write ``folder/step_<step>`` whole or not at all; ``state`` must be tensors and plain values only."""
    target = folder / f"step_{step:08d}"
    with files.atomic(target) as temporary, files.full_disk_is_told(target):
        temporary.mkdir()
        safetensors.torch.save_model(model, str(temporary / WEIGHTS))
        if averaged is not None:
            safetensors.torch.save_file(averaged, str(temporary / AVERAGED))
        write_state(state, temporary / STATE)
        files.write_json(temporary / ABOUT, {"step": step, **about})
    return target


def write_state(state: dict[str, Any], file: Path | IO[bytes]) -> None:
    """``torch.save`` without the check sums of its container: they are most of its work, and ``torch.load`` ignores them."""
    usual = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, file)
    finally:
        torch.serialization.set_crc32_options(usual)


def link(source: Path, name: str, without: Iterable[str] = ()) -> Path:
    """Make ``<folder>/<name>`` (``last``, ``best``) hold the files of the checkpoint ``source``, save those ``without``."""
    target, old = source.with_name(name), source.with_name(f".{name}.old")
    temporary = source.with_name(f".{name}.{os.getpid()}.tmp")
    _clear(temporary)
    temporary.mkdir()
    for file in source.iterdir():
        if file.name not in without:
            try:
                os.link(file, temporary / file.name)
            except OSError:  # a volume without hard links
                shutil.copy2(file, temporary / file.name)
    _clear(old)
    with contextlib.suppress(FileNotFoundError):
        os.rename(target, old)
    os.rename(temporary, target)
    _clear(old)
    return target


def prune(folder: Path, keep: int) -> None:
    """Remove all but the ``keep`` latest periodic checkpoints, and what killed processes left."""
    files.sweep(folder)
    for path in sorted(folder.glob("step_*"), reverse=True)[keep:]:
        _clear(path)


def newest(folder: Path) -> Path | None:
    """The checkpoint of the latest step from which training can go on; None where there is none."""
    found = [path.parent for path in folder.glob(f"*/{ABOUT}") if not path.parent.name.endswith(".tmp")]
    whole = [path for path in found if (path / STATE).is_file() and files.read_json(path / ABOUT)]
    return max(whole, key=lambda path: (files.read_json(path / ABOUT)["step"], path.name), default=None)


def load_state(checkpoint: Path) -> dict[str, Any]:
    """The training state of a checkpoint, on the CPU; nothing in the file is executed."""
    return torch.load(checkpoint / STATE, map_location="cpu", weights_only=True)


def read_weights(checkpoint: Path, averaged: bool = False) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint; ``averaged`` takes the averaged ones where it has them."""
    path = checkpoint / AVERAGED
    path = path if averaged and path.is_file() else checkpoint / WEIGHTS
    if not path.is_file():
        raise UserError(f"{checkpoint}: not a checkpoint (no {WEIGHTS})")
    try:
        return safetensors.torch.load_file(str(path))
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from None


def load_weights(model: torch.nn.Module, checkpoint: Path, averaged: bool = False, partial: bool = False) -> list[str]:
    """Load a checkpoint's weights into ``model``.

    ``partial`` loads the tensors that the model has in the same shape and returns the names of its other ones; without
    it, UserError names what does not fit.
    """
    loaded = read_weights(checkpoint, averaged)
    own = model.state_dict()
    fitting = {name: value for name, value in loaded.items() if name in own and own[name].shape == value.shape}
    model.load_state_dict(fitting, strict=False)
    shared = {own[name].data_ptr() for name in fitting}  # save_model writes tensors that share memory once
    missing = [name for name in own if name not in fitting and (own[name].data_ptr() not in shared or own[name].numel() == 0)]
    strange = [name for name in loaded if name not in fitting]
    if not partial and (missing or strange):
        raise UserError(f"{checkpoint}: does not fit the model: {', '.join((missing + strange)[:5])} missing or of another shape")
    return missing


def find(run_or_checkpoint: Path, prefer: tuple[str, ...] = ("best", "last")) -> Path:
    """The checkpoint folder meant by a run folder, a checkpoint folder or a weights file in one."""
    path = Path(run_or_checkpoint)
    path = path.parent if path.is_file() else path
    for candidate in (path, *(path / "ckpt" / name for name in prefer)):
        if (candidate / WEIGHTS).is_file():
            return candidate
    found = newest(path / "ckpt")
    if found is None:
        raise UserError(f"{path}: neither a checkpoint nor a run with one")
    return found


def _clear(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
