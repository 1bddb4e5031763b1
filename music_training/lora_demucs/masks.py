"""A start for small models: an untrained HTDemucs that already passes the mixture through, with a gate for each source.

A randomly initialised HTDemucs must first learn to copy: thousands of steps in which every source is silence. Here the
outermost layers of the frequency branch start as what a trained one does with them. The first carries the magnitudes of
each group of ``stride`` frequencies in channels of their own, once for every source; the last gives them back through
its gated linear unit, which then is a mask for that source alone. What lies deeper starts at random as ever and steers
the masks. It wants magnitudes (``cac=False``: the phase is the mixture's); nothing of it is fixed in training.

**The level of silence.** HTDemucs takes the mean of all magnitudes of a window from them and divides by their deviation. A
bin without sound is then no longer 0 but minus mean over deviation, -0.2 to -0.6 from one window to the next, which no
layer is told: a source that is silent where others sound comes out as a haze of the whole mixture. That drowns a quiet one
(a hi-hat is 20 to 25 dB below the mixture). Where two channels are to spare and the deepest layer hears all frequencies at
once, they carry the level down to it and back up to all frequencies, read where recordings hold nothing: in the highest bin,
next to half the sample rate, which every converter and resampler has to filter out. Masks then are of what is above that level.
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
    """Give an untrained model's frequency branch the weights of masks, in place.

    The model's channels are ``n`` groups of ``sources x audio channels x stride``, and two or more to spare for the level of
    silence; UserError where they are not.
    """
    sources, heard, stride = len(model.sources), model.audio_channels, model.stride
    group = heard * stride  # the values of one source at one place
    width = model.encoder[0].conv.out_channels
    count = width // (sources * group) * sources * group
    spare = width - count
    if model.cac or not count or model.depth < 2 or (spare and not (spare >= 2 and _hears_all_at_once(model))):
        raise UserError(
            f"htdemucs.start=masks wants cac=false, a depth of 2 or more, and channels in multiples of {sources} sources x {heard} audio "
            f"channels x {stride} = {sources * group}, or 2 more where growth is 1 and nfft 16 * 4**(depth - 1); got "
            f"cac={str(model.cac).lower()}, depth={model.depth}, channels={width}, nfft={model.nfft}"
        )
    first, last = model.encoder[0], model.decoder[-1]
    margin = (model.kernel_size - stride) // 2
    with torch.no_grad():
        first.conv.weight[:count] = 0.0
        first.conv.bias[:count] = OFFSET
        last.conv_tr.weight.zero_()
        last.conv_tr.bias.fill_(SILENCE)
        for channel in range(count):
            source, ear, tap = channel // group % sources, channel % group // stride, margin + channel % stride
            first.conv.weight[channel, ear, tap, 0] = 1.0
            last.conv_tr.weight[channel, source * heard + ear, tap, 0] = sources * group / count
        _pass_through(first.rewrite, count, 2.0)  # twice, since its gates are half open
        first.rewrite.bias[:count] = -2.0 * _gelu(OFFSET + SILENCE)
        _pass_through(last.rewrite, count, 1.0)
        last.rewrite.bias[width:] = SHARE
        if spare:
            _carry_silence(model, count, count + 1, margin)


def _pass_through(layer: torch.nn.Conv2d, count: int, factor: float) -> None:
    """Values of a gated linear unit: the first ``count`` channels, times ``factor``; gates: less random."""
    width, middle = layer.in_channels, layer.kernel_size[0] // 2
    layer.weight[:count] = 0.0
    layer.weight[range(count), range(count), middle, middle] = factor
    layer.weight[width:].mul_(GATES)
    layer.bias.zero_()


def _hears_all_at_once(model: HTDemucs) -> bool:
    """Whether the deepest layer has one place for all frequencies, all layers are as wide, and none is normalised."""
    layers = [*model.encoder, *model.decoder]
    widths = {layer.conv.out_channels for layer in model.encoder}
    return not model.encoder[-1].pad and len(widths) == 1 and all(isinstance(layer.norm1, torch.nn.Identity) for layer in layers)


def _carry_silence(model: HTDemucs, up: int, down: int, margin: int) -> None:
    """Let the channel ``up`` of the encoder carry the level of the highest bin inwards, and ``down`` of the decoder back to all."""
    edge = margin + model.stride - 1  # the tap for the last frequency of a place
    middle = range(margin, margin + model.stride)  # the taps that meet every frequency once
    last, channels = model.decoder[-1], [up, down]
    level = OFFSET + SILENCE  # before the GELU
    for layer in model.encoder:
        conv, source = layer.conv, 0 if layer is model.encoder[0] else up
        conv.weight[channels] = 0.0
        conv.weight[up, source, edge if layer.pad else -1, 0] = 1.0
        conv.bias[up], conv.bias[down] = OFFSET, 0.0
        _only(layer.rewrite, up, up, 2.0 / _slope(level), level)
        _only(layer.rewrite, down)
        level = OFFSET  # from here on 0 is a level of SILENCE
    inject = model.tencoder[-1].conv
    inject.weight[channels] = inject.bias[channels] = 0.0
    model.freq_emb.embedding.weight[:, channels] = 0.0
    for layer in model.decoder:
        layer.rewrite.weight[:, down] = 0.0
        _only(layer.rewrite, up)
        if layer is model.decoder[0]:
            _only(layer.rewrite, down, up, 1.0)  # what it hears is its own skip connection, twice the level
        else:
            _only(layer.rewrite, down, down, 2.0 / _slope(OFFSET), OFFSET)
        if layer is not last:
            layer.conv_tr.weight[channels] = layer.conv_tr.weight[:, channels] = 0.0
            layer.conv_tr.weight[down, down, middle if layer.pad else slice(None), 0] = 1.0
            layer.conv_tr.bias[up], layer.conv_tr.bias[down] = 0.0, OFFSET
    last.conv_tr.weight[down, :, middle, 0] = 1.0
    factor, centre = _slope(OFFSET + SILENCE) / _slope(OFFSET), last.rewrite.kernel_size[0] // 2
    last.rewrite.weight[:up, down, centre, centre] = -factor
    last.rewrite.bias[:up] += factor * _gelu(OFFSET)


def _only(layer: torch.nn.Conv2d, channel: int, source: int | None = None, factor: float = 0.0, rest: float | None = None) -> None:
    """Let a channel of a gated linear unit be ``factor`` times another one, 0 where that is a GELU's value of ``rest``; gate half open."""
    width, middle = layer.in_channels, layer.kernel_size[0] // 2
    layer.weight[[channel, width + channel]] = 0.0
    layer.bias[[channel, width + channel]] = 0.0
    if source is not None:
        layer.weight[channel, source, middle, middle] = factor
        layer.bias[channel] = 0.0 if rest is None else -factor * _gelu(rest)


def _gelu(value: float) -> float:
    return float(functional.gelu(torch.tensor(value)))


def _slope(value: float) -> float:
    return (_gelu(value + 0.01) - _gelu(value - 0.01)) / 0.02
