"""The MIDI generator: a decoder transformer with rotary positions, conditioned on emotion and musical context throughout.

Shapes: tokens ``[B, T]``, emotion ``[B, 64]``, context ``[B, 5]`` (see :func:`.data.context_of`); logits ``[B, T, 388]``.
What came before is held in the cache ``[layers, 2, B, heads, P, width / heads]`` and the state ``[B, 129]``: how often
each pitch sounds, and the ticks since the bar began. Both follow from the tokens; given to the model as they are, it need
not learn to count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..config import MidiSettings
from ..emotions import SIZE
from .data import CONTEXT
from .tokenizer import BAR, NOTE_OFF, SHIFT, VELOCITY, MidiTokenizer

VOCABULARY = MidiTokenizer.vocab_size
PITCHES = 128
LONGEST_BAR = 192  # ticks that have a place of their own


Remember = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Cache:
    """Keys and values of one layer in memory that is there from the start: a step writes its own and copies nothing."""

    def __init__(self, batch: int, heads: int, length: int, width: int, like: Tensor):
        self.held, self.count = like.new_zeros(2, batch, heads, length, width), 0

    def __call__(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        start, self.count = self.count, self.count + key.shape[2]
        self.held[0, :, :, start : self.count], self.held[1, :, :, start : self.count] = key, value
        return self.held[0, :, :, : self.count], self.held[1, :, :, : self.count]


class Block(nn.Module):
    """Attention and a feed-forward part; the condition scales and shifts the input of both (FiLM, zero at the start)."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.film = nn.Linear(width, 4 * width)
        self.mix = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        for layer in (self.film, self.out, self.down):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, hidden: Tensor, condition: Tensor, turn: Tensor, mask: Tensor | None, remember: Remember | None) -> Tensor:
        """``hidden`` ``[B, T, C]``, ``turn`` ``[2, T, D]`` (cosines and sines); ``remember`` puts keys and values behind earlier ones."""
        scale, shift, scale_after, shift_after = self.film(condition).unsqueeze(1).chunk(4, -1)
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in self.mix(self.norms[0](hidden) * (1 + scale) + shift).chunk(3, -1)
        )
        query, key = _turned(query, turn), _turned(key, turn)
        if remember is not None:
            key, value = remember(key, value)
        drop = self.dropout if self.training else 0.0
        found = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=drop, is_causal=remember is None)
        hidden = hidden + self.out(found.transpose(1, 2).flatten(2))
        inner = self.norms[1](hidden) * (1 + scale_after) + shift_after
        return hidden + self.down(functional.gelu(self.up(inner), approximate="tanh"))


