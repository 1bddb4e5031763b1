"""Separation, metrics and losses against demucs' own code, museval and torchmetrics."""

import math

import numpy
import pytest
import soundfile
import torch
from stem_examples import RATE

from music_training.errors import UserError
from music_training.lora_demucs import augment, losses, metrics, separation
from music_training.lora_demucs.config import Augment


@pytest.fixture
def noise():
    return 0.1 * numpy.random.default_rng(0).standard_normal((2, 3 * RATE + 123)).astype(numpy.float32)


@pytest.mark.parametrize("length", [3 * RATE + 123, 3000, RATE, RATE + 1])
def test_it_gives_what_apply_model_gives(model, noise, length):
    from demucs.apply import apply_model

    wanted = apply_model(model, torch.from_numpy(noise[None, :, :length]), shifts=0)[0].numpy()
    assert numpy.abs(separation.separate(model, noise[:, :length]) - wanted).max() < 1e-6


@pytest.mark.parametrize("shifts", [1, 3])
def test_blocks_of_any_length_give_the_same(model, noise, shifts):
    whole = separation.separate(model, noise, shifts=shifts)
    blocks = [noise[:, start : start + 777] for start in range(0, noise.shape[1], 777)]
    parts = list(separation.separate_blocks(model, blocks, shifts=shifts))
    assert numpy.array_equal(numpy.concatenate(parts, 2), whole)


def test_what_is_kept_does_not_grow(model):
    class Silent(torch.nn.Module):
        samplerate, segment, audio_channels, sources = RATE, 1, 2, ("one",)

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, mixture):
            return mixture[:, None]

    seen = []

    def blocks():
        for _ in range(600):
            seen.append(1)
            yield numpy.full((2, RATE), 0.25, numpy.float32)

    ahead = total = 0
    for part in separation.separate_blocks(Silent(), blocks()):
        total += part.shape[2]
        assert numpy.abs(part - 0.25).max() < 1e-6
        ahead = max(ahead, len(seen) * RATE - total)
    assert total == 600 * RATE and ahead < 8 * RATE


def test_two_stems_add_up(model, noise, tmp_path):
    soundfile.write(tmp_path / "song.wav", noise.T, RATE, "FLOAT")
    written = separation.separate_file(model, tmp_path / "song.wav", tmp_path / "out", two_stems="drums")
    assert [path.name for path in written] == ["drums.wav", "no_drums.wav"]
    parts = [soundfile.read(path)[0].T for path in written]
    assert numpy.abs(sum(parts) - separation.separate(model, noise).sum(0)).max() < 1e-5
    with pytest.raises(UserError, match="the model has drums"):
        separation.separate_file(model, tmp_path / "song.wav", tmp_path / "out", two_stems="kick")


def test_metrics_against_museval_and_torchmetrics():
    museval = pytest.importorskip("museval")
    from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

    rng = numpy.random.default_rng(1)
    true = rng.standard_normal((2, 3 * RATE))
    found = 0.9 * true + 0.3 * rng.standard_normal(true.shape)
    theirs = museval.evaluate(numpy.stack([true.T, found.T]), numpy.stack([found.T, true.T]), win=RATE, hop=RATE, padding=False)[0]
    assert metrics.sdr_chunks(true, found, RATE) == pytest.approx(numpy.median(theirs[0]), abs=1e-6)
    pair = torch.tensor(found.ravel()), torch.tensor(true.ravel())
    assert metrics.si_sdr(true, found) == pytest.approx(float(scale_invariant_signal_distortion_ratio(*pair)), abs=1e-4)
    assert metrics.nsdr(true, numpy.zeros_like(true)) == pytest.approx(0.0)


def test_silent_stems_have_a_leak_and_no_ratio():
    rng = numpy.random.default_rng(1)
    true = numpy.stack([rng.standard_normal((2, RATE)), numpy.zeros((2, RATE))])
    rows = metrics.score(true, numpy.stack([true[0], 0.1 * true[0]]), ("one", "two"), RATE)
    assert rows[1]["silent"] and math.isnan(rows[1]["nsdr"]) and rows[1]["leak"] == pytest.approx(-20, abs=0.1)
    assert math.isnan(metrics.means(rows)["two"])


@pytest.mark.parametrize("name", sorted(losses.LOSSES))
def test_losses_are_least_at_the_truth_and_have_gradients(name):
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(2, 3, 2, 4096, generator=generator)
    true[1, 2] = 0  # a silent stem
    loss = losses.LOSSES[name]
    found = (true + 0.3 * torch.randn(true.shape, generator=generator)).requires_grad_()
    value = loss(found, true)
    value.backward()
    assert loss(true, true) < value and torch.isfinite(found.grad).all() and found.grad.abs().sum() > 0


def test_the_log_ratio_is_nsdr_in_bels():
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(1, 2, 2, 8192, generator=generator)
    found = true + 0.3 * torch.randn(true.shape, generator=generator)
    wanted = numpy.mean([metrics.nsdr(one.numpy(), other.numpy()) for one, other in zip(true[0], found[0], strict=True)])
    assert -10 * float(losses.log_ratio(found, true)) == pytest.approx(wanted, abs=0.1)


def test_repitch_moves_a_tone():
    time = numpy.arange(2 * RATE) / RATE
    tone = numpy.sin(2 * numpy.pi * 440 * time).astype(numpy.float32)[None]
    for speed, semitones in ((1.25, 0.0), (1.0, 12.0), (0.9, -5.0)):
        made = augment.repitch(tone, speed, semitones)
        assert made.shape[1] == pytest.approx(2 * RATE / speed, rel=0.01)
        middle = made[0, RATE // 4 : RATE // 4 + RATE]
        peak = numpy.abs(numpy.fft.rfft(middle * numpy.hanning(len(middle)))).argmax() * RATE / len(middle)
        assert peak == pytest.approx(440 * 2 ** (semitones / 12), abs=4)


def test_a_crop_without_augmentation_is_the_audio(stem_folder):
    from music_training.lora_demucs import tracks
    from music_training.lora_demucs.config import LoraDemucsSettings

    settings = LoraDemucsSettings.model_validate({"dset": {"wav": str(stem_folder), "sources": ["kick", "bass"]}})
    train, valid = tracks.load(settings, RATE, 2)
    assert (len(train), len(valid)) == (3, 1)
    still = Augment(remix=0, scale=(1, 1), flip=0, swap=0)
    made = augment.crop(train, 0, train[0].frames, ("kick", "bass"), still, numpy.random.default_rng(0))
    assert numpy.array_equal(made, train[0].read(sources=("kick", "bass")))
    again = [augment.crop(train, 0, RATE, ("kick", "bass"), Augment(repitch=1.0), numpy.random.default_rng(5)) for _ in range(2)]
    assert numpy.array_equal(*again) and again[0].shape == (2, 2, RATE)
