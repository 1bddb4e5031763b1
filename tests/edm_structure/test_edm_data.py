"""Features, targets and augmentation: where events lie after everything that moves them."""

import numpy
import pytest
import soundfile
import torch

from music_training import config
from music_training.edm_structure import LABELS, augment, features, targets
from music_training.edm_structure.config import Augmentation, EdmSettings
from music_training.edm_structure.data import AnnotatedTrack, Example, split

SECONDS, BPM = 24.0, 120.0


@pytest.fixture
def track(tmp_path) -> AnnotatedTrack:
    """Clicks on the beats, a louder half from 12 s on."""
    rate, beats = 44100, numpy.arange(0, SECONDS, 60 / BPM)
    samples = numpy.random.default_rng(0).normal(0, 1e-3, int(SECONDS * rate)).astype(numpy.float32)
    for time in beats:
        place = round(time * rate)
        samples[place : place + 200] += 0.8
    samples[12 * rate :] += 0.1 * numpy.sin(2 * numpy.pi * 100 * numpy.arange(12 * rate) / rate).astype(numpy.float32)
    soundfile.write(tmp_path / "clicks.wav", samples, rate)
    return AnnotatedTrack(
        "clicks", tmp_path / "clicks.wav", "someone", SECONDS, numpy.array([0.0, 12.0]), ["intro", "drop"], beats, beats[::4]
    )


