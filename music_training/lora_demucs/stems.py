"""New stems: an HTDemucs whose last layers give other sources than it was trained for."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence

import torch
from demucs.htdemucs import HTDemucs
from torch import nn

from ..errors import UserError

# A new stem starts as a copy of the stem of the base model that holds it.
PARENTS = {
    **dict.fromkeys(("kick", "hihat", "snare", "toms", "cymbals", "ride", "crash", "percussion", "clap"), "drums"),
    **dict.fromkeys(("lead_vocals", "backing_vocals", "choir", "rap", "speech"), "vocals"),
    **dict.fromkeys(("sub", "bass_guitar", "synth_bass", "808"), "bass"),
    **dict.fromkeys(("guitar", "piano", "keys", "synth", "strings", "brass", "pad", "lead", "effects", "melody"), "other"),
}


def parents(sources: Sequence[str], base: Sequence[str], given: Mapping[str, str] | None = None) -> dict[str, str]:
    """The stem of ``base`` from which each of ``sources`` starts; itself for a retained one.

    UserError for a name that looks like another one's (vocal, hi-hat) and for one whose parent is not known.
    """
    given = dict(given or {})
    found = {}
    for source in sources:
        if source in given:
            parent = given[source]
            if parent not in base:
                raise UserError(f"parents: {source} is to start from {parent!r}, but the base model has {', '.join(base)}")
        elif source in base:
            parent = source
        else:
            parent = PARENTS.get(source)
            if parent is None:
                raise UserError(f"sources: {source!r} is neither a stem of the base model ({', '.join(base)}){_meant(source, base)}")
            if parent not in base:
                raise UserError(f"sources: {source} would start from {parent!r}, but the base model has {', '.join(base)}; set parents")
        found[source] = parent
    strange = sorted(set(given) - set(sources))
    if strange:
        raise UserError(f"parents: {', '.join(strange)} is not among the sources {', '.join(sources)}")
    return found


def _meant(source: str, base: Sequence[str]) -> str:
    known = {re.sub(r"[^a-z0-9]", "", name): name for name in [*PARENTS, *base]}
    plain = re.sub(r"[^a-z0-9]", "", source.lower())
    close = difflib.get_close_matches(plain, known, n=1, cutoff=0.7)
    if close:
        return f" nor a known new one; did you mean '{known[close[0]]}'?"
    return f" nor a known new one; say from which of them it starts: parents={{{source}: other}}"


def heads(model: HTDemucs) -> list[str]:
    """Names of the layers whose channels are the sources: the last transposed convolutions of both branches."""
    last = len(model.decoder) - 1
    found = [name for name, _ in model.named_modules() if re.fullmatch(rf"decoder\.{last}\.(layers\.\d+\.)?conv_tr", name)]
    return found + [f"tdecoder.{len(model.tdecoder) - 1}.conv_tr"]


def widen(model: HTDemucs, sources: Sequence[str], starts: Mapping[str, str]) -> dict[str, nn.Module]:
    """Layers in place of the :func:`heads` that give ``sources``, each with its parent's weights: ``{name: layer}``.

    A retained source gives bit for bit what it gave before. The model is left as it is; see :func:`put`.
    """
    base = list(model.sources)
    order = [base.index(starts[source]) for source in sources]
    made = {}
    for name in heads(model):
        old = model.get_submodule(name)
        each = old.out_channels // len(base)
        channels = [place * each + channel for place in order for channel in range(each)]
        new = type(old)(
            old.in_channels, len(channels), old.kernel_size, old.stride, old.padding, old.output_padding, bias=old.bias is not None
        )
        with torch.no_grad():
            new.weight.copy_(old.weight[:, channels])
            if old.bias is not None:
                new.bias.copy_(old.bias[channels])
        made[name] = new.to(old.weight.device)
    return made


def put(model: HTDemucs, layers: Mapping[str, nn.Module], sources: Sequence[str]) -> None:
    """Put layers in the places of the heads and let the model bear the sources' names."""
    for name, layer in layers.items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, layer)
    model.sources = list(sources)
