"""Draws tokens for several clips at once, each from its own seed, with the same bits as if it were drawn alone.

Three things would otherwise let a clip depend on its company. A matrix product of another number of rows may be summed
in another order: the number of rows is fixed and rows without a clip are filled up. AudioCraft pads the texts of a batch
to the longest one and attends to the padding: here each clip attends to its own text only, as AudioCraft does with one
clip. One random generator would be shared: each clip has a table of uniform numbers drawn from its own seed.

Keys and values are kept in arrays that are allocated once (AudioCraft's streaming state is copied at every step, and
projects the text again).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from ..errors import UserError

if TYPE_CHECKING:
    from audiocraft.models.lm import LMModel
    from audiocraft.modules.transformer import StreamingMultiheadAttention

TEXT_STEP = 32  # a text is padded to a multiple of this many vectors, whatever the other clips' texts


@dataclass(frozen=True)
class Text:
    """What a clip attends to: ``vectors`` ``[2, L, D]``, its text's and those of no text at all.

    ``length`` of the L vectors count; where ``given`` is False there is no text, and both halves are the same.
    """

    vectors: torch.Tensor
    length: int
    given: bool

    @property
    def shape(self) -> tuple[int, bool]:
        """What clips must share to be drawn together."""
        return self.vectors.shape[1], self.given


def encode_text(model: LMModel, text: str) -> Text | None:
    """The vectors of a text (empty: none) as the model's conditioners give them; None for a model without conditioners.

    Raises UserError for a model that is conditioned in another way than by cross-attention.
    """
    if not model.condition_provider.conditioners:
        return None
    other = [name for way, names in model.fuser.fuse2cond.items() if way != "cross" for name in names]
    if other:
        raise UserError(f"this model is conditioned on {other[0]} other than by cross-attention, which cannot be generated from here")
    from audiocraft.modules.conditioners import ConditioningAttributes

    asked = [ConditioningAttributes(text={"description": words}) for words in (text or None, None)]
    tensors = model.condition_provider(model.condition_provider.tokenize(asked))
    device = next(model.parameters()).device
    _, vectors = model.fuser(torch.zeros(2, 1, model.dim, device=device), tensors)
    length = vectors.shape[1]
    return Text(F.pad(vectors, (0, 0, 0, -length % TEXT_STEP)), length, bool(text))


@dataclass
class Row:
    """One clip on its way: its ``tokens`` so far ``[K, T]``, its text and its source of random numbers."""

    tokens: torch.Tensor
    text: Text | None
    random: torch.Generator


@torch.inference_mode()
def extend(
    model: LMModel,
    clips: list[Row],
    rows: int,
    context: int,
    frames: int,
    choose: Callable,
    guidance: float,
    step: Callable[[float], object],
) -> None:
    """Add tokens to the clips until ``frames`` stand after the beginning of their last ``context`` ones.

    ``choose(logits [B, K, card], uniform [B, K]) -> tokens [B, K]`` draws; ``step(share)`` hears of each step's share. The
    clips (at most ``rows``) have equally many tokens and texts of the same shape.
    """
    filled = clips + [clips[0]] * (rows - len(clips))
    device = next(model.parameters()).device
    pattern = model.pattern_provider.get_pattern(frames)
    codes = torch.full((rows, model.num_codebooks, frames), -1, dtype=torch.long, device=device)
    if context:
        codes[..., :context] = torch.stack([clip.tokens[:, -context:] for clip in filled]).to(device)
    sequence, _, mask = pattern.build_pattern_sequence(codes, model.special_token_id)
    start, end = pattern.get_first_step_with_timesteps(context), sequence.shape[-1]
    drawn = [torch.rand(end - start, model.num_codebooks, dtype=torch.float64, generator=clip.random) for clip in clips]
    uniform = torch.stack(drawn + [drawn[0]] * (rows - len(clips))).to(device)
    guided = filled[0].text is not None and filled[0].text.given and guidance != 1.0
    vectors, lengths = _attended([clip.text for clip in filled], guided)
    with model.streaming(), _kept_attention(model, end, lengths):
        before = 0
        for offset in range(start, end):
            given = sequence[..., before:offset]
            logits = _next_logits(model, torch.cat([given, given]) if guided else given, vectors)
            if guided:
                with_text, without = logits.split(rows)
                logits = without + (with_text - without) * guidance
            token = choose(logits, uniform[:, offset - start])
            token = torch.where(mask[:, offset], token, model.special_token_id)
            sequence[..., offset] = torch.where(sequence[..., offset] == -1, token, sequence[..., offset])
            before = offset
            step(1 / (end - start))
    codes = pattern.revert_pattern_sequence(sequence, special_token=-1)[0][..., context:frames].cpu()
    for clip, new in zip(clips, codes, strict=False):
        clip.tokens = torch.cat([clip.tokens, new], dim=-1)


def chooser(temperature: float, top_k: int, top_p: float) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """How a token is drawn from logits ``[..., card]`` with a uniform number ``[...]`` in [0, 1): by inverse distribution.

    ``top_p`` > 0 keeps the likeliest tokens up to that sum, else ``top_k`` > 0 that many; temperature 0 takes the likeliest.
    """

    def choose(logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        if temperature <= 0:
            return logits.argmax(-1)
        shares, order = torch.softmax(logits.double() / temperature, dim=-1), None
        if top_p > 0:
            shares, order = shares.sort(dim=-1, descending=True, stable=True)
            shares = shares * (shares.cumsum(-1) - shares <= top_p)
        elif 0 < top_k < shares.shape[-1]:
            least = shares.kthvalue(shares.shape[-1] - top_k + 1, dim=-1, keepdim=True).values
            shares = shares * (shares >= least)
        heights = shares.cumsum(-1)
        token = torch.searchsorted(heights, (uniform * heights[..., -1]).unsqueeze(-1), right=True).clamp(max=shares.shape[-1] - 1)
        return (token if order is None else order.gather(-1, token)).squeeze(-1)

    return choose


def _attended(texts: list[Text | None], guided: bool) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Vectors ``[B, L, D]`` and their counts ``[B]``: with the texts first and, where guided, without them after that."""
    if texts[0] is None:
        return None, None
    halves = (0, 1) if guided else (0,)
    vectors = torch.cat([torch.stack([text.vectors[half] for text in texts]) for half in halves])
    return vectors, torch.tensor([text.length for text in texts] * len(halves), device=vectors.device)


