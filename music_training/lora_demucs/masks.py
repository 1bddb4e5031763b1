"""A start for small models: an untrained HTDemucs that already passes the mixture through, with a gate for each source.

A randomly initialised HTDemucs must first learn to copy: thousands of steps in which every source is silence. Here the
outermost layers of the frequency branch start as what a trained one does with them. The first carries the magnitudes of
each group of ``stride`` frequencies in channels of their own, once for every source; the last gives them back through
its gated linear unit, which then is a mask for that source alone. What lies deeper starts at random as ever and steers
the masks. It wants magnitudes (``cac=False``: the phase is the mixture's); nothing of it is fixed in training.
"""

from __future__ import annotations

import torch
from demucs.htdemucs import HTDemucs
from torch.nn import functional

from ..errors import UserError

OFFSET = 2.0  # added before the GELU, which is nearly linear there
SILENCE = -0.3  # magnitudes of silence, after the model's normalisation (that of music: 0.2 to 0.5)
GATES = 0.3  # of the usual random weights: gates begin half open, not shut
SHARE = -1.1  # a gate of 1/4 where nothing speaks


def start_as_masks(model: HTDemucs) -> None:
    """Give an untrained model's first and last layers of the frequency branch the weights of masks, in place.

    The model's channels are ``n`` groups of ``sources x audio channels x stride``; UserError where they are not.
    """
    sources, heard, stride = len(model.sources), model.audio_channels, model.stride
    group = heard * stride  # the values of one source at one place
    width = model.encoder[0].conv.out_channels
    if model.cac or width % (sources * group) or model.depth < 2:
        raise UserError(
            f"htdemucs.start=masks wants cac=false, a depth of 2 or more, and channels in multiples of {sources} sources x {heard} audio "
            f"channels x {stride} = {sources * group}; got cac={str(model.cac).lower()}, depth={model.depth}, channels={width}"
        )
    first, last = model.encoder[0], model.decoder[-1]
    margin = (model.kernel_size - stride) // 2
    places = [(channel // group % sources, channel % group // stride, margin + channel % stride) for channel in range(width)]
    with torch.no_grad():
        first.conv.weight.zero_()
        first.conv.bias.fill_(OFFSET)
        last.conv_tr.weight.zero_()
        last.conv_tr.bias.fill_(SILENCE)
        for channel, (source, ear, tap) in enumerate(places):
            first.conv.weight[channel, ear, tap, 0] = 1.0
            last.conv_tr.weight[channel, source * heard + ear, tap, 0] = sources * group / width
        _pass_through(first.rewrite, 2.0)  # twice, since its gates are half open
        first.rewrite.bias[:width] = -2.0 * float(functional.gelu(torch.tensor(OFFSET + SILENCE)))
        _pass_through(last.rewrite, 1.0)
        last.rewrite.bias[width:] = SHARE


def _pass_through(layer: torch.nn.Conv2d, factor: float) -> None:
    """Values of a gated linear unit: the same channel, times ``factor``; gates: less random."""
    width, middle = layer.in_channels, layer.kernel_size[0] // 2
    layer.weight[:width].zero_()
    layer.weight[range(width), range(width), middle, middle] = factor
    layer.weight[width:].mul_(GATES)
    layer.bias.zero_()
