"""Clouds: the target, distances against the naive ones, the model, files on disk and the page."""

import json
import re

import numpy
import pytest
import torch
from scipy.spatial import cKDTree
from tones import tone, write_manifests

from music_training import files
from music_training.emotion_bridges import emotions, manifests, train
from music_training.emotion_bridges.spectocloud import chamfer, clouds, evaluation, mel, targets, viewer
from music_training.emotion_bridges.spectocloud.data import Clips
from music_training.emotion_bridges.spectocloud.model import Colour, Spectocloud
from music_training.errors import UserError


@pytest.fixture
def library(tmp_path):
    """Manifests of four files of tones."""
    return write_manifests(tmp_path)


def with_data(settings, library):
    return settings.model_copy(update={"data": settings.data.model_copy(update=library)})


@pytest.mark.parametrize("frequency", [110, 440, 2000, 7000])
def test_a_tone_lands_in_its_band(frequency):
    frames = mel.frames(tone(frequency))
    assert frames.shape == (int(3 * mel.FRAME_RATE) + 1, mel.BANDS)
    edges = numpy.linspace(mel._mel(mel.LOWEST), mel._mel(mel.HIGHEST), mel.BANDS + 2)
    expected = numpy.abs(edges[1:-1] - mel._mel(frequency)).argmin()
    assert abs(int(frames[30].argmax()) - expected) <= 1


def test_points_stand_where_the_sound_is():
    frames = mel.frames(tone(440, begin=1.5))[:75]
    cloud, colours = targets.target(frames, numpy.array([0.7, 0.5, 0.5]), 1200)
    assert cloud.shape == colours.shape == (1200, 3) and cloud.dtype == colours.dtype == numpy.float32
    assert cloud[:, 0].min() > -0.1  # the second half
    assert cloud[:, 1].std() < 0.1 and numpy.abs(cloud).max() <= 1 and colours.min() >= 0 and colours.max() <= 1
    again, _ = targets.target(frames, numpy.array([0.7, 0.5, 0.5]), 1200)
    numpy.testing.assert_array_equal(cloud, again)
    assert not numpy.array_equal(cloud, targets.target(frames, numpy.zeros(3), 1200, seed=1)[0])
    silent, _ = targets.target(numpy.full((50, 64), numpy.log(mel.FLOOR), numpy.float32), numpy.zeros(3), 300)
    assert numpy.isfinite(silent).all() and (silent[:, 2] == -1).all()


def test_a_draw_has_the_density_that_it_is_drawn_from():
    rng = numpy.random.default_rng(0)
    level = rng.random((20, 16)).astype(numpy.float32)
    cloud = targets.draw(level, 60_000, rng)
    cells = numpy.clip(((cloud[:, :2] + 1) / 2 * [20, 16]).astype(int), 0, [19, 15])
    found = numpy.bincount(cells[:, 0] * 16 + cells[:, 1], minlength=320) / 60_000
    numpy.testing.assert_allclose(found, targets.density(level).ravel(), atol=2e-4)
    numpy.testing.assert_allclose((cloud[:, 2] + 1) / 2, level[cells[:, 0], cells[:, 1]], atol=1e-6)


def test_colours_tell_the_emotion():
    cloud = numpy.zeros((1, 3), numpy.float32)
    hues = {name: targets.colours(cloud, numpy.array(felt))[0] for name, felt in
            {"angry": (-0.7, 0.7, 0.8), "sad": (-0.7, -0.7, 0.8), "calm": (0.7, -0.7, 0.8)}.items()}  # fmt: skip
    assert hues["angry"].argmax() == 0 and hues["sad"].argmax() == 2 and hues["calm"].argmax() == 1
    weak, strong = (numpy.ptp(targets.colours(cloud, numpy.array([0.7, 0.7, value]))) for value in (0.0, 1.0))
    assert weak < strong


