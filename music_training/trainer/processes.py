"""The processes of a training: started by torchrun, joined by Accelerate; what they must agree on; how they end."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Any

from ..errors import UserError
from .config import Training


def precision(wanted: bool | str) -> str:
    """Accelerate's word for a ``mixed_precision`` setting; ``true`` is bf16 where the GPU has it, fp16 on an older one, none on a CPU."""
    import torch

    if wanted is True:
        return "no" if not torch.cuda.is_available() else "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if wanted == "fp16" and not torch.cuda.is_available():
        raise UserError("mixed_precision: fp16 needs a GPU; use true, false or bf16 here")
    return wanted or "no"


def accelerator(settings: Training):
    """The Accelerator for these settings; UserError where other processes run than are meant to."""
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs, GradScalerKwargs, InitProcessGroupKwargs

    check_launch()
    if settings.performance.threads:
        torch.set_num_threads(settings.performance.threads)
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(settings.deterministic, warn_only=True)
    kind = precision(settings.mixed_precision)
    handlers: list[Any] = [DistributedDataParallelKwargs(find_unused_parameters=settings.distributed.find_unused_parameters)]
    if settings.distributed.backend:
        handlers.append(InitProcessGroupKwargs(backend=settings.distributed.backend))
    if settings.amp_loss_scale and kind == "fp16":
        handlers.append(GradScalerKwargs(init_scale=settings.amp_loss_scale, growth_interval=2**31 - 1))
    AcceleratorState._reset_state()  # a notebook may train twice, in another precision
    made = Accelerator(mixed_precision=kind, cpu=not torch.cuda.is_available(), kwargs_handlers=handlers)
    if settings.distributed.world_size not in (None, made.num_processes):
        raise UserError(
            f"distributed.world_size is {settings.distributed.world_size}, but {made.num_processes} process(es) run; "
            f"start them with torchrun --nproc_per_node {settings.distributed.world_size}"
        )
    return made


def check_launch(command: list[str] | None = None) -> None:
    """UserError where ``accelerate launch`` was asked for several processes and, as it does with ``--cpu``, started one."""
    command = _parent_command() if command is None else command
    called = " ".join(Path(part).name for part in command[:4])
    launched = any(way in called for way in ("accelerate launch", "accelerate-launch", "accelerate.commands.launch", "launch.py"))
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 or not launched:
        return
    asked = _option(command, "--num_processes") or _option(command, "--num-processes")
    if asked and asked.isdigit() and int(asked) > 1:
        better = f"torchrun --nproc_per_node {asked} {' '.join(sys.argv)}"
        raise UserError(f"accelerate launch was asked for {asked} processes and started one; use: {better}")


def first_alone(make) -> Any:
    """What ``make()`` returns, called in the main process only and handed to the others."""
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    check_launch()
    state = PartialState(cpu=not _has_cuda())
    result: list[Any] = [None]
    if state.is_main_process:
        try:
            result = [make()]
        except UserError as error:  # the others must not wait for ever
            result = [error]
    if state.num_processes > 1:
        broadcast_object_list(result)
    if isinstance(result[0], UserError):
        raise result[0]
    return result[0]


def same_everywhere(value: Any) -> Any:
    """A flag that is true once it is in any process; of anything else, the main process's."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return value
    if isinstance(value, bool):
        import torch

        flag = torch.tensor(int(value))
        distributed.all_reduce(flag, op=distributed.ReduceOp.MAX, group=_cpu_group())
        return bool(flag)
    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]


@functools.cache
def _cpu_group():
    """A group over which flags are exchanged without waiting for the GPU."""
    from torch import distributed

    return None if distributed.get_backend() == "gloo" else distributed.new_group(backend="gloo")


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _parent_command() -> list[str]:
    try:
        return Path(f"/proc/{os.getppid()}/cmdline").read_text().split("\0")
    except OSError:  # no /proc here
        return []


def _option(command: list[str], name: str) -> str | None:
    for part, following in zip(command, [*command[1:], ""], strict=True):
        if part == name:
            return following
        if part.startswith(f"{name}="):
            return part.partition("=")[2]
    return None
