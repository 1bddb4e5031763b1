"""Distances between clouds in plain torch: Chamfer, F-score at a radius, colours compared along the Chamfer match.

The nearest neighbours are found without a gradient, in blocks; the distances are then those of the matched pairs. The
gradient is the same as through the full matrix, which is never kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 1 << 22  # distances held at once


@torch.no_grad()
def nearest(cloud: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """For each point of ``[B, N, D]`` the nearest of ``[B, M, D]`` ``[B, N]``, and the other way round ``[B, M]``."""
    forward, back = [], []
    rows = max(1, BLOCK // (cloud.shape[1] * other.shape[1]))
    for start in range(0, len(cloud), rows):
        one, two = cloud[start : start + rows].float(), other[start : start + rows].float()
        far = two.square().sum(2).unsqueeze(1) - 2 * one @ two.transpose(1, 2)  # squared distance, less the own square
        forward.append(far.argmin(2))
        back.append((far + one.square().sum(2).unsqueeze(2)).argmin(1))
    return torch.cat(forward), torch.cat(back)


def matched(values: Tensor, match: Tensor) -> Tensor:
    """Rows of ``[B, M, D]`` picked by ``[B, N]``: ``[B, N, D]``."""
    return values.gather(1, match.unsqueeze(2).expand(-1, -1, values.shape[2]))


def chamfer(cloud: Tensor, other: Tensor, match: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Mean squared distance to the nearest neighbour, both ways added (Fan et al. 2017), ``[B]``."""
    there, back = match or nearest(cloud, other)
    ahead = (cloud - matched(other, there)).square().sum(2).mean(1)
    return ahead + (other - matched(cloud, back)).square().sum(2).mean(1)


def colour_error(colour: Tensor, other: Tensor, match: tuple[Tensor, Tensor]) -> Tensor:
    """Mean squared difference of the colours of matched points, mean of both ways, ``[B]``."""
    there, back = match
    ahead = (colour - matched(other, there)).square().mean((1, 2))
    return (ahead + (other - matched(colour, back)).square().mean((1, 2))) / 2


def f_score(cloud: Tensor, other: Tensor, radius: float = 0.05, match: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Harmonic mean of the shares of points that have a neighbour within ``radius`` (Knapitsch et al. 2017), ``[B]``."""
    there, back = match or nearest(cloud, other)
    precision = ((cloud - matched(other, there)).norm(dim=2) <= radius).float().mean(1)
    recall = ((other - matched(cloud, back)).norm(dim=2) <= radius).float().mean(1)
    return 2 * precision * recall / (precision + recall).clamp(min=1e-9)
