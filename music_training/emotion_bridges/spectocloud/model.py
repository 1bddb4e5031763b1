"""Spectocloud's model: mel frames and an emotion to positions and colours of a cloud's points.

Shapes: mel ``[B, T, 64]`` (natural log of powers, any T), emotion ``[B, 64]``; positions ``[B, points, 3]`` in [-1, 1]
and colours ``[B, points, 3]`` in [0, 1], in the order of time.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...errors import UserError
from ..config import SpectocloudSettings
from ..emotions import SIZE
from . import mel as front
from .targets import RANGE, SHARPNESS

PER_SLOT = 12  # points that are decoded together


class Layer(nn.Module):
    """A residual convolution over time whose output the emotion scales and shifts (FiLM, Perez et al. 2018); ``[B, C, T]``."""

    def __init__(self, width: int, dilation: int):
        super().__init__()
        self.conv = nn.Conv1d(width, width, 5, padding=2 * dilation, dilation=dilation)
        self.out = nn.Conv1d(width, width, 1)
        self.film = nn.Linear(width, 2 * width)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, hidden: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.film(condition).unsqueeze(2).chunk(2, 1)
        return hidden + self.out(functional.gelu(self.conv(hidden) * (1 + scale) + shift))


class Colour(nn.Module):
    """The colours of points ``[B, N, 3]`` under emotions ``[B, 64]``: what a place means is scaled and shifted by the emotion.

    The emotion comes with the cosines and sines of its angle on the circumplex, once, twice and three times turned: hues
    follow that angle, and there is no telling it from valence and arousal by a few layers in a few hundred updates.
    """

    TURNS = 3

    def __init__(self, width: int = 64):
        super().__init__()
        self.emotion = nn.Sequential(
            nn.Linear(SIZE + 2 * self.TURNS, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 2 * width)
        )
        self.point = nn.Linear(3, width)
        self.out = nn.Sequential(nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 3))

    def forward(self, cloud: Tensor, emotion: Tensor) -> Tensor:
        scale, shift = self.emotion(torch.cat([emotion, *self.turns(emotion)], 1)).unsqueeze(1).chunk(2, 2)
        return torch.sigmoid(self.out(self.point(cloud) * (1 + scale) + shift))

    def turns(self, emotion: Tensor) -> list[Tensor]:
        """``[cos k a, sin k a]`` of the angle ``a`` of valence and arousal, k from 1 on; zeros where there is none."""
        once = emotion[:, :2] / emotion[:, :2].square().sum(1, keepdim=True).clamp(min=1e-6).sqrt()
        cosine, sine = once.unbind(1)
        found = [once]
        for _ in range(self.TURNS - 1):
            before, after = found[-1].unbind(1)
            found.append(torch.stack([before * cosine - after * sine, before * sine + after * cosine], 1))
        return found


class Spectocloud(nn.Module):
    """A convolutional encoder over time, and a decoder that gives each stretch of equal energy its share of the points.

    The stretches come from the sound itself: between two of them lies the same part of the clip's density, as in the
    target's draw. So the points stand where the music is, however long the clip, and what has to be learned is local.
    """

    def __init__(self, settings: SpectocloudSettings):
        super().__init__()
        if settings.points % PER_SLOT:
            raise UserError(f"points {settings.points}: must be a multiple of {PER_SLOT}")
        width = settings.width
        self.slots = settings.points // PER_SLOT
        self.condition = nn.Sequential(nn.Linear(SIZE, width), nn.GELU(), nn.Linear(width, width))
        self.front = nn.Conv1d(front.BANDS, width, 3, padding=1)
        self.layers = nn.ModuleList(Layer(width, 2 ** (number % 4)) for number in range(settings.layers))
        self.decode = nn.Sequential(nn.Linear(width + 3 * front.BANDS, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU())
        self.position = nn.Linear(256, 3 * PER_SLOT)
        self.colour = Colour()
        with torch.no_grad():  # at the start: spread over the frequencies, and where the slot is
            self.position.weight.mul_(0.3)
            spread = torch.zeros(PER_SLOT, 3)
            spread[:, 1] = torch.linspace(-1.2, 1.2, PER_SLOT)
            spread[:, 2] = 0.8
            self.position.bias.copy_(spread.flatten())

    def forward(self, mel: Tensor, emotion: Tensor) -> tuple[Tensor, Tensor]:
        level = self.levels(mel)
        condition = self.condition(emotion)
        hidden = self.front(3 * (level.transpose(1, 2) - 0.5))
        for layer in self.layers:
            hidden = layer(hidden, condition)
        near = torch.cat([hidden, *self.neighbours(level.transpose(1, 2))], 1)
        weights, centre = self.stretches(level)
        local = self.decode((near @ weights.transpose(1, 2)).transpose(1, 2))  # [B, slots, 256]
        offset, frequency, energy = self.position(local).unflatten(2, (PER_SLOT, 3)).unbind(3)
        time = (2 * centre - 1).unsqueeze(2) + 0.1 * torch.tanh(offset)
        cloud = torch.stack([time.clamp(-1, 1), torch.tanh(frequency), torch.tanh(energy)], 3).flatten(1, 2)
        return cloud, self.colour(cloud.detach(), emotion)  # no point moves for its colour's sake

    @staticmethod
    def levels(mel: Tensor) -> Tensor:
        """Levels in [0, 1] as :func:`.targets.levels` has them."""
        decibels = mel * (10 / math.log(10))
        top = decibels.amax((1, 2), keepdim=True)
        return ((decibels - top) / RANGE + 1).clamp(0, 1) * (top >= -90)

    @staticmethod
    def neighbours(level: Tensor) -> list[Tensor]:
        """A frame ``[B, F, T]`` and the ones before and after it."""
        return [level, functional.pad(level, (1, 0))[:, :, :-1], functional.pad(level, (0, 1))[:, :, 1:]]

    def stretches(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Weights ``[B, slots, T]`` that read the frames at the slots' middles, and these middles in [0, 1] ``[B, slots]``."""
        mass = level.double().pow(SHARPNESS).sum(2) + 1e-6  # in double: a quiet frame takes small differences of the sum to large ones
        total = mass.sum(1, keepdim=True)
        done = mass.cumsum(1) / total
        share_of = mass / total
        began = done - share_of
        wanted = (torch.arange(self.slots, device=level.device).double() + 0.5).div(self.slots)[None, :, None]
        passed = ((wanted - began.unsqueeze(1)) / share_of.unsqueeze(1)).clamp(0, 1)
        place = passed.sum(2).to(level.dtype)  # frames passed, with a fraction
        frames = torch.arange(level.shape[1], device=level.device) + 0.5
        weights = (1 - (place.unsqueeze(2) - frames).abs()).clamp(min=0)
        return weights / weights.sum(2, keepdim=True).clamp(min=1e-6), place / level.shape[1]
