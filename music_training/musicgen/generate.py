"""Generates music with a trained model: ``python -m music_training.musicgen.generate "a house track" --duration 10``

Clips are drawn together, each from its own seed: the same prompt, seed and sampling give the same bits, whatever else is
generated with them (for one device and one number of compute threads). What is longer than the model's training examples
is drawn in windows, each of which continues the end of the one before.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from .. import config, files, profiles, runs, stages
from ..errors import UserError, run_command
from ..library import audio
from . import clips

if TYPE_CHECKING:
    import torch
    from audiocraft.models import MusicGen

PROMPTS = files.REPOSITORY / "model_config" / "prompts.yaml"
FORMATS = ("wav", "flac")


@dataclass(frozen=True)
class Prompt:
    """What to generate: a ``text`` (empty: none) drawn with ``seed``; ``name`` becomes the clip's file name.

    ``audio`` names a file that is continued: its first ``audio_seconds`` (None: all of it), which the clip begins with.
    """

    name: str
    text: str = ""
    seed: int = 0
    audio: str = ""
    audio_seconds: float | None = None

    @property
    def stem(self) -> str:
        """A file name made from the prompt's name and seed: letters, digits and dashes only."""
        return f"{re.sub(r'[^a-z0-9]+', '-', self.name.lower()).strip('-')[:60] or 'prompt'}_seed{self.seed}"


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: ``duration`` in seconds (with what is continued), ``top_k`` candidates (0: all), ``guidance``.

    Beyond the length of the training examples each window continues the last ``overlap`` share of such a length.
    ``rows`` clips are computed together; where there are fewer, the rest is filled up, because bits depend on how many.
    """

    duration: float = 5.0
    temperature: float = 1.0
    top_k: int = 250
    top_p: float = 0.0
    guidance: float = 3.0
    overlap: float = 0.4
    rows: int = 8

    def __post_init__(self) -> None:
        if not 0 < self.duration < math.inf:
            raise UserError(f"duration {self.duration:g}: a number of seconds above 0")
        if self.temperature < 0 or not math.isfinite(self.temperature):
            raise UserError(f"temperature {self.temperature:g}: 0 (the likeliest tokens) or above")
        if self.top_k < 0:
            raise UserError(f"top_k {self.top_k}: 0 (all) or above")
        if not 0 <= self.top_p <= 1:
            raise UserError(f"top_p {self.top_p:g}: between 0 (off) and 1")
        if not 0 < self.overlap < 1:
            raise UserError(f"overlap {self.overlap:g}: a share between 0 and 1")
        if self.rows < 1:
            raise UserError(f"rows {self.rows}: at least 1")


def read_prompts(path: Path, count: int | None = None) -> list[Prompt]:
    """Read prompts (a YAML list of name, text, seed, audio, audio_seconds); UserError for a file that holds none."""
    content = config.parse_yaml(path.read_text(encoding="utf-8"), str(path)) if path.is_file() else None
    if not isinstance(content, list) or not content:
        raise UserError(f"{path}: expected a YAML list of prompts, each with name, text and seed")
    try:
        prompts = [Prompt(**prompt) for prompt in content][:count]
    except TypeError as error:
        raise UserError(f"{path}: a prompt has name, text, seed, audio and audio_seconds ({error})") from None
    stems = [prompt.stem for prompt in prompts]
    twice = next((stem for stem in stems if stems.count(stem) > 1), None)
    if twice:
        raise UserError(f"{path}: two prompts would both be written as {twice}; give them other names or seeds")
    return prompts


def takes_text(model: MusicGen) -> bool:
    """Whether a model was trained with descriptions."""
    return "description" in model.lm.condition_provider.conditioners


def generate(model: MusicGen, prompt: Prompt, sampling: Sampling) -> torch.Tensor:
    """Generate one clip ``[C, T]`` at the model's sample rate, in [-1, 1] unless the codec overshoots."""
    return generate_all(model, [prompt], sampling)[0]


