"""The figures of the codec check against independent implementations and against cases known by hand."""

import json
import math

import numpy
import pytest
import soundfile
import torch
import torchmetrics.functional.audio as torchmetrics_audio

from music_training import files, runs
from music_training.errors import UserError
from music_training.musicgen import audiocraft_compat
from music_training.musicgen.models import load_codec
from training_checks import codec_quality_check as quality
from training_checks.listening_page import read_cards

RATE = 32000


@pytest.fixture
def noise():
    random = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=random)


def tone(seconds: float = 5.0) -> tuple[torch.Tensor, torch.Tensor]:
    """A sine of 440 Hz and its quadrature, which is orthogonal to it."""
    time = torch.arange(int(seconds * RATE), dtype=torch.float64) / RATE
    return (0.5 * torch.sin(2 * math.pi * 440 * time)).float(), (0.5 * torch.cos(2 * math.pi * 440 * time)).float()


# SI-SNR


@pytest.mark.parametrize("level", [1.0, 1e-2])
@pytest.mark.parametrize("amount", [0.01, 0.3, 1.0, 10.0])
def test_standard_si_snr_is_that_of_torchmetrics(noise, amount, level):
    reference = level * noise(3, 2, 20000) + 0.1 * level
    estimate = reference + amount * level * noise(3, 2, 20000)
    expected = torchmetrics_audio.scale_invariant_signal_noise_ratio(estimate, reference)
    assert quality.si_snr(estimate, reference).shape == (3, 2)
    torch.testing.assert_close(quality.si_snr(estimate, reference), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("seconds, segment", [(0.3, 0.25), (1.0, 0.25), (1.1, 0.4), (0.2, 1.0)])
def test_audiocraft_si_snr_is_that_of_audiocraft_with_its_sign_turned(noise, seconds, segment):
    audiocraft_compat.install()
    from audiocraft.losses import SISNR

    reference = noise(2, 1, int(seconds * RATE))
    estimate = 0.5 * reference + 0.2 * noise(2, 1, int(seconds * RATE))
    loss = SISNR(sample_rate=RATE, segment=segment, overlap=0.5)
    ours = quality.si_snr(estimate, reference, "audiocraft", RATE, segment)
    for index in range(2):
        theirs = -loss(estimate[index : index + 1], reference[index : index + 1])
        assert ours[index].item() == pytest.approx(theirs.item(), abs=1e-3)


# Standard, AudioCraft's convention, AudioCraft's with the estimate at a quarter and with a tenth of DC
@pytest.mark.parametrize(
    "decibels, standard, framed, quarter, offset",
    [(0, 0.0, 0.0, 0.0, -0.085), (10, 10.0, 10.0, 9.999, 9.269), (20, 20.0, 19.999, 19.99, 16.505), (40, 40.0, 39.938, 39.113, 26.964)],
)
def test_si_snr_of_a_tone_with_its_quadrature(decibels, standard, framed, quarter, offset):
    s, c = tone()
    e = s + 10 ** (-decibels / 20) * c
    assert quality.si_snr(e, s).item() == pytest.approx(standard, abs=2e-3)
    assert quality.si_snr(0.25 * e, s).item() == pytest.approx(standard, abs=2e-3)
    assert quality.si_snr(e + 0.1, s).item() == pytest.approx(standard, abs=2e-3)
    assert quality.si_snr(e, s, "audiocraft").item() == pytest.approx(framed, abs=2e-3)
    assert quality.si_snr(0.25 * e, s, "audiocraft").item() == pytest.approx(quarter, abs=2e-3)
    assert quality.si_snr(e + 0.1, s, "audiocraft").item() == pytest.approx(offset, abs=2e-3)


def ends() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Estimates and references at which ratios misbehave."""
    s, c = tone()
    silence, constant = torch.zeros_like(s), torch.full_like(s, 0.3)
    half = torch.cat([s[: len(s) // 2], silence[len(s) // 2 :]])
    return {
        "identical": (s, s),
        "zero estimate": (silence, s),
        "silent reference": (s, silence),
        "both silent": (silence, silence),
        "constant estimate": (constant, s),
        "constant reference": (s, constant),
        "half-silent reference": (half + 0.1 * c, half),
        "half-silent estimate": (half, s),
        "turned": (-s, s),
    }


@pytest.mark.parametrize("name", ends())
def test_si_snr_at_its_ends_is_that_of_others(name):
    audiocraft_compat.install()
    from audiocraft.losses import SISNR

    estimate, reference = ends()[name]
    standard = torchmetrics_audio.scale_invariant_signal_noise_ratio(estimate, reference)
    torch.testing.assert_close(quality.si_snr(estimate, reference), standard, atol=1e-3, rtol=0)
    framed = -SISNR(sample_rate=RATE, segment=5.0, overlap=0.5)(estimate[None, None], reference[None, None])
    torch.testing.assert_close(quality.si_snr(estimate, reference, "audiocraft"), framed, atol=2e-3, rtol=0)


def test_si_snr_at_its_ends_is_a_number():
    values = {name: quality.si_snr(*pair).item() for name, pair in ends().items()}
    assert values["identical"] > 100 and values["silent reference"] < -100
    assert values["zero estimate"] == pytest.approx(0, abs=1e-3)
    assert values["half-silent reference"] == pytest.approx(17.0, abs=0.1)
    framed = {name: quality.si_snr(*pair, "audiocraft").item() for name, pair in ends().items()}
    assert 40 < framed["identical"] < 60 and framed["silent reference"] == pytest.approx(-framed["identical"], abs=0.1)
    assert framed["zero estimate"] == pytest.approx(0, abs=1e-3)
    assert framed["half-silent reference"] < values["half-silent reference"] - 10


def test_si_snr_refuses_what_does_not_fit(noise):
    with pytest.raises(ValueError, match="differ in shape"):
        quality.si_snr(noise(2, 100), noise(100))
    with pytest.raises(ValueError, match="'standard' or 'audiocraft'"):
        quality.si_snr(noise(100), noise(100), "other")


@pytest.mark.parametrize("decibels", [0, 10, 20, 40])
def test_standard_si_snr_of_the_tones_is_that_of_torchmetrics(decibels):
    s, c = tone()
    for estimate in (s + 10 ** (-decibels / 20) * c, 0.25 * (s + 10 ** (-decibels / 20) * c), s + 10 ** (-decibels / 20) * c + 0.1):
        expected = torchmetrics_audio.scale_invariant_signal_noise_ratio(estimate, s)
        torch.testing.assert_close(quality.si_snr(estimate, s), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("decibels", [-10.0, 0.0, 25.0])
def test_sdr_is_that_of_torchmetrics_and_feels_the_level(noise, decibels):
    reference = noise(2, 30000)
    estimate = reference + 10 ** (-decibels / 20) * noise(2, 30000)
    expected = torchmetrics_audio.signal_noise_ratio(estimate, reference)
    torch.testing.assert_close(quality.sdr(estimate, reference), expected, atol=1e-3, rtol=0)
    assert quality.sdr(0.5 * reference, reference)[0].item() == pytest.approx(20 * math.log10(2), abs=1e-3)


# Mel distance


def test_mel_distance_is_zero_for_equal_signals_and_grows_with_noise(noise):
    reference = torch.stack([tone(1.0)[0], 0.3 * noise(RATE)])
    added = noise(2, RATE)
    assert quality.mel_distance(reference, reference).tolist() == [0, 0]
    distances = [quality.mel_distance(reference + amount * added, reference) for amount in (0.001, 0.01, 0.1, 1.0)]
    assert all((more > less).all() for less, more in zip(distances, distances[1:], strict=False))


def test_mel_distance_of_a_gain_is_its_logarithm_and_of_silence_the_floor(noise):
    reference = 0.3 * noise(1, 1, RATE)
    assert quality.mel_distance(0.1 * reference, reference).item() == pytest.approx(1.0, abs=0.01)
    assert quality.mel_distance(torch.zeros_like(reference), reference).shape == (1, 1)
    assert 2 < quality.mel_distance(torch.zeros_like(reference), reference).item() < 5


# Bands


def test_the_error_of_each_band_is_its_own(noise):
    """Each band of white noise gets noise of its own level on top, made by cutting spectra."""
    reference, added = noise(2, 8 * RATE), noise(2, 8 * RATE)
    frequencies = torch.fft.rfftfreq(8 * RATE, 1 / RATE)
    levels = [5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 35.0]
    spectrum = torch.fft.rfft(added)
    for low, high, level in zip(quality.BANDS[:-1], quality.BANDS[1:], levels, strict=True):
        spectrum[:, (frequencies >= low) & (frequencies < high)] *= 10 ** (-level / 20)
    found = quality.band_sdr(reference + torch.fft.irfft(spectrum), reference)
    assert found.shape == (2, 7)
    torch.testing.assert_close(found, torch.tensor(levels).expand(2, 7), atol=0.5, rtol=0)


def test_a_band_without_a_signal_says_nothing(noise):
    s, c = tone()
    found = quality.band_sdr(s + 0.1 * c, s)
    assert found[1].item() == pytest.approx(20, abs=0.1)  # 440 Hz lies between 250 and 500
    assert found[3:].isnan().all()
    assert quality.band_sdr(s, s)[1].item() > 200


@pytest.mark.parametrize("cut", [2000, 8000, 12000])
def test_bandwidth_is_where_the_spectrum_ends(noise, cut):
    spectrum = torch.fft.rfft(noise(2, 4 * RATE))
    spectrum[:, torch.fft.rfftfreq(4 * RATE, 1 / RATE) > cut] = 0
    found = quality.bandwidth(0.1 * torch.fft.irfft(spectrum))
    torch.testing.assert_close(found, torch.full((2,), float(cut)), atol=350, rtol=0)


def test_bandwidth_at_its_ends(noise):
    assert quality.bandwidth(noise(RATE)).item() > 15500
    assert quality.bandwidth(torch.zeros(3, RATE)).tolist() == [0, 0, 0]


# Codebooks


def test_codebook_usage_counts_by_hand():
    usage = quality.CodebookUsage(2, 4)
    usage.update(torch.tensor([[[0, 0, 1, 1], [3, 3, 3, 3]]]))
    usage.update(torch.tensor([[[0, 1], [3, 3]], [[0, 1], [3, 3]]]))
    assert usage.counts.tolist() == [[4, 4, 0, 0], [0, 0, 0, 8]]
    assert usage.used() == [2, 1]
    assert usage.perplexity() == pytest.approx([2.0, 1.0])
    usage.update(torch.tensor([[[2] * 4, [0] * 4]]))
    entropy = -sum(p * math.log(p) for p in (8 / 12, 4 / 12))
    assert usage.perplexity() == pytest.approx([3.0, math.exp(entropy)])


# The check as a whole, on an untrained codec


@pytest.fixture
def codec(outputs):
    audiocraft_compat.install()
    from audiocraft.models import builders

    from music_training.musicgen.models import save_weights
    from music_training.musicgen.train import compose

    config = compose(["model=codec_tiny", "device=cpu"])
    torch.manual_seed(0)
    model = builders.get_compression_model(config)
    model(torch.randn(1, 1, RATE))
    return files.relative(save_weights(outputs / "codec", model.state_dict(), config))


@pytest.fixture
def manifest(outputs):
    """Two clips of one track, one of another, and a silent one."""
    random = numpy.random.default_rng(0)
    lines = []
    for name, level in (("a_0000", 0.1), ("a_0001", 0.1), ("b_0000", 0.1), ("c_0000", 0.0)):
        path = outputs / "audio" / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, level * random.standard_normal(RATE), RATE, subtype="PCM_16")
        lines.append(json.dumps({"path": files.relative(path)}) + "\n")
    return files.write_text(outputs / "egs" / "noise" / "test" / "data.jsonl", "".join(lines))


def test_a_codec_that_learnt_nothing_is_a_fault_and_silence_is_left_out(codec, manifest, outputs):
    torch.set_num_threads(2)
    report = quality.check(codec, manifest, 10, outputs / "pairs", baseline=codec)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert [row["clip"] for row in report.rows] == ["a_0000", "a_0001", "b_0000"]
    assert report.figures["silent_clips_left_out"] == 1 and report.figures["tracks"] == 2
    assert sorted(path.name for path in (outputs / "pairs").iterdir())[:2] == ["a_0000_original.wav", "a_0000_reconstructed.wav"]
    assert not report.passed
    fault = next(finding for finding in report.findings if finding.severity == "fault")
    assert fault.subject == "mel distance" and "learnt nothing" in fault.todo
    by_track = [numpy.mean([row["si_snr"] for row in report.rows if row["track"] == track]) for track in ("a", "b")]
    assert report.figures["si_snr_track_mean"] == pytest.approx(numpy.mean(by_track))
    original, rate = soundfile.read(outputs / "pairs" / "a_0000_original.wav", dtype="float32")
    rebuilt, _ = soundfile.read(outputs / "pairs" / "a_0000_reconstructed.wav", dtype="float32")
    expected = 10 * numpy.log10((original**2).sum() / ((original - rebuilt) ** 2).sum())
    assert report.rows[0]["sdr"] == pytest.approx(expected, abs=0.01)
    assert report.figures["mel_baseline"] == pytest.approx(report.figures["mel"]) and f"beside {codec}" in {
        f.subject for f in report.findings
    }
    assert report.figures["bandwidth_original"] > 15000 and {f"sdr_{low}_hz" for low in quality.BANDS[:-1]} <= set(report.rows[0])
    worst = sorted(report.rows, key=lambda row: -row["mel"])
    assert [row["clip"] for row in report.figures["worst"]] == [row["clip"] for row in worst]
    assert [path.name for path in (outputs / "pairs").glob("*.png")] == [f"{worst[0]['clip']}_worst.png"]


def test_mistakes_are_one_line(codec, manifest, outputs):
    with pytest.raises(UserError, match="no clips in it"):
        quality.check(codec, files.write_text(outputs / "empty.jsonl", ""))
    with pytest.raises(UserError, match="all 1 clips are silent"):
        quality.check(codec, files.write_text(outputs / "silent.jsonl", manifest.read_text().splitlines()[-1] + "\n"))
    soundfile.write(outputs / "slow.wav", numpy.ones(16000), 16000)
    with pytest.raises(UserError, match="slow.wav: 16000 Hz, but the codec works at 32000 Hz"):
        quality.check(codec, files.write_text(outputs / "slow.jsonl", '{"path": "slow.wav"}\n'))
    with pytest.raises(UserError, match="nowhere: no test or valid manifest"):
        quality.held_out("nowhere")
    assert quality.held_out("noise") == manifest


# Inside training


@pytest.fixture
def run(codec, manifest, outputs):
    """The folder of a run that validates on the noise."""
    folder = runs.create("codec", run_name="one")
    files.write_text(folder / "config.yaml", "datasource: {valid: egs/noise/test}\n")
    return folder


def test_a_training_codec_is_checked_every_few_epochs_and_left_as_it_was(run, codec, outputs, monkeypatch, capsys):
    monkeypatch.setenv("CODEC_CHECK_EVERY", "2")
    monkeypatch.setenv("CODEC_CHECK_SAMPLES", "2")
    model = load_codec(codec).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    for epoch in range(1, 5):
        quality.after_epoch(run)(epoch, model)
    assert torch.equal(torch.rand(3), expected) and model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    rows = [json.loads(line) for line in (run / "logs" / "codec_check.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [2, 4] and rows[0]["mel"] == rows[1]["mel"]
    found = read_cards(outputs / "samples")
    assert [(card.epoch, len(card.clips)) for _, card in found] == [(2, 4), (4, 4)]
    assert all((folder / clip.path).is_file() for folder, card in found for clip in card.clips)
    assert "codec quality: one, epoch 2 on 2 clips" in capsys.readouterr().out


@pytest.mark.parametrize("name, value", [("EVERY", "often"), ("EVERY", "-1"), ("SAMPLES", "0"), ("SAMPLES", "2.5")])
def test_a_bad_wish_for_checks_is_one_line(run, monkeypatch, name, value):
    monkeypatch.setenv(f"CODEC_CHECK_{name}", value)
    with pytest.raises(UserError, match=f"CODEC_CHECK_{name}={value}: a whole number"):
        quality.after_epoch(run)


def test_checks_off_do_nothing(run, codec, monkeypatch):
    monkeypatch.delenv("CODEC_CHECK_EVERY", raising=False)
    quality.after_epoch(run)(10, load_codec(codec))
    assert not (run / "logs" / "codec_check.jsonl").exists()
