"""Generation: temperature, top-k, top-p, a seed, a key-value cache, and a grammar that keeps every sequence valid MIDI.

The grammar is that of the tokenizer: tempo first, a note-on only for a pitch that is silent, a note-off only for one
that sounds, a velocity only before a note-on, no end while a note sounds; a bar is as long as it has to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy
import symusic
import torch
from torch import Tensor

from ...errors import UserError
from .. import emotions
from ..config import MidiSettings
from . import data
from .model import MidiTransformer
from .tokenizer import BAR, BOS, EOS, NOTE_OFF, PAD, SHIFT, SLOWEST, VELOCITY, MidiTokenizer


@dataclass(frozen=True)
class Sampling:
    """How to draw: temperature 0 takes the likeliest; ``guidance`` above 1 moves the logits away from those without an emotion.

    ``bar_ticks`` is the length of a bar (96: 4/4; 0: as the model will have it).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.95
    guidance: float = 1.5
    seed: int = 0
    max_tokens: int = 512
    bars: int = 4
    bar_ticks: int = 96
    cache: bool = True

    def __post_init__(self):
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0 or self.max_tokens < 8 or self.bars < 1:
            raise UserError(f"sampling: temperature >= 0, 0 < top_p <= 1, top_k >= 0, at least 8 tokens and 1 bar; got {self}")


class Grammar:
    """Which tokens may come next, for each of a batch of sequences of ``bars`` bars; ``multi`` allows changes of instrument."""

    def __init__(self, batch: int, bars: int, multi: bool, device: torch.device | str = "cpu", bar_ticks: int = 0):
        self.tick = torch.zeros(batch, dtype=torch.long, device=device)  # of the bar
        self.bar_ticks, self.lengths = bar_ticks, torch.arange(1, VELOCITY - SHIFT + 1, device=device)
        self.sounding = torch.zeros(batch, 128, dtype=torch.bool, device=device)
        self.place = torch.zeros(batch, dtype=torch.long, device=device)  # tokens since BOS
        self.last = torch.full((batch,), BOS, dtype=torch.long, device=device)
        self.pair = torch.zeros(batch, dtype=torch.bool, device=device)  # the last token closed a pair
        self.bars = torch.zeros(batch, dtype=torch.long, device=device)
        self.wanted, self.multi = bars, multi

    def allowed(self) -> Tensor:
        """``[B, 388]``: True where a token may follow."""
        batch = len(self.place)
        mask = torch.ones(batch, 388, dtype=torch.bool, device=self.place.device)
        mask[:, PAD] = mask[:, BOS] = False
        if not self.multi:  # the drums have no note-offs, and each instrument its own notes: then the decoder is what forgives
            mask[:, :NOTE_OFF] &= ~self.sounding
            mask[:, NOTE_OFF:SHIFT] &= self.sounding
            mask[:, EOS] &= ~self.sounding.any(1)
        open_velocity = (self.last >= VELOCITY) & (self.last < PAD) & ~self.pair
        mask[open_velocity, NOTE_OFF:] = False
        mask[open_velocity & self.sounding.all(1), SHIFT] = True
        if self.multi:
            mask[open_velocity, VELOCITY:PAD] = True
        enough = self.bars >= self.wanted
        mask[enough, BAR] = False
        mask[~enough, EOS] = False
        if self.bar_ticks:
            left = (self.bar_ticks - self.tick).clamp(min=0)
            mask[:, SHIFT:VELOCITY] &= self.lengths <= left[:, None]
            mask[left > 0, BAR] = False
            ended = (left == 0) & ~open_velocity
            mask[ended, :NOTE_OFF] = False
            mask[ended, VELOCITY:PAD] = False
        for place, (low, high) in enumerate(((VELOCITY, PAD), (SHIFT, VELOCITY), (BAR, BAR + 1))):
            header = self.place == place
            mask[header] = False
            mask[header, low:high] = True
        return mask

    def add(self, token: Tensor) -> None:
        """Take note of the token ``[B]`` that each sequence got."""
        rows = torch.arange(len(token), device=token.device)
        on, off = token < NOTE_OFF, (token >= NOTE_OFF) & (token < SHIFT)
        self.sounding[rows[on], token[on]] = True
        self.sounding[rows[off], token[off] - NOTE_OFF] = False
        before = (self.last >= VELOCITY) & (self.last < PAD) & ~self.pair
        self.pair = before & (token >= SHIFT) & (token < PAD)
        moved = (token >= SHIFT) & (token < VELOCITY) & ~self.pair
        self.tick = torch.where(token == BAR, 0, self.tick + (token - SHIFT + 1) * moved)
        self.bars += token == BAR
        self.last, self.place = token, self.place + 1