def generate_all(model: MusicGen, prompts: Sequence[Prompt], sampling: Sampling, label: str = "") -> list[torch.Tensor]:
    """Generate a clip ``[C, T]`` for each prompt, ``sampling.rows`` at a time; with a ``label`` a progress bar is shown.

    Raises UserError for a text that the model was not trained with and for audio that leaves nothing to generate.
    """
    import torch

    from ..progress import Progress
    from .decoding import Row, encode_text

    frames = int(sampling.duration * model.frame_rate)
    if frames < 1:
        raise UserError(f"duration {sampling.duration:g} s: shorter than one frame of the codec ({1 / model.frame_rate:g} s)")
    rows = []
    for prompt in prompts:
        if prompt.text and not takes_text(model):
            raise UserError(f"prompt {prompt.text!r}: this model was trained without text; leave the text empty")
        with torch.inference_mode():
            tokens, text = _beginning(model, prompt), encode_text(model.lm, prompt.text)
        if tokens.shape[1] >= frames:
            seconds = tokens.shape[1] / model.frame_rate
            raise UserError(f"{prompt.audio}: {seconds:g} s to continue leave nothing to generate of a duration of {sampling.duration:g} s")
        rows.append(Row(tokens, text, torch.Generator().manual_seed(prompt.seed)))
    alike: dict[tuple, list[Row]] = {}
    for row in rows:
        alike.setdefault((row.tokens.shape[1], row.text and row.text.shape), []).append(row)
    parts = [some[start : start + sampling.rows] for some in alike.values() for start in range(0, len(some), sampling.rows)]
    seconds = sum(sampling.duration - part[0].tokens.shape[1] / model.frame_rate for part in parts for _ in part)
    with Progress(round(seconds, 2), label, "s") if label else _Silent() as shown:
        for part in parts:
            _fill(model, part, frames, sampling, shown)
    with torch.no_grad():  # clip by clip: the bits of a convolution depend on the batch, and its speed does not
        return [model.compression_model.decode(row.tokens[None].to(model.device), None)[0].cpu() for row in rows]


def _beginning(model: MusicGen, prompt: Prompt) -> torch.Tensor:
    """The tokens ``[K, T]`` of what a prompt continues; T is 0 where it continues nothing."""
    import torch

    if not prompt.audio:
        return torch.zeros(model.lm.num_codebooks, 0, dtype=torch.long)
    samples, _ = audio.read(files.absolute(prompt.audio), model.sample_rate, channels=True)
    if prompt.audio_seconds is not None:
        samples = samples[:, : int(prompt.audio_seconds * model.sample_rate)]
    if samples.shape[1] < model.sample_rate / model.frame_rate:
        raise UserError(f"{prompt.audio}: nothing to continue ({samples.shape[1] / model.sample_rate:g} s)")
    if samples.shape[0] != model.audio_channels:
        samples = samples.mean(0, keepdims=True).repeat(model.audio_channels, axis=0)
    codes, scale = model.compression_model.encode(torch.from_numpy(samples)[None].to(model.device))
    if scale is not None:
        raise UserError(f"{prompt.audio}: this codec normalises levels, and cannot be continued from")
    return codes[0, : model.lm.num_codebooks].cpu()


def _fill(model: MusicGen, part: list, frames: int, sampling: Sampling, shown) -> None:
    """Draw the tokens of clips that begin alike, up to ``frames``, window by window."""
    from .decoding import chooser, extend

    window = int(model.max_duration * model.frame_rate)
    carried = max(1, int(sampling.overlap * window))
    choose = chooser(sampling.temperature, sampling.top_k, sampling.top_p)
    with model.autocast:
        while (done := part[0].tokens.shape[1]) < frames:
            context = done if frames <= window else min(done, carried)
            until = min(window, context + frames - done)
            step = len(part) / model.frame_rate
            extend(model.lm, part, sampling.rows, context, until, choose, sampling.guidance, lambda step=step: shown.update(step))


class _Silent:
    """Progress that nobody asked for."""

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, _amount: float) -> None:
        pass


def write(path: Path, audio: torch.Tensor, sample_rate: int) -> Path:
    """Write a clip ``[C, T]`` as WAV or FLAC (by the suffix), atomically; peaks over full scale are scaled down."""
    import soundfile

    audio = audio / audio.abs().max().clamp(min=1.0)
    with files.atomic(path) as temporary:
        soundfile.write(temporary, audio.T.numpy(), sample_rate, format=path.suffix[1:].upper(), subtype="PCM_16")
    return path
