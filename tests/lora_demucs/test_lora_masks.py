"""The start as masks: each source is a share of the mixture before training, and every layer learns from there."""

import math

import pytest
import torch
from demucs.htdemucs import HTDemucs

from music_training import config
from music_training.errors import UserError
from music_training.lora_demucs import base, losses
from music_training.lora_demucs.config import LoraDemucsSettings
from music_training.lora_demucs.masks import start_as_masks

SMALL = {"depth": 2, "growth": 1, "nfft": 512, "t_layers": 0, "dconv_mode": 0, "samplerate": 8000, "segment": 1}
MAGNITUDES = {"cac": False, "wiener_iters": -1, "end_iters": -1}


def untrained(channels: int, heard: int, masks: bool, **others) -> HTDemucs:
    torch.manual_seed(0)
    model = HTDemucs(["drums", "bass"], channels=channels, audio_channels=heard, **{**SMALL, **MAGNITUDES, **others}).eval()
    if masks:
        start_as_masks(model)
    return model


@pytest.mark.parametrize("heard", [1, 2])
def test_every_source_begins_as_a_share_of_the_mixture(heard):
    hertz = torch.tensor([[110.0, 700.0, 2300.0], [250.0, 1200.0, 3100.0]])[:, None, :, None]
    mixture = 0.1 * torch.sin(2 * torch.pi * hertz * torch.arange(8000) / 8000).sum(2).repeat(1, heard, 1)

    def likeness(model):
        found = model(mixture)
        along = torch.einsum("bsct,bct->bs", found, mixture)
        return along / (found.norm(dim=(2, 3)) * mixture.norm(dim=(1, 2))[:, None]), along / mixture.square().sum((1, 2))[:, None]

    with torch.no_grad():
        (cosine, share), (random, _) = likeness(untrained(16, heard, True)), likeness(untrained(16, heard, False))
    assert cosine.min() > 0.7 > random.abs().max()
    assert share.min() > 0.1 and share.max() < 0.5


@pytest.mark.parametrize("heard", [1, 2])
def test_channels_to_spare_carry_the_level_of_silence(heard):
    """Windows of noise below 3.5 kHz that stops after a share of them; where it is silent every stem is to be silent, too."""
    caught = {}
    deep = {"depth": 3, "nfft": 256, "channels_time": 16}

    def haze(channels):
        """Magnitudes where the window is silent, relative to the deviation of all magnitudes, for each window and output."""
        model = untrained(channels, heard, True, **deep)
        model.decoder[-1].conv_tr.register_forward_hook(lambda layer, inputs, output: caught.update(out=output[..., 2:-2, :]))
        rows = []
        for share in (1, 2, 4, 8):
            torch.manual_seed(share)
            spectrum = torch.fft.rfft(torch.randn(1, heard, 8000))
            spectrum[..., 3500:] = 0
            wave = torch.fft.irfft(spectrum, 8000)
            wave[..., 7000 // share :] = 0
            magnitudes = model._spec(wave).abs()
            model(wave)
            silent = magnitudes[0, 0] < 1e-3 * magnitudes.std()
            rows.append(caught["out"][0, :, silent].mean(1) + magnitudes.mean() / magnitudes.std())
        return torch.stack(rows)

    with torch.no_grad():
        plain, carried = haze(16), haze(18)
    assert (plain.amax(0) - plain.amin(0)).min() > 0.4  # no one value suits all windows
    assert (carried.amax(0) - carried.amin(0)).max() < 0.1 and carried.abs().max() < 0.1


@pytest.mark.parametrize("channels", [16, 20])
def test_all_weights_learn(channels):
    model = untrained(channels, 1, True, **({"depth": 3, "nfft": 256} if channels == 20 else {}))
    true = 0.1 * torch.randn(2, 2, 1, 8000)
    losses.batch_log_ratio(model(true.sum(1)), true).backward()
    still = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert not still


def test_a_model_that_cannot_be_masks_is_refused():
    scratch = {"base": "scratch", "method": "full", "dset": {"sample_rate": 8000, "channels": 1}}
    wanted = {"depth": 2, "nfft": 512, "t_layers": 0, "channels": 24, "start": "masks"}
    for change, message in (
        ({"channels": 24, "cac": False}, "channels in multiples of .* = 16"),
        ({"channels": 16}, "wants cac=false"),
        ({"channels": 18, "cac": False}, "or 2 more where growth is 1 and nfft 16"),
        ({"channels": 16, "cac": False, "nfft": 128, "depth": 3}, "need at least 512, or 256 without a transformer"),
        ({"growth": 1.5, "t_layers": 1}, "bottom_channels"),
    ):
        with pytest.raises(UserError, match=message):
            base.build(config.load(LoraDemucsSettings, {**scratch, "htdemucs": {**wanted, **change}}))
    possible = {**wanted, "channels": 16, "cac": False, "growth": 1, "t_layers": 1}
    made = base.build(config.load(LoraDemucsSettings, {**scratch, "htdemucs": possible}))
    assert made.cac is False and made.wiener_iters == made.end_iters == -1


def test_the_batch_is_one_long_example():
    true, error = torch.randn(3, 2, 1, 400), 0.1 * torch.randn(3, 2, 1, 400)
    true[0, 1] = 0.0
    long = [value.transpose(0, 1).reshape(1, 2, 1, 1200) for value in (true + error, true)]
    assert losses.batch_log_ratio(true + error, true).item() == pytest.approx(losses.log_ratio(*long).item(), abs=1e-6)
    assert losses.log_ratio(true + error, true).item() != pytest.approx(losses.log_ratio(*long).item(), abs=1e-2)
    assert math.isfinite(losses.batch_log_ratio(true, torch.zeros_like(true)).item())


@pytest.mark.parametrize("name", ["l1", "l2", "log_ratio", "batch_log_ratio"])
def test_weights_choose_among_the_sources(name):
    true, error = torch.randn(3, 2, 1, 400), 0.3 * torch.randn(3, 2, 1, 400)
    error[:, 1] *= 2
    loss = losses.LOSSES[name]
    first, second = (loss(true + error, true, torch.tensor(weights)) for weights in ([1.0, 0.0], [0.0, 1.0]))
    assert first < second
    assert loss(true + error, true, torch.tensor([1.0, 3.0])).item() == pytest.approx(float(0.25 * first + 0.75 * second), rel=1e-5)
    assert loss(true + error, true).item() == pytest.approx(float(0.5 * first + 0.5 * second), rel=1e-5)


def test_the_bright_loss_hears_the_treble():
    time = torch.arange(4000) / 8000
    stem = (torch.sin(2 * torch.pi * 60 * time) + 0.05 * torch.sin(2 * torch.pi * 3000 * time)).repeat(1, 2, 1, 1)
    dull = stem - (0.05 * torch.sin(2 * torch.pi * 3000 * time))
    assert losses.batch_log_ratio(dull, stem) < -2.0 < losses.bright_log_ratio(dull, stem) - 0.5