@torch.inference_mode()
def generate(
    model: MidiTransformer, emotion: Tensor, context: Tensor, sampling: Sampling, prompts: Sequence[numpy.ndarray] | None = None,
    multi: bool = False,
) -> list[list[int]]:  # fmt: skip
    """Sequences of tokens for ``emotion`` ``[B, 64]`` and ``context`` ``[B, 5]``; ``prompts`` are beginnings of one length.

    A sequence ends with EOS, when it begins the bar after the last wanted one, or at ``max_tokens``.
    """
    model.eval()
    device, batch = model.head.weight.device, len(emotion)
    starts = torch.from_numpy(numpy.stack(prompts)) if prompts is not None else torch.full((batch, 1), BOS)
    tokens = starts.to(device)
    grammar = Grammar(batch, sampling.bars, multi, device, sampling.bar_ticks)
    for column in tokens[:, 1:].T:
        grammar.add(column)
    guided = sampling.guidance != 1.0
    emotion, context = emotion.to(device), context.to(device)
    if guided:
        without = context.clone()
        without[:, 0] = 0
        emotion, context = torch.cat([emotion, torch.zeros_like(emotion)]), torch.cat([context, without])
    rng = torch.Generator(device).manual_seed(sampling.seed)
    caches, (_, state) = model.caches(len(emotion), sampling.max_tokens), model.beginning(len(emotion))
    done = torch.zeros(batch, dtype=torch.bool, device=device)
    fresh = tokens
    while not done.all() and tokens.shape[1] < sampling.max_tokens:
        given = torch.cat([fresh, fresh]) if guided else fresh
        if sampling.cache:
            logits, state = model.step(given, emotion, context, caches, state)
        else:
            logits = model(given, emotion, context)
        logits = logits[:, -1].float()
        if guided:
            felt, bare = logits.chunk(2)
            logits = bare + sampling.guidance * (felt - bare)
        token = _draw(logits.masked_fill(~grammar.allowed(), -torch.inf), sampling, rng)
        token = torch.where(done, PAD, token)
        grammar.add(token)
        done |= (token == EOS) | (grammar.bars > sampling.bars)
        tokens = torch.cat([tokens, token[:, None]], 1)
        fresh = token[:, None] if sampling.cache else tokens
    return [[token for token in row if token != PAD] for row in tokens.tolist()]


def scores(
    model: MidiTransformer, felt: Sequence[Sequence[float]], sampling: Sampling, *, tempo: float | None = None, key: str = "",
    prompts: Sequence[numpy.ndarray] | None = None, multi: bool = False,
) -> list[symusic.Score]:  # fmt: skip
    """Scores for emotions, in a key (``F# minor``; else in C with the mode left to the emotion) and a tempo (else left to the model)."""
    tonic, major = data.parse_key(key) if key else (0, None)
    emotion = torch.from_numpy(numpy.stack([emotions.padded(emotions.checked(one)) for one in felt]))
    context = torch.from_numpy(numpy.stack([data.context_of(tempo, major)] * len(felt)))
    if tempo is not None and prompts is None:
        value = round((tempo - SLOWEST) * 10)
        if not 0 <= value < 3072:
            raise UserError(f"tempo {tempo:g}: from 20 to 327 beats per minute")
        prompts = [numpy.array([BOS, VELOCITY + value // 96, SHIFT + value % 96])] * len(felt)
    made = generate(model, emotion, context, sampling, prompts, multi)
    return [data.transposed(MidiTokenizer().decode(row), data.key_shift(tonic)) for row in made]


def longer(
    model: MidiTransformer, settings: MidiSettings, felt: Sequence[Sequence[float]], sampling: Sampling, *, tempo: float | None = None,
    key: str = "", prompt: Path | str | symusic.Score | None = None, prompt_bars: int = 1,
) -> list[symusic.Score]:  # fmt: skip
    """Scores of ``sampling.bars`` bars, also more than the model was trained on: each further part goes on from the last bar.

    ``prompt`` gives the first ``prompt_bars`` bars; its own key is taken where none is asked.
    """
    multi = settings.drums or not settings.merge
    prompts = None
    if prompt is not None:
        given = data.read(prompt)
        own = data.key_name(*data.measures.key_of(given))
        prompts = [data.prompt_tokens(given, settings, prompt_bars, own)] * len(felt)
        key, tempo = key or own, tempo or data.measures.tempo_of(given)
    in_c = f"C {key.partition(' ')[2]}" if key and data.parse_key(key) else ""  # the model knows C only; its mode is a condition
    part = min(sampling.bars, settings.bars)
    room = settings.context + (len(prompts[0]) if prompts else 0)
    first = replace(sampling, bars=part, max_tokens=room)
    made = scores(model, felt, first, tempo=tempo, key=in_c, prompts=prompts, multi=multi)
    while part < sampling.bars:
        more = min(settings.bars - 1, sampling.bars - part) if settings.bars > 1 else 1
        for number, score in enumerate(made):  # the last bars differ in length, so one by one
            last, end = data.last_bar(score)
            tokens = data.advance(MidiTokenizer().encode_array(last), end)
            drawn = replace(
                sampling, bars=1 + more, seed=sampling.seed + part * len(felt) + number, max_tokens=settings.context + len(tokens)
            )
            following = scores(model, [felt[number]], drawn, tempo=data.measures.tempo_of(last), prompts=[tokens], multi=multi)[0]
            made[number] = data.joined(score, following, end)
        part += more
    shift = data.key_shift(data.parse_key(key)[0]) if key else 0
    return [data.transposed(score, shift) for score in made]


def _draw(logits: Tensor, sampling: Sampling, rng: torch.Generator) -> Tensor:
    """One token of each row of logits ``[B, V]``."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = logits / sampling.temperature
    if sampling.top_k:
        least = logits.topk(min(sampling.top_k, logits.shape[-1]), -1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    shares = logits.softmax(-1)
    if sampling.top_p < 1:
        ordered, places = shares.sort(-1, descending=True)
        beyond = ordered.cumsum(-1) - ordered >= sampling.top_p
        shares = shares.masked_fill(torch.zeros_like(beyond).scatter(1, places, beyond), 0.0)
    return torch.multinomial(shares, 1, generator=rng).squeeze(1)
