"""Codebooks that live: dead codes come back, the start keeps k-means' codes, the quantiser can be left out."""

import pytest
import torch

from music_training.musicgen import audiocraft_compat


@pytest.fixture(scope="module")
def codebooks():
    audiocraft_compat.install()
    from music_training.musicgen import codebooks

    return codebooks


def clusters(count: int, vectors: int, generator: torch.Generator) -> torch.Tensor:
    """Vectors ``[N, 8]`` around ``count`` fixed centres."""
    centres = torch.randn(count, 8, generator=torch.Generator().manual_seed(1)) * 3
    chosen = torch.randint(count, (vectors,), generator=generator)
    return centres[chosen] + 0.3 * torch.randn(vectors, 8, generator=generator)


def train(book, batches: int) -> tuple[int, float]:
    """Feed a codebook batches of 64 clusters; returns the codes used on 4,096 fresh vectors and their squared error."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(2)
    book.train()
    for _ in range(batches):
        book(clusters(64, 512, generator))
    book.eval()
    fresh = clusters(64, 4096, generator)
    rebuilt, codes = book(fresh)
    return len(codes.unique()), float((rebuilt - fresh).square().mean())


def test_dead_codes_come_back(codebooks):
    from audiocraft.quantization.core_vq import EuclideanCodebook

    made = {"codebook_size": 256, "kmeans_init": True, "kmeans_iters": 10, "decay": 0.9, "threshold_ema_dead_code": 0.5}
    used, error = train(codebooks.LivingCodebook(8, **made), 200)
    stock_used, stock_error = train(EuclideanCodebook(8, **made), 200)
    assert used >= 240
    assert stock_used < 200
    assert error < stock_error


def test_the_first_update_keeps_the_codes_of_kmeans(codebooks):
    torch.manual_seed(0)
    data = clusters(16, 2048, torch.Generator().manual_seed(3))
    book = codebooks.LivingCodebook(8, codebook_size=16, kmeans_init=True, kmeans_iters=50, threshold_ema_dead_code=0)
    book.eval()
    book(data)
    before = book.embed.clone()
    book.train()
    book(data)
    assert (book.embed - before).norm() / before.norm() < 0.01


def test_a_codec_can_train_without_its_quantiser_and_start_it_on_enough_vectors(codebooks, egs):
    from audiocraft.models import builders

    from music_training.musicgen.train import compose

    config = compose(["model=codec_tiny", "device=cpu"])
    model = builders.get_compression_model(config)
    assert codebooks.revive(model) == config.rvq.n_q
    audio = torch.randn(2, 1, 16000)
    with codebooks.unquantised(model):
        assert model(audio).penalty is None
        assert model.quantizer(torch.ones(1, 16, 5), 50).x.equal(torch.ones(1, 16, 5))
    wanted = 8 * config.rvq.bins
    assert codebooks.start_codebooks(model, (torch.randn(2, 1, 16000) for _ in range(100))) >= wanted
    assert all(book.inited for book in model.modules() if isinstance(book, codebooks.LivingCodebook))
    assert codebooks.start_codebooks(model, iter(())) == 0  # they have been started
    assert model(audio).penalty is not None
