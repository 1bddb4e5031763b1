"""Codebooks that live: AudioCraft's vector quantiser with a revival that works.

Upstream replaces a dead code in ``embed``, which the same forward pass overwrites from ``embed_avg``; and after the
k-means initialisation ``embed_avg`` is not weighted by the cluster sizes. So dead codes stay dead, and the first update
scatters the initial codes. Here both averages follow, as in the update rule itself (van den Oord et al. 2017,
"Neural discrete representation learning", appendix A.1): ``embed = embed_avg / cluster_size``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import flashy
import torch
from audiocraft.quantization import DummyQuantizer
from audiocraft.quantization.core_vq import EuclideanCodebook, laplace_smoothing, sample_vectors
from einops import rearrange
from torch import nn
from torch.nn import functional

MOST_BATCHES = 1000  # that the start of the codebooks looks at


class LivingCodebook(EuclideanCodebook):
    """A Euclidean codebook whose dead codes are reborn as vectors of the batch.

    It learns in the forward pass, as upstream's; where ``deferred`` is set, only when :func:`learn` is called: a batch
    that is skipped teaches it nothing, and one that is computed in parts counts as one. In a distributed run all
    processes learn from the vectors of all. It computes in float32 whatever autocast says.
    """

    deferred = False

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The code vectors ``[..., D]`` nearest to ``x``, and their numbers ``[...]``."""
        with torch.autocast(x.device.type, enabled=False):
            vectors = self.preprocess(x.detach().float())
            self.init_embed_(vectors)
            codes = self.quantize(vectors)
            shaped = self.postprocess_emb(codes, x.shape)
            quantised = self.dequantize(shaped)
            if self.training:
                self.__dict__.setdefault("seen", []).append((vectors, codes))
                if not self.deferred:
                    self.learn()
        return quantised, shaped

    def learn(self) -> None:
        """Move the codes towards the vectors seen since the last call."""
        seen = self.__dict__.pop("seen", [])
        if not seen:
            return
        vectors = torch.cat([part for part, _ in seen])
        won = functional.one_hot(torch.cat([codes for _, codes in seen]), self.codebook_size).to(vectors.dtype)
        counts, sums = won.sum(0), vectors.t() @ won
        flashy.distrib.all_reduce(counts)
        flashy.distrib.all_reduce(sums)
        self.expire_codes_(vectors)
        self.cluster_size.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        self.embed_avg.mul_(self.decay).add_(sums.t(), alpha=1 - self.decay)
        sizes = laplace_smoothing(self.cluster_size, self.codebook_size, self.epsilon) * self.cluster_size.sum()
        self.embed.copy_(self.embed_avg / sizes[:, None])

    def init_embed_(self, data: torch.Tensor) -> None:
        """Start from k-means over the first batch ``[N, D]``; a code that won no vector starts as a random one."""
        if self.inited:
            return
        means = sample_vectors(data, self.codebook_size)
        counts = torch.ones(self.codebook_size, device=data.device)
        for _ in range(self.kmeans_iters):
            self.embed.copy_(means)
            won = functional.one_hot(self.quantize(data), self.codebook_size).to(data.dtype)
            counts = won.sum(0)
            means = torch.where(counts[:, None] > 0, (won.t() @ data) / counts.clamp(min=1)[:, None], means)
        self.embed.copy_(means)
        self.cluster_size.copy_(counts.clamp(min=1.0))
        self.embed_avg.copy_(self.embed * self.cluster_size[:, None])
        self.inited.fill_(True)
        flashy.distrib.broadcast_tensors(self.buffers())

    def expire_codes_(self, batch_samples: torch.Tensor) -> None:
        """Replace codes used less often than the threshold by vectors of the batch ``[..., D]``, of all processes."""
        dead = self.cluster_size < self.threshold_ema_dead_code
        if self.threshold_ema_dead_code == 0 or not dead.any():
            return
        reborn = sample_vectors(_of_all_processes(rearrange(batch_samples, "... d -> (...) d")), self.codebook_size)
        flashy.distrib.broadcast_tensors([reborn])
        self.embed[dead] = reborn[dead]
        # An average code's weight, so that it survives until the batches have shown whether it is wanted.
        self.cluster_size[dead] = (self.cluster_size.sum() / self.codebook_size).clamp(min=2 * self.threshold_ema_dead_code)
        self.embed_avg[dead] = reborn[dead] * self.cluster_size[dead, None]


def _of_all_processes(vectors: torch.Tensor) -> torch.Tensor:
    """The rows of every process in their order, as one process with the whole batch would have them."""
    if not flashy.distrib.is_distributed():
        return vectors
    parts = [torch.empty_like(vectors) for _ in range(flashy.distrib.world_size())]
    torch.distributed.all_gather(parts, vectors.contiguous())
    return torch.cat(parts)


def codebooks_of(model: nn.Module) -> list[EuclideanCodebook]:
    """The codebooks of a codec, in the order of its quantisers."""
    return [module for module in model.modules() if isinstance(module, EuclideanCodebook)]


def revive(model: nn.Module, deferred: bool = False) -> int:
    """Turn every codebook of a codec into a :class:`LivingCodebook` in place; returns how many."""
    books = [book for book in codebooks_of(model) if type(book) is EuclideanCodebook]
    for book in books:
        book.__class__, book.deferred = LivingCodebook, deferred
    return len(books)


def learn(model: nn.Module, wanted: bool = True) -> None:
    """Have the deferred codebooks of a codec learn from what they saw, or forget it."""
    for book in codebooks_of(model):
        if isinstance(book, LivingCodebook):
            if wanted:
                book.learn()
            else:
                book.__dict__.pop("seen", None)


def usage(model: nn.Module) -> dict[str, float]:
    """How alive each quantiser's codebook is, from its running counts.

    ``usage_q1`` is the share of codes that win more than a tenth of what they would if all won equally often;
    ``perplexity_q1`` the number of equally frequent codes of the same entropy.
    """
    found: dict[str, float] = {}
    for number, book in enumerate(codebooks_of(model), start=1):
        share = book.cluster_size.double() / book.cluster_size.sum().clamp(min=1e-9)
        found[f"usage_q{number}"] = float((share > 0.1 / book.codebook_size).double().mean())
        found[f"perplexity_q{number}"] = float(torch.exp(-torch.special.xlogy(share, share).sum()))
    return found


def start_codebooks(model: nn.Module, batches: Iterable[torch.Tensor], per_code: int = 8) -> int:
    """Run the k-means initialisation of a codec on enough audio; returns the number of vectors used.

    One training batch often holds fewer vectors than a codebook has codes: k-means then reproduces the batch exactly,
    and nothing is left for the quantisers behind the first. Batches ``[B, C, T]`` are taken until there are
    ``per_code`` vectors for each code.
    """
    books = codebooks_of(model)
    if not books or all(book.inited for book in books):
        return 0
    device = next(model.parameters()).device
    latents: list[torch.Tensor] = []
    with torch.no_grad():
        for batch in itertools.islice(batches, MOST_BATCHES):
            latent = _of_all_processes(model.encoder(model.preprocess(batch.to(device))[0]))
            latents.append(latent[latent.isfinite().flatten(1).all(1)])  # one NaN would be in every code
            if sum(latent.shape[0] * latent.shape[-1] for latent in latents) >= per_code * books[0].codebook_size:
                break
        together = torch.cat(latents)
        if not len(together):
            return 0
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
