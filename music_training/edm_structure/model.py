"""The model: a backbone that gives features at its own frame rate, a context over tens of seconds, and the heads.

Shapes: the CNN takes log-mel ``[B, T, MELS]`` at 50 frames a second; heads give ``boundary``, ``beat``, ``downbeat``
``[B, T]`` (logits), ``energy`` ``[B, T, 3]`` (in [0, 1]) and ``label`` ``[B, T, 5]`` (logits).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import LABELS
from .config import CnnSettings, EdmSettings
from .features import FRAME_RATE

SLOW_RATE = 5.0  # frames a second at which the context works


class CnnBackbone(nn.Module):
    """Mel frames to features ``[B, T, C]`` (Davies & Boeck 2019: a convolutional front end, then a dilated temporal network).

    The second input channel is the positive difference to the frame two steps before: onsets.
    """

    frame_rate = FRAME_RATE

    def __init__(self, settings: CnnSettings):
        super().__init__()
        self.width = width = settings.channels
        self.front = nn.Sequential(
            nn.Conv2d(2, 12, (3, 8), stride=(1, 4), padding=(1, 2), bias=False), nn.BatchNorm2d(12), nn.ReLU(inplace=True),
            nn.Conv2d(12, 24, (3, 3), stride=(1, 2), padding=(1, 1), bias=False), nn.BatchNorm2d(24), nn.ReLU(inplace=True),
            nn.Conv2d(24, width, (1, 8)),
        )  # fmt: skip
        self.layers = nn.ModuleList(Dilated(width, 2**number, settings.dropout) for number in range(settings.layers))

    def forward(self, mel: Tensor) -> Tensor:
        level = mel.exp().square().mean((1, 2), keepdim=True).clamp(min=1e-10).log() / 2  # the window's RMS: loudness does not count
        mel = (mel - level).clamp(min=-8) / 3
        before = functional.pad(mel, (0, 0, 2, 0))[:, :-2]
        hidden = self.front(torch.stack([mel, (mel - before).clamp(min=0)], 1)).squeeze(-1)
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden.transpose(1, 2)


class Dilated(nn.Module):
    """A residual layer of a temporal network: ``x + W relu(conv_5(x))``; ``[B, C, T]`` in and out."""

    def __init__(self, width: int, dilation: int, dropout: float):
        super().__init__()
        self.conv = nn.Conv1d(width, width, 5, padding=2 * dilation, dilation=dilation)
        self.drop = nn.Dropout1d(dropout)
        self.out = nn.Conv1d(width, width, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.out(self.drop(functional.relu(self.conv(hidden), inplace=True)))


class Context(nn.Module):
    """Sees far: pools to 5 frames a second, a dilated network of +-25 s, and back to the frame rate; ``[B, T, C]``."""

    def __init__(self, width: int, frame_rate: float, dropout: float):
        super().__init__()
        self.factor = round(frame_rate / SLOW_RATE)
        self.layers = nn.ModuleList(Dilated(2 * width, 2**number, dropout) for number in range(6))

    def forward(self, hidden: Tensor) -> Tensor:
        time = hidden.shape[1]
        padded = functional.pad(hidden.transpose(1, 2), (0, -time % self.factor))
        slow = torch.cat([functional.avg_pool1d(padded, self.factor), functional.max_pool1d(padded, self.factor)], 1)
        for layer in self.layers:
            slow = layer(slow)
        return functional.interpolate(slow, scale_factor=float(self.factor), mode="linear")[:, :, :time].transpose(1, 2)


class EdmModel(nn.Module):
    """Backbone, context and the heads that the settings switch on."""

    def __init__(self, settings: EdmSettings, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.frame_rate = backbone.frame_rate
        width = settings.cnn.channels
        self.project = nn.Identity() if backbone.width == width else nn.Linear(backbone.width, width)
        self.context = Context(width, backbone.frame_rate, settings.cnn.dropout)
        near = {"beat": 1, "downbeat": 1}
        far = {"boundary": 1, "energy": 3, "label": len(LABELS)}
        self.near = nn.ModuleDict({name: nn.Linear(width, size) for name, size in near.items() if getattr(settings, name)})
        self.far = nn.ModuleDict({name: nn.Linear(3 * width, size) for name, size in far.items() if getattr(settings, name)})
        for name, head in [*self.near.items(), *self.far.items()]:
            if name in ("beat", "downbeat", "boundary"):
                nn.init.constant_(head.bias, -3.0)  # events are rare

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        if inputs.ndim == 3 and hasattr(self.backbone, "from_samples"):  # embeddings of the frozen backbone, from the cache
            return self.heads(inputs)
        return self.heads(self.backbone(inputs))

    def heads(self, features: Tensor) -> dict[str, Tensor]:
        """From backbone features ``[B, T, D]``, as they come from the embedding cache, to the outputs."""
        hidden = self.project(features)
        outputs = {name: head(hidden) for name, head in self.near.items()}
        if len(self.far):
            both = torch.cat([hidden, self.context(hidden)], 2)
            outputs |= {name: head(both) for name, head in self.far.items()}
        if "energy" in outputs:
            outputs["energy"] = outputs["energy"].sigmoid()
        return {name: value if name in ("energy", "label") else value.squeeze(-1) for name, value in outputs.items()}


def build(settings: EdmSettings) -> EdmModel:
    """The model of the settings."""
    if resolve_backbone(settings.backbone) == "cnn":
        return EdmModel(settings, CnnBackbone(settings.cnn))
    from . import mert

    return EdmModel(settings, mert.load(settings))


def resolve_backbone(name: str) -> str:
    """``auto`` is mert-95m where there is a GPU, else the CNN."""
    if name != "auto":
        return name
    return "mert-95m" if torch.cuda.is_available() else "cnn"
