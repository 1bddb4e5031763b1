"""Generates music with a trained model: the same prompt and seed give the same bits, whatever else is generated.

Every clip is drawn from its own seed, one after the other. For a fixed number of compute threads two generations are
bit-identical, within a process and across processes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .. import files
from ..errors import UserError

if TYPE_CHECKING:
    import torch
    from audiocraft.models import MusicGen


@dataclass(frozen=True)
class Prompt:
    """What to generate: a ``text`` (empty: unconditional) drawn with ``seed``; ``name`` becomes the clip's file name."""

    name: str
    text: str = ""
    seed: int = 0

    @property
    def stem(self) -> str:
        """A file name made from the prompt's name and seed: letters, digits and dashes only."""
        return f"{re.sub(r'[^a-z0-9]+', '-', self.name.lower()).strip('-')[:60] or 'prompt'}_seed{self.seed}"


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: ``duration`` in seconds, ``top_k`` candidates (0: all), ``guidance`` for text."""

    duration: float = 5.0
    temperature: float = 1.0
    top_k: int = 250
    top_p: float = 0.0
    guidance: float = 3.0


def generate(model: MusicGen, prompt: Prompt, sampling: Sampling) -> torch.Tensor:
    """Generate one clip ``[C, T]`` at the model's sample rate, in [-1, 1] unless the codec overshoots."""
    import torch

    if prompt.text and "description" not in model.lm.condition_provider.conditioners:
        raise UserError(f"prompt {prompt.text!r}: this model was trained without text; leave the text empty")
    model.set_generation_params(
        duration=sampling.duration,
        temperature=sampling.temperature,
        top_k=min(sampling.top_k, model.compression_model.cardinality),
        top_p=sampling.top_p,
        cfg_coef=sampling.guidance,
    )
    torch.manual_seed(prompt.seed)
    with torch.no_grad():
        return model.generate([prompt.text or None])[0].cpu()


def write(path: Path, audio: torch.Tensor, sample_rate: int) -> Path:
    """Write a clip ``[C, T]`` as WAV or FLAC (by the suffix), atomically; peaks over full scale are scaled down."""
    import soundfile

    audio = audio / audio.abs().max().clamp(min=1.0)
    with files.atomic(path) as temporary:
        soundfile.write(temporary, audio.T.numpy(), sample_rate, format=path.suffix[1:].upper(), subtype="PCM_16")
    return path
