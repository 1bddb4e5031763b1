"""Where a language model begins: at what is known of the codes before any training.

To a language model a code is a number; which codes sound alike it would have to find out from the music. The codec knows:
their vectors lie near each other. So the embeddings begin as a projection of the code vectors (summed over the codebooks
they are then a projection of the codec's latent), each output layer as one of its own, so that codes that sound alike begin
with logits that are alike, and the output biases begin at the log frequency of each code in the training tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from audiocraft.models.lm import LMModel

SPREAD = 2.0  # of these weights against random ones: 1 learns less (docs/RESULTS.md)


def begin_at_codes(model: LMModel, vectors: torch.Tensor, frequencies: torch.Tensor) -> None:
    """Give a language model its beginning, in place, with projections drawn from torch's generator.

    ``vectors [K, card, D]`` are the codec's, ``frequencies [K, card]`` as :func:`.tokens.frequencies` gives them. Their spread is
    ``SPREAD`` times that of the random weights whose place they take: in each output layer, and in the embeddings of all
    codebooks together, among which it is now that of the code vectors. Biases begin only where the model has them.
    """
    centred = (vectors - vectors.mean(dim=1, keepdim=True)).float()
    heard = centred @ _projection(centred, model.dim)
    with torch.no_grad():
        scale = sum(embedding.weight.var() for embedding in model.emb) / sum(codes.var() for codes in heard)
        for embedding, codes in zip(model.emb, heard, strict=True):
            embedding.weight[: model.card] = SPREAD * codes * scale.sqrt()
        for linear, codes, known in zip(model.linears, centred, frequencies, strict=True):
            wanted = codes @ _projection(codes, model.dim)
            linear.weight.copy_(SPREAD * wanted * linear.weight.std() / wanted.std().clamp(min=1e-8))
            if linear.bias is not None:
                linear.bias.copy_(known.log())


def _projection(vectors: torch.Tensor, dim: int) -> torch.Tensor:
    """A random matrix ``[D, dim]`` that keeps the distances of vectors ``[..., D]`` where ``dim`` is not less than ``D``."""
    return torch.nn.init.orthogonal_(torch.empty(vectors.shape[-1], dim)).to(vectors)
