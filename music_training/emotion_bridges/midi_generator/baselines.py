"""What the generator has to beat: unigram and bigram models of the training tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy

from .tokenizer import MidiTokenizer

SIZE = MidiTokenizer.vocab_size
MIXTURES = (0.5, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)


def counts(rows: Sequence[numpy.ndarray]) -> numpy.ndarray:
    """How often each token follows each, ``[388, 388]``."""
    pairs = numpy.concatenate([row[:-1] * SIZE + row[1:] for row in rows])
    return numpy.bincount(pairs, minlength=SIZE * SIZE).reshape(SIZE, SIZE).astype(numpy.float64)


def unigram(seen: numpy.ndarray) -> numpy.ndarray:
    """Probabilities of the tokens after BOS, add-one smoothed, ``[388]``."""
    total = seen.sum(0) + 1
    return total / total.sum()


def bigram(seen: numpy.ndarray, mixture: float) -> numpy.ndarray:
    """Probabilities of the next token, ``[388, 388]``: counts mixed with the unigram model, more so where few were seen."""
    single = unigram(seen)
    strength = 1000 * mixture
    return (seen + strength * single) / (seen.sum(1, keepdims=True) + strength)


def log_bigrams(seen: numpy.ndarray) -> numpy.ndarray:
    """Logits of the bigram model for the start of the generator, ``[388, 388]`` float32."""
    return numpy.log(bigram(seen, 0.01)).astype(numpy.float32)


def perplexities(train: Sequence[numpy.ndarray], held: Sequence[numpy.ndarray]) -> dict[str, float]:
    """Perplexity of both models on held-out rows; the bigram model with the smoothing that suits those rows best."""
    seen = counts(train)
    pairs = counts(held)
    total = pairs.sum()
    single = float(numpy.exp(-(pairs.sum(0) * numpy.log(unigram(seen))).sum() / total))
    double = min(float(numpy.exp(-(pairs * numpy.log(bigram(seen, mixture))).sum() / total)) for mixture in MIXTURES)
    return {"unigram": single, "bigram": double}
