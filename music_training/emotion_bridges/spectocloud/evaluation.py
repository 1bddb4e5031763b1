"""How good the clouds of held-out clips are, with what they compare with: the floor and the mean cloud.

The floor is the distance of two draws of one target. The mean cloud is the best answer that ignores the audio: a draw
from the mean density of the training clips, each cell at its mean level, in their mean colours. ``one colour`` is the
model's cloud in the mean colour of the clip's truth: the best that colours could be without changing within a cloud.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import torch

from . import chamfer, targets
from .data import Clip
from .system import tensors

RADIUS = 0.05


def mean_cloud(clips: Sequence[Clip]) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Positions and colours of the mean cloud of training clips."""
    levels = numpy.stack([targets.levels(clip.mel) for clip in clips])
    shares = numpy.stack([targets.density(level) for level in levels])
    share = shares.mean(0)
    level = (shares * levels).sum(0) / numpy.maximum(shares.sum(0), 1e-12)
    cloud = targets.draw(level, len(clips[0].cloud), numpy.random.default_rng(0), share)
    return cloud, numpy.tile(numpy.concatenate([clip.colours for clip in clips]).mean(0), (len(cloud), 1)).astype(numpy.float32)


@torch.no_grad()
def evaluate(model: torch.nn.Module, clips: Sequence[Clip], baseline: tuple[numpy.ndarray, numpy.ndarray]) -> dict[str, dict[str, float]]:
    """Chamfer distance, F-score and colour error of model and baselines against the clips' clouds, means over clips."""
    model.eval()
    rows: dict[str, list[list[float]]] = {"model": [], "one colour": [], "floor": [], "mean cloud": []}
    for clip in clips:
        mel, emotion, cloud, tint = tensors([clip])
        again = targets.target(clip.mel, clip.emotion, len(clip.cloud), targets.content_seed(clip.mel) + 1)
        placed, coloured = model(mel, emotion)
        plain = placed, tint.mean(1, keepdim=True).expand_as(placed)
        answers = {"model": (placed, coloured), "one colour": plain, "floor": again, "mean cloud": baseline}
        for name, (made, colour) in answers.items():
            made, colour = (torch.as_tensor(part).reshape(1, -1, 3) for part in (made, colour))
            match = chamfer.nearest(made, cloud)
            found = chamfer.chamfer(made, cloud, match), chamfer.f_score(made, cloud, RADIUS, match)
            rows[name].append([float(value) for value in (*found, chamfer.colour_error(colour, tint, match))])
    columns = ("chamfer", "f_score", "color_error")
    return {name: dict(zip(columns, numpy.mean(values, axis=0).tolist(), strict=True)) for name, values in rows.items()}
