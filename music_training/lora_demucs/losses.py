"""Losses of separated stems against true ones, both ``[B, S, C, T]``: a mean over sources, weighted by ``weights`` ``[S]`` if given."""

from __future__ import annotations

import torch
from torch import Tensor

FLOOR = 1e-3  # of the mixture's energy: what a silent stem's error is measured against
RESOLUTIONS = ((512, 128), (1024, 256), (2048, 512))


def l1(found: Tensor, true: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean absolute error."""
    return _mean((found - true).abs().mean((0, 2, 3)), weights)


def l2(found: Tensor, true: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean square error."""
    return _mean((found - true).square().mean((0, 2, 3)), weights)


def log_ratio(found: Tensor, true: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over examples of log10 (error + f) / (energy + f), f a thousandth of the mixture's energy: minus nSDR in bels."""
    return _mean(_log_ratio(found, true, (2, 3)).mean(0), weights)


def batch_log_ratio(found: Tensor, true: Tensor, weights: Tensor | None = None) -> Tensor:
    """The same with error and energy of a source added up over the batch, as nSDR does over a track.

    An example in which a source is silent then counts by the energy of what leaks, not as much as one in which it sounds.
    """
    return _mean(_log_ratio(found, true, (0, 2, 3)), weights)


def bright_log_ratio(found: Tensor, true: Tensor, weights: Tensor | None = None) -> Tensor:
    """Half ``batch_log_ratio``, half that of the differences from sample to sample, in which the treble counts (6 dB an octave)."""
    return 0.5 * (batch_log_ratio(found, true, weights) + batch_log_ratio(found.diff(dim=3), true.diff(dim=3), weights))


def spectral(found: Tensor, true: Tensor, weights: Tensor | None = None) -> Tensor:
    """L1 plus the mean absolute difference of magnitude spectra at three resolutions, relative to the true magnitude."""
    total = (found - true).abs().mean((0, 2, 3))
    shape = true.shape[:3]
    flat_found, flat_true = found.flatten(0, 2).float(), true.flatten(0, 2).float()
    for size, hop in RESOLUTIONS:
        window = torch.hann_window(size, device=found.device)
        one, other = (torch.stft(item, size, hop, window=window, return_complex=True).abs() for item in (flat_found, flat_true))
        difference = (one - other).abs().mean((1, 2)).view(shape).mean((0, 2))
        total = total + difference / (other.mean() + 1e-4) / len(RESOLUTIONS) * 0.1
    return _mean(total, weights)


LOSSES = {
    "l1": l1,
    "l2": l2,
    "spectral": spectral,
    "log_ratio": log_ratio,
    "batch_log_ratio": batch_log_ratio,
    "bright_log_ratio": bright_log_ratio,
}


def _log_ratio(found: Tensor, true: Tensor, dims: tuple[int, ...]) -> Tensor:
    floor = FLOOR * true.sum(1, keepdim=True).square().mean(dims) + 1e-8
    error, energy = (found - true).square().mean(dims), true.square().mean(dims)
    return ((error + floor) / (energy + floor)).log10()


def _mean(values: Tensor, weights: Tensor | None) -> Tensor:
    return values.mean() if weights is None else (values * weights).sum() / weights.sum()