def test_features_do_not_depend_on_the_blocks():
    samples = numpy.random.default_rng(0).normal(0, 0.1, 24000 * 70 + 777).astype(numpy.float32)
    whole = numpy.concatenate(list(features.stream([samples])))
    cut = numpy.concatenate(list(features.stream(numpy.split(samples, [5, 1000, 90000, 900001]))))
    assert whole.shape == (len(samples) // features.HOP + 1, features.MELS + 3)
    assert numpy.array_equal(whole, cut)


def test_mel_frames_equal_torchs_stft_and_a_peers_filters():
    from transformers.audio_utils import mel_filter_bank

    samples = numpy.random.default_rng(0).normal(0, 0.1, 24000 * 3).astype(numpy.float32)
    found = numpy.concatenate(list(features.stream([samples])))
    spectrum = torch.stft(
        torch.from_numpy(samples), features.WINDOW, features.HOP, window=torch.hann_window(features.WINDOW),
        center=True, pad_mode="constant", return_complex=True,
    ).abs().T * (2 / features.WINDOW)  # fmt: skip
    assert numpy.allclose(found, features.from_spectrum(spectrum).numpy(), atol=1e-3)
    bank = mel_filter_bank(513, features.MELS, 30.0, 11000.0, 24000, norm=None, mel_scale="htk")
    own = features.mel_bank().numpy()
    wide = bank.sum(0) > 3  # a triangle over few bins is sampled, not shaped
    assert numpy.allclose(own[:, wide], (bank / bank.sum(0))[:, wide], atol=1e-4)


def test_a_click_is_in_the_frame_of_its_time(track):
    frames = numpy.asarray(features.of_file(track.audio), numpy.float32)
    flux = numpy.maximum(numpy.diff(numpy.exp(frames[:, : features.MELS]), axis=0, prepend=0).sum(1), 0)[: 12 * 50]
    for time in track.beats[1:20]:
        place = round(time * features.FRAME_RATE)
        assert abs(int(flux[place - 5 : place + 6].argmax()) - 5) <= 1


def test_energy_targets_are_measured(track):
    frames = numpy.asarray(features.of_file(track.audio), numpy.float32)
    energy = features.energy(frames[:, features.MELS :])
    assert energy.shape == (len(frames), 3) and energy.min() >= 0 and energy.max() <= 1
    loud, quiet = energy[700:1100, 0].mean(), energy[100:500, 0].mean()
    assert loud > quiet + 0.05  # the 100 Hz tone
    assert abs(energy[700:1100, 2].mean() - energy[100:500, 2].mean()) < 0.05  # which the high band does not hold


def test_event_targets_at_edges_and_between_frames():
    target = targets.events(numpy.array([-1.0, 0.0, 1.004, 1.98, 5.0]), 100, 50.0)
    assert target[0] == 1 and target[1] == 0.5 and target[50] == 1 and target[99] == 1 and target.sum() == 1 + 0.5 + 2 + 1.5
    outside = targets.events(numpy.array([-0.2]), 100, 50.0, width=0.25)
    assert outside[0] == pytest.approx(numpy.exp(-0.5 * (0.2 / 0.25) ** 2)) and outside[60] < 1e-3


def test_labels_are_those_of_the_vocabulary():
    target = targets.labels(numpy.array([0.0, 1.0, 1.5]), ["intro", "drop", "chorus"], 1.8, 100, 50.0)
    assert target[10] == LABELS.index("intro") and target[60] == LABELS.index("drop")
    assert (target[80:] == targets.IGNORE).all()
    assert (targets.labels(numpy.array([1.0]), ["drop"], 2.0, 100, 50.0)[:49] == targets.IGNORE).all()


@pytest.mark.parametrize("tempo", [0.0, 0.3])
def test_targets_move_with_the_augmentation(track, tempo):
    settings = EdmSettings(
        backbone="cnn", duration=8.0, label=True, augmentation=Augmentation(share=1, tempo=tempo, pitch=0, equaliser=0, noise=0, masks=0)
    )
    example = Example([track], settings)
    gains = []
    for seed in range(12):
        crop = example.crop(0, numpy.random.default_rng(seed))
        level = crop["inputs"].exp().sum(1).numpy()
        flux = numpy.maximum(numpy.diff(level, prepend=level[:1]), 0)
        near = numpy.max([numpy.roll(flux, shift) for shift in (-1, 0, 1)], 0)
        inside = crop["mask"].numpy() > 0
        gains.append(near[(crop["beat"].numpy() == 1) & inside].mean() / near[inside].mean())
        assert crop["inputs"].shape == (400, features.MELS) and crop["mask"].min() >= 0
        boundary = crop["boundary"].numpy()
        switch = numpy.flatnonzero(numpy.diff(crop["label"].numpy()) == LABELS.index("drop") - LABELS.index("intro"))
        assert not len(switch) or abs(int(boundary.argmax()) - int(switch[0])) <= 2
    assert min(gains) > 3


def test_the_same_random_numbers_make_the_same_crop(track):
    example = Example([track], EdmSettings(backbone="cnn", duration=8.0))
    one, other = (example.crop(0, numpy.random.default_rng(3)) for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(one["inputs"], example.crop(0, numpy.random.default_rng(4))["inputs"])


def test_a_track_shorter_than_the_crop_is_masked(track):
    crop = Example([track], EdmSettings(backbone="cnn", duration=40.0, augmentation=Augmentation(share=0))).crop(
        0, numpy.random.default_rng(0)
    )
    assert crop["mask"].sum() == len(features.of_file(track.audio)) and crop["mask"][-1] == 0


def test_pitch_moves_a_tone_up_the_bands():
    mel = numpy.full((10, features.MELS), -8.0, numpy.float32)
    mel[:, 30] = 0.0
    assert augment._shift(mel, 2 ** (4 / 12)).mean(0).argmax() > 31 and augment._shift(mel, 2 ** (-4 / 12)).mean(0).argmax() < 29


def test_no_artist_is_on_both_sides():
    def tracks(count):
        empty = numpy.zeros(0)
        return [AnnotatedTrack(f"{n}", None, f"artist{n % 7}", 1.0, numpy.zeros(1), ["intro"], empty, empty) for n in range(count)]

    train, held = split(tracks(21), EdmSettings())
    assert not {item.artist for item in train} & {item.artist for item in held} and len({item.artist for item in held}) == 1
    folds = [split(tracks(21), EdmSettings(fold=fold, folds=5))[1] for fold in range(5)]
    assert sorted(item.id for fold in folds for item in fold) == sorted(item.id for item in tracks(21))


def test_stems_are_mixed_anew_and_those_between_the_beats_can_come_late(annotated, tmp_path, small):
    rate, beat = 24000, 0.5
    for name in ("kick", "bass"):  # clicks on each beat, at two heights
        samples = numpy.zeros(16 * rate, numpy.float32)
        for number in range(32):
            place = round(number * beat * rate)
            samples[place : place + 1200] = numpy.sin(2 * numpy.pi * {"kick": 3000, "bass": 300}[name] * numpy.arange(1200) / rate)
        soundfile.write(tmp_path / f"{name}.wav", samples, rate)
    beats = numpy.arange(32) * beat
    stems = (tmp_path / "kick.wav", tmp_path / "bass.wav")
    track = AnnotatedTrack("t", stems[0], "a", 16.0, numpy.array([0.0]), ["drop"], beats, beats[::4], 120.0, stems)
    change = {"share": 1.0, "tempo": 0, "pitch": 0, "equaliser": 0, "noise": 0, "masks": 0, "remix": 1e-6}
    heard = {}
    for share in (0.0, 1.0):
        settings = config.load(EdmSettings, {**small.model_dump(), "duration": 15.0, "augmentation": {**change, "syncopation": share}})
        crop = Example([track], settings).crop(0, numpy.random.default_rng(0))
        level = crop["inputs"].exp().square().numpy()
        on = numpy.flatnonzero(crop["beat"].numpy() > 0.99)[1:-1]
        low, high = level[:, :16].sum(1), level[:, 30:].sum(1)
        heard[share] = [line[on + 1].mean() / line[on + 14].mean() for line in (low, high)]  # on the beat, against half a beat later
    assert min(heard[0.0]) > 100 and heard[1.0][0] < 0.05 and heard[1.0][1] > 100