class MidiTransformer(nn.Module):
    """Next-token logits; ``forward(tokens, emotion, context)`` trains, with ``past`` it goes on from a cache."""

    def __init__(self, settings: MidiSettings, bigrams: Tensor | None = None):
        super().__init__()
        width = settings.width
        self.heads, self.layers, self.head_width = settings.heads, settings.layers, width // settings.heads
        self.embed = nn.Embedding(VOCABULARY, width)
        self.place = nn.Embedding(LONGEST_BAR, width)
        self.chord = nn.Linear(PITCHES, width, bias=False)
        self.condition = nn.Sequential(nn.Linear(SIZE + CONTEXT, width), nn.GELU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(Block(width, settings.heads, settings.dropout) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY)
        self.bias = nn.Linear(width, VOCABULARY, bias=False)  # what an emotion makes likelier everywhere
        self.follow = nn.Embedding(VOCABULARY, VOCABULARY)  # which token follows which
        self.silent = nn.Parameter(torch.tensor([-6.0, 0.0]))  # logits of ending what is silent, striking what sounds
        for layer in (self.embed, self.place):
            nn.init.normal_(layer.weight, std=0.5)
        nn.init.normal_(self.chord.weight, std=0.2)
        for layer in (self.head, self.bias, self.follow):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.head.bias)
        if bigrams is not None:
            self.follow.weight.data.copy_(bigrams)
        rates = 10000 ** (-torch.arange(0, self.head_width, 2) / self.head_width)
        self.register_buffer("rates", rates, persistent=False)

    def forward(
        self, tokens: Tensor, emotion: Tensor, context: Tensor, past: Tensor | None = None, state: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Logits; with ``past`` and ``state`` (see :meth:`beginning`) also both with these tokens in them."""
        if past is None:
            return self.run(tokens, emotion, context)[0]
        before = past.shape[4]
        order = torch.arange(before + tokens.shape[1], device=tokens.device)
        mask = order[None] <= order[before:, None]
        kept: list[Tensor] = []

        def grown(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            held = past[len(kept)]
            kept.append(torch.stack([torch.cat([held[0], key], 2), torch.cat([held[1], value], 2)]))
            return kept[-1][0], kept[-1][1]

        logits, state = self.run(tokens, emotion, context, before, state, mask, [grown] * self.layers)
        return logits, torch.stack(kept), state

    def run(
        self, tokens: Tensor, emotion: Tensor, context: Tensor, before: int = 0, state: Tensor | None = None, mask: Tensor | None = None,
        remember: Sequence[Remember] | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Logits and the new state; ``before`` tokens went before, ``remember`` has a cache for each layer."""
        condition = self.condition(torch.cat([emotion, context], 1))
        counts, ticks = self.states(tokens, state)
        sounding = (counts > 0).to(condition.dtype)
        positions = torch.arange(before, before + tokens.shape[1], device=tokens.device)
        angles = (positions[:, None] * self.rates).repeat(1, 2)
        turn = torch.stack([angles.cos(), angles.sin()])
        hidden = self.embed(tokens) + self.place(ticks.long().clamp(0, LONGEST_BAR - 1)) + self.chord(sounding) + condition.unsqueeze(1)
        for number, block in enumerate(self.blocks):
            hidden = block(hidden, condition, turn, mask, remember[number] if remember else None)
        logits = self.head(self.norm(hidden)) + self.bias(condition).unsqueeze(1) + self.follow(tokens)
        known = torch.cat([self.silent[1] * sounding, self.silent[0] * (1 - sounding)], 2)
        logits = torch.cat([logits[..., :SHIFT] + known, logits[..., SHIFT:]], 2)
        return logits, torch.cat([counts[:, -1], ticks[:, -1:]], 1)

    def step(self, tokens: Tensor, emotion: Tensor, context: Tensor, caches: Sequence[Cache], state: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and state of the tokens that follow those in ``caches``, which take them in."""
        before, time = caches[0].count, tokens.shape[1]
        order = torch.arange(before + time, device=tokens.device)
        mask = order[None] <= order[before:, None] if time > 1 else None  # one token sees all before it
        return self.run(tokens, emotion, context, before, state, mask, caches)

    def caches(self, batch: int, length: int) -> list[Cache]:
        """Empty caches for sequences of at most ``length`` tokens."""
        return [Cache(batch, self.heads, length, self.head_width, self.head.weight.detach()) for _ in range(self.layers)]

    @staticmethod
    def states(tokens: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """After each token how often each pitch sounds ``[B, T, 128]`` and the ticks since the bar began ``[B, T]``, as floats."""
        pitches = torch.arange(PITCHES, device=tokens.device)
        struck = (tokens.unsqueeze(2) == pitches).float() - (tokens.unsqueeze(2) == pitches + NOTE_OFF).float()
        # logical_and and products in place of "&" and where with a number, which Core ML's converter does not know
        moved = (tokens - SHIFT + 1).float() * torch.logical_and(tokens >= SHIFT, tokens < VELOCITY).float()
        counts, total = struck.cumsum(1), moved.cumsum(1)
        if state is not None:
            counts, total = counts + state[:, None, :PITCHES], total + state[:, PITCHES:]
        order = torch.arange(tokens.shape[1], device=tokens.device)
        earlier = torch.logical_and(order[None] <= order[:, None], (tokens == BAR).unsqueeze(1))  # [B, T, T]
        began = (earlier.float() * total.unsqueeze(1)).amax(2)
        return counts, total - began

    def beginning(self, batch: int) -> tuple[Tensor, Tensor]:
        """The cache and the state before the first token."""
        like = self.head.weight
        return like.new_zeros(self.layers, 2, batch, self.heads, 0, self.head_width), like.new_zeros(batch, PITCHES + 1)


def _turned(values: Tensor, turn: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021): each pair (i, i + D/2) of a head turned by its angle."""
    first, second = values.chunk(2, -1)
    return values * turn[0] + torch.cat([-second, first], -1) * turn[1]
