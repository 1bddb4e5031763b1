"""The losses of the heads and their weighted sum; all are means over the frames whose ``mask`` is 1
(``beat_mask`` for beats, which not every track has annotated).

``logits``, ``target`` and ``mask`` are ``[B, T]`` unless said otherwise; targets are soft, in [0, 1].
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from ..trainer.losses import focal_bce, mean
from .config import EdmSettings
from .targets import IGNORE

POSITIVE_WEIGHT = {"boundary": 4.0, "beat": 4.0, "downbeat": 8.0}  # events are rare


def focal(logits: Tensor, target: Tensor, mask: Tensor, positive_weight: float) -> Tensor:
    """Focal binary cross-entropy (Lin et al. 2017), gamma 2."""
    return mean(focal_bce(logits, target, 2.0, positive_weight), mask)


def shift_tolerant(logits: Tensor, target: Tensor, mask: Tensor, positive_weight: float, tolerance: int = 3) -> Tensor:
    """Cross-entropy that forgives shifts of up to ``tolerance`` frames (Foscarin et al. 2024, "Beat This!").

    An event counts by the largest logit around it; frames within twice the tolerance of one do not count as negatives.
    """
    width = 2 * tolerance + 1
    hard = (target > 0.99).float()
    peak = functional.max_pool1d(logits.unsqueeze(1), width, 1, tolerance).squeeze(1)
    near = functional.max_pool1d(hard.unsqueeze(1), 2 * width - 1, 1, width - 1).squeeze(1)
    positive = functional.softplus(-peak) * hard * positive_weight
    negative = functional.softplus(peak) * (1 - near)
    return ((positive + negative) * mask).sum() / ((hard + 1 - near) * mask).sum().clamp(min=1)


def soft_f1(logits: Tensor, target: Tensor, mask: Tensor, positive_weight: float) -> Tensor:
    """One minus the F1 of soft detections."""
    found = logits.sigmoid() * mask
    target = target * mask
    return 1 - 2 * (found * target).sum() / (found.sum() + target.sum()).clamp(min=1e-6)


def energy(predicted: Tensor, target: Tensor, mask: Tensor, weighted: bool) -> Tensor:
    """Mean squared error of ``[B, T, 3]``; ``weighted`` counts loud frames up to three times (1 + 2 target)."""
    weight = (1 + 2 * target if weighted else target * 0 + 1) * mask.unsqueeze(-1)
    return mean((predicted - target).square(), weight)


EVENT_LOSSES = {"focal": focal, "shift_tolerant": shift_tolerant, "f1": soft_f1}


def total(outputs: dict[str, Tensor], batch: dict[str, Tensor], settings: EdmSettings) -> dict[str, Tensor]:
    """Each head's loss as ``<head>_loss`` and their weighted sum as ``loss``."""
    parts = {}
    for name, logits in outputs.items():
        mask = batch["beat_mask"] if name in ("beat", "downbeat") else batch["mask"]
        if name == "energy":
            parts[name] = energy(logits, batch[name], mask, settings.energy_loss == "weighted_mse")
        elif name == "label":
            parts[name] = functional.cross_entropy(
                logits.transpose(1, 2), batch[name].where(mask > 0, batch[name].new_tensor(IGNORE)), ignore_index=IGNORE
            )
        else:
            kind = settings.boundary_loss if name == "boundary" else settings.beat_loss
            parts[name] = EVENT_LOSSES[kind](logits, batch[name], mask, POSITIVE_WEIGHT[name])
    summed = sum(getattr(settings, f"{name}_weight") * value for name, value in parts.items())
    return {"loss": summed, **{f"{name}_loss": value for name, value in parts.items()}}
