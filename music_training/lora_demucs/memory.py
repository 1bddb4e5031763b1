"""Gradient checkpointing of an HTDemucs, and what a training step takes of memory."""

from __future__ import annotations

import resource
import sys

import torch
from demucs.hdemucs import HDecLayer, HEncLayer
from demucs.transformer import CrossTransformerEncoderLayer, MyTransformerEncoderLayer
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..trainer.callbacks import Callback

BLOCKS = (HEncLayer, HDecLayer, MyTransformerEncoderLayer, CrossTransformerEncoderLayer)


def enable_checkpointing(model: nn.Module) -> int:
    """Have each layer forget its inner activations while training and compute them again backwards; returns how many layers."""
    count = 0
    for module in model.modules():
        if isinstance(module, BLOCKS):
            module.forward = _Recomputed(module)
            count += 1
    return count


class _Recomputed:
    def __init__(self, module: nn.Module):
        self.module, self.forward = module, module.forward

    def __call__(self, *inputs, **options):
        if not (self.module.training and torch.is_grad_enabled()):
            return self.forward(*inputs, **options)
        return checkpoint(self.forward, *inputs, use_reentrant=False, **options)


def peak() -> float:
    """Peak memory so far in MiB: the GPU's where there is one, else the process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


class MemoryProfile(Callback):
    """Writes the peak memory (MiB) beside the losses, at each logged step."""

    order = 85

    def on_log(self, trainer, step: int, metrics: dict[str, float]) -> None:
        if trainer.is_main:
            trainer.metrics["peak_memory_mib"] = peak()
            trainer._rows.write("train", step, trainer.epoch, {"peak_memory_mib": peak()})
