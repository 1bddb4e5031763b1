"""The optimizer of a configuration, and its rate as a plain function of the step."""

from __future__ import annotations

import math
import re

import torch

from ..errors import UserError
from .config import Optimizer, Scheduler


def build(model: torch.nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """The optimizer over the parameters that want a gradient, one group for each scale of the rate.

    A group's ``scale`` multiplies the scheduled rate. UserError where a pattern of ``rates`` matches no parameter.
    """
    groups: dict[float, list[torch.nn.Parameter]] = {}
    unused = set(settings.rates)
    for name, parameter in model.named_parameters():
        matching = [pattern for pattern in settings.rates if re.search(pattern, name)]
        unused.difference_update(matching)
        if parameter.requires_grad:
            groups.setdefault(settings.rates[matching[-1]] if matching else 1.0, []).append(parameter)
    if unused:
        raise UserError(f"optimizer.rates: no parameter's name matches {', '.join(map(repr, sorted(unused)))}")
    if not groups:
        raise UserError("the model has no parameter to train: everything in it is frozen")
    parameters = [{"params": members, "scale": scale} for scale, members in groups.items()]
    if settings.type == "sgd":
        return torch.optim.SGD(parameters, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
    kind = torch.optim.AdamW if settings.type == "adamw" else torch.optim.Adam
    return kind(parameters, lr=settings.lr, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay)


def learning_rate(scheduler: Scheduler, peak: float, step: float, total: float) -> float:
    """The rate of the update number ``step`` (from 0) of ``total``: linear warm-up to ``peak``, then down to ``min_lr``."""
    if step < scheduler.warmup_steps:
        return peak * step / scheduler.warmup_steps
    if scheduler.type == "constant":
        return peak
    progress = min(1.0, (step - scheduler.warmup_steps) / max(1.0, total - scheduler.warmup_steps))
    share = 1 - progress if scheduler.type == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return scheduler.min_lr + (peak - scheduler.min_lr) * share