def test_distances_are_those_of_an_independent_search():
    rng = numpy.random.default_rng(1)
    one, other = (rng.uniform(-1, 1, (2, size, 3)).astype(numpy.float32) for size in (200, 150))
    found = chamfer.chamfer(torch.from_numpy(one), torch.from_numpy(other))
    score = chamfer.f_score(torch.from_numpy(one), torch.from_numpy(other), 0.1)
    for number in range(2):
        ahead, back = cKDTree(other[number]).query(one[number])[0], cKDTree(one[number]).query(other[number])[0]
        assert float(found[number]) == pytest.approx((ahead**2).mean() + (back**2).mean(), rel=1e-4)
        precision, recall = (ahead <= 0.1).mean(), (back <= 0.1).mean()
        assert float(score[number]) == pytest.approx(2 * precision * recall / (precision + recall), rel=1e-4)


def test_the_gradient_is_that_of_the_full_matrix():
    rng = torch.Generator().manual_seed(0)
    cloud = torch.randn(2, 60, 3, generator=rng, requires_grad=True)
    other = torch.randn(2, 50, 3, generator=rng)
    full = torch.cdist(cloud, other).square()
    wanted = torch.autograd.grad((full.amin(2).mean(1) + full.amin(1).mean(1)).sum(), cloud)[0]
    found = torch.autograd.grad(chamfer.chamfer(cloud, other).sum(), cloud)[0]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_colours_are_compared_along_the_match_not_by_order():
    rng = torch.Generator().manual_seed(0)
    cloud, tint = torch.rand(1, 80, 3, generator=rng), torch.rand(1, 80, 3, generator=rng)
    order = torch.randperm(80, generator=rng)
    match = chamfer.nearest(cloud[:, order], cloud)
    assert float(chamfer.colour_error(tint[:, order], tint, match)) == 0.0


def test_colours_within_a_cloud_are_learned():
    torch.manual_seed(0)
    rng = numpy.random.default_rng(0)
    head = Colour()
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.01)

    def batch(count):
        felt = numpy.c_[rng.uniform(-1, 1, (count, 2)), rng.random(count)]
        points = rng.uniform(-1, 1, (count, 200, 3)).astype(numpy.float32)
        tints = numpy.stack([targets.colours(cloud, one) for cloud, one in zip(points, felt, strict=True)])
        return torch.from_numpy(points), torch.from_numpy(numpy.stack([emotions.padded(one) for one in felt])), torch.from_numpy(tints)

    for step in range(240):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / 240)
        points, felt, tints = batch(4)
        loss = (head(points, felt) - tints).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    points, felt, tints = batch(100)
    with torch.no_grad():
        error = (head(points, felt) - tints).square().mean()
        assert head(points[:1], torch.zeros(1, 64)).isfinite().all()
    assert error < 0.35 * tints.var(1, correction=0).mean()  # against the best single colour of each cloud


def test_the_model_takes_any_length_and_minds_the_emotion(cloud_settings):
    model = Spectocloud(cloud_settings).eval()
    for layer in model.layers:
        torch.nn.init.normal_(layer.film.weight, std=0.1)
    with torch.no_grad():
        for frames in (10, 50, 333):
            cloud, tint = model(torch.randn(2, frames, 64) - 8, torch.zeros(2, 64))
            assert cloud.shape == tint.shape == (2, 120, 3) and cloud.abs().max() <= 1 and 0 <= tint.min() <= tint.max() <= 1
        mel_frames = torch.randn(1, 50, 64) - 8
        assert not torch.allclose(model(mel_frames, torch.zeros(1, 64))[1], model(mel_frames, torch.ones(1, 64))[1])
        assert torch.isfinite(model(torch.full((1, 50, 64), -23.0), torch.zeros(1, 64))[0]).all()
    frames = mel.frames(tone(440))
    numpy.testing.assert_allclose(Spectocloud.levels(torch.from_numpy(frames)[None])[0].numpy(), targets.levels(frames), atol=1e-5)
    with pytest.raises(UserError, match="multiple of 12"):
        Spectocloud(cloud_settings.model_copy(update={"points": 100}))