def _next_logits(model: LMModel, sequence: torch.Tensor, vectors: torch.Tensor | None) -> torch.Tensor:
    """Logits ``[B, K, card]`` of what follows the sequence steps ``[B, K, S]`` and those before them."""
    x = sum(embed(sequence[:, k]) for k, embed in enumerate(model.emb))
    x = model.transformer(x, cross_attention_src=vectors)[:, -1]
    if model.out_norm:
        x = model.out_norm(x)
    return torch.stack([linear(x) for linear in model.linears], dim=1).float()


@contextlib.contextmanager
def _kept_attention(model: LMModel, steps: int, lengths: torch.Tensor | None) -> Iterator[None]:
    """Let the model's attention keep its keys and values in place, and attend to each row's own text."""
    replaced = []
    try:
        for layer in model.transformer.layers:
            own, cross = layer.self_attn, layer.cross_attention
            if own.custom and own.rope is None and own.kv_repeat == 1 and own.past_context is None:
                own.forward = _SelfAttention(own, steps)
                replaced.append(own)
            if cross is not None:
                if not cross.custom:
                    raise UserError(
                        "this model attends to text through torch's own module; train it with transformer_lm.memory_efficient=true"
                    )
                cross.forward = _CrossAttention(cross, lengths)
                replaced.append(cross)
        yield
    finally:
        for attention in replaced:
            del attention.forward


class _Attention:
    """What both kinds share: split heads, attend, join, project."""

    def __init__(self, module: StreamingMultiheadAttention):
        self.module = module
        self.heads = module.num_heads
        self.keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None

    def split(self, x: torch.Tensor, norm: str = "") -> torch.Tensor:
        """``[B, T, H*D]`` to ``[B, H, T, D]``, normalised where the module does so."""
        if norm and self.module.qk_layer_norm:
            x = getattr(self.module, norm)(x)
        if self.module.attention_as_float32:
            x = x.float()
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def attend(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, like: torch.Tensor, **how) -> tuple[torch.Tensor, None]:
        mixed = F.scaled_dot_product_attention(query, keys, values, **how)
        return self.module.out_proj(mixed.transpose(1, 2).flatten(2).to(like.dtype)), None


class _SelfAttention(_Attention):
    def __init__(self, module: StreamingMultiheadAttention, steps: int):
        super().__init__(module)
        self.steps, self.count = steps, 0

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: object) -> tuple[torch.Tensor, None]:
        projected = F.linear(query, self.module.in_proj_weight, self.module.in_proj_bias).chunk(3, dim=-1)
        q, k, v = self.split(projected[0], "q_layer_norm"), self.split(projected[1], "k_layer_norm"), self.split(projected[2])
        if self.keys is None:
            self.keys = k.new_empty(*k.shape[:2], self.steps, k.shape[3])
            self.values = v.new_empty(*v.shape[:2], self.steps, v.shape[3])
        first, self.count = self.count, self.count + q.shape[2]
        self.keys[:, :, first : self.count] = k
        self.values[:, :, first : self.count] = v
        # Several steps come at once only at the beginning, as the context that is continued.
        keys, values = self.keys[:, :, : self.count], self.values[:, :, : self.count]
        return self.attend(q, keys, values, query, is_causal=q.shape[2] > 1)


class _CrossAttention(_Attention):
    def __init__(self, module: StreamingMultiheadAttention, lengths: torch.Tensor):
        super().__init__(module)
        self.lengths, self.mask = lengths, None

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: object) -> tuple[torch.Tensor, None]:
        weights = self.module.in_proj_weight.chunk(3)
        biases = (None,) * 3 if self.module.in_proj_bias is None else self.module.in_proj_bias.chunk(3)
        if self.keys is None:
            self.keys = self.split(F.linear(key, weights[1], biases[1]), "k_layer_norm")
            self.values = self.split(F.linear(value, weights[2], biases[2]))
            self.mask = (torch.arange(key.shape[1], device=key.device) < self.lengths[:, None])[:, None, None]
        q = self.split(F.linear(query, weights[0], biases[0]), "q_layer_norm")
        return self.attend(q, self.keys, self.values, query, attn_mask=self.mask)
