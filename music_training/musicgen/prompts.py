"""What is asked of a music model: prompts (text, seed, audio to continue), and how tokens are drawn."""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from pathlib import Path

from .. import config
from ..errors import UserError


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

    def __post_init__(self) -> None:
        if not all(isinstance(text, str) for text in (self.name, self.text, self.audio)):
            raise UserError(f"prompt {self.name!r}: name, text and audio are texts; put numbers in quotes")
        if not isinstance(self.seed, int) or not abs(self.seed) < 2**63:
            raise UserError(f"prompt {self.name!r}: seed {self.seed!r} is no whole number of 64 bits")
        if self.audio_seconds is not None and not 0 < self.audio_seconds < math.inf:
            raise UserError(f"prompt {self.name!r}: {self.audio_seconds:g} seconds of audio to continue; more than 0")

    @property
    def stem(self) -> str:
        """A file name made from the prompt's name and seed: letters, digits and dashes only."""
        name = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-") or "prompt"
        if len(name) > 60:
            name = f"{name[:50]}-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"
        return f"{name}_seed{self.seed}"


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