@pytest.mark.long
def test_training_beats_the_start_and_the_evaluation_has_its_baselines(cloud_settings, library):
    settings = with_data(cloud_settings, library)
    before = train.system_of(settings)
    baseline = evaluation.mean_cloud(before.train.all())
    untrained = evaluation.evaluate(before.model, before.held_clips, baseline)
    outcome = train.train(settings, run_name="c")
    found = train.evaluate(outcome.run)["clouds"]
    assert set(found) == {"model", "one colour", "floor", "mean cloud"}
    assert found["model"]["chamfer"] < untrained["model"]["chamfer"]
    assert found["floor"]["chamfer"] < found["mean cloud"]["chamfer"] and found["floor"]["color_error"] < 1e-3


def test_missing_manifests_warn_loudly(cloud_settings, library, capsys, monkeypatch):
    from music_training.emotion_bridges import studio

    composed = []
    monkeypatch.setattr(studio, "_compose_fallback", lambda with_audio, scope: composed.append(with_audio))
    settings = with_data(cloud_settings, {"train_manifest": "data/none.jsonl", "val_manifest": library["val_manifest"]})
    small = settings.data.studio.model_copy(update={"artists": 2, "tracks_per_artist": 1, "seconds": (20, 24)})
    settings = settings.model_copy(update={"data": settings.data.model_copy(update={"studio": small})})
    studio.entries(settings)
    said = capsys.readouterr().out
    assert f"WARNING: Manifest not found: {files.outputs_root() / 'data/none.jsonl'}" in said
    assert "WARNING: Generating synthetic training data for smoke testing only!" in said and composed == [True]


def test_clouds_on_disk_are_verified(library, cloud_settings, tmp_path):
    entries = manifests.read(tmp_path / "train.jsonl")
    made = clouds.precompute(entries, str(tmp_path / "clouds"))
    paths = [files.absolute(entry.target_pointcloud_path) for entry in made]
    held = [numpy.load(path) for path in paths]
    assert all(cloud.shape == (1200, 3) and cloud.dtype == numpy.float32 for cloud in held)
    assert all((path.parent / "colours" / path.name).is_file() for path in paths)
    paths[0].write_bytes(b"half")
    numpy.save(paths[1], numpy.zeros((7, 3), numpy.float32))
    kept = paths[2].stat().st_mtime_ns
    assert clouds.precompute(entries, str(tmp_path / "clouds")) == made
    for path, cloud in zip(paths, held, strict=True):
        numpy.testing.assert_array_equal(numpy.load(path), cloud)
    assert paths[2].stat().st_mtime_ns == kept
    settings = cloud_settings.model_copy(update={"points": 1200, "seconds": 8.0})
    clip = Clips(made, settings).random(0, numpy.random.default_rng(0))
    numpy.testing.assert_array_equal(clip.cloud, held[0])
    paths[0].write_bytes(b"half")
    with pytest.raises(UserError, match="not a cloud of 1200"):
        clouds.read(paths[0], 1200, [0, 0, 0])


def test_the_page_holds_everything_and_escapes_titles(tmp_path):
    rng = numpy.random.default_rng(0)
    cloud = rng.uniform(-1, 1, (1200, 3)).astype(numpy.float32)
    scene = viewer.Scene("</script><b>evil", 8.0, [("truth", cloud, numpy.abs(cloud))], tone(440, 1.0, viewer.AUDIO_RATE))
    page = viewer.write(tmp_path / "v.html", [scene] * 3, "A <title>").read_text()
    assert "A &lt;title&gt;" in page and "</script><b>" not in page
    content = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert len(content) == 3 and content[0]["audio"].startswith("data:audio/mpeg;base64,")
    assert not re.search(r"(src|href)=\"?https?:", page) and "default-src 'none'" in page
