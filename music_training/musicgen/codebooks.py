"""Codebooks that live: AudioCraft's vector quantiser with a revival that works.

Upstream replaces a dead code in ``embed``, which the same forward pass overwrites from ``embed_avg``; and after the
k-means initialisation ``embed_avg`` is not weighted by the cluster sizes. So dead codes stay dead, and the first update
scatters the initial codes. Here both averages follow, as in the update rule itself (van den Oord et al. 2017,
"Neural discrete representation learning", appendix A.1): ``embed = embed_avg / cluster_size``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import flashy
import torch
from audiocraft.quantization import DummyQuantizer
from audiocraft.quantization.core_vq import EuclideanCodebook, sample_vectors
from einops import rearrange
from torch import nn


class LivingCodebook(EuclideanCodebook):
    """A Euclidean codebook whose dead codes are reborn as vectors of the batch."""

    def init_embed_(self, data: torch.Tensor) -> None:
        """Start from k-means over the first batch ``[N, D]``; a code that won no vector starts as a random one."""
        if self.inited:
            return
        super().init_embed_(data)
        self.cluster_size.clamp_(min=1.0)
        self.embed_avg.copy_(self.embed * self.cluster_size[:, None])

    def expire_codes_(self, batch_samples: torch.Tensor) -> None:
        """Replace codes used less often than the threshold by vectors of the batch ``[..., D]``."""
        dead = self.cluster_size < self.threshold_ema_dead_code
        if self.threshold_ema_dead_code == 0 or not dead.any():
            return
        reborn = sample_vectors(rearrange(batch_samples, "... d -> (...) d"), self.codebook_size)
        self.embed[dead] = reborn[dead]
        # An average code's weight, so that it survives until the batches have shown whether it is wanted.
        self.cluster_size[dead] = (self.cluster_size.sum() / self.codebook_size).clamp(min=2 * self.threshold_ema_dead_code)
        self.embed_avg[dead] = reborn[dead] * self.cluster_size[dead, None]
        flashy.distrib.broadcast_tensors(self.buffers())


def revive(model: nn.Module) -> int:
    """Turn every codebook of a codec into a :class:`LivingCodebook` in place; returns how many."""
    books = [module for module in model.modules() if type(module) is EuclideanCodebook]
    for book in books:
        book.__class__ = LivingCodebook
    return len(books)


def start_codebooks(model: nn.Module, batches: Iterable[torch.Tensor], per_code: int = 8) -> int:
    """Run the k-means initialisation of a codec on enough audio; returns the number of vectors used.

    One training batch often holds fewer vectors than a codebook has codes: k-means then reproduces the batch exactly,
    and nothing is left for the quantisers behind the first. Batches ``[B, C, T]`` are taken until there are
    ``per_code`` vectors for each code.
    """
    books = [module for module in model.modules() if isinstance(module, EuclideanCodebook)]
    if not books or all(book.inited for book in books):
        return 0
    device = next(model.parameters()).device
    latents: list[torch.Tensor] = []
    with torch.no_grad():
        for batch in batches:
            latents.append(model.encoder(model.preprocess(batch.to(device))[0]))
            if sum(latent.shape[0] * latent.shape[-1] for latent in latents) >= per_code * books[0].codebook_size:
                break
        together = torch.cat(latents)
        training = model.training
        model.eval()  # initialise, but do not update
        model.quantizer(together, model.frame_rate)
        model.train(training)
    return together.shape[0] * together.shape[-1]


@contextmanager
def unquantised(model: nn.Module) -> Iterator[None]:
    """Let a codec's latents ``[B, D, T]`` pass its quantiser as they are, within the block."""
    quantiser = model.quantizer
    quantiser.forward = DummyQuantizer().forward
    try:
        yield
    finally:
        del quantiser.forward  # the class's own again
