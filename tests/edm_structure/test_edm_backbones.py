"""MERT through the built-in Hubert class, the embedding cache, losses, and the ONNX export."""

import json

import numpy
import pytest
import torch

from music_training import config
from music_training.edm_structure import losses, mert, model, train
from music_training.edm_structure.config import EdmSettings
from music_training.errors import UserError

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4, "conv_dim": [16] * 7}  # fmt: skip


@pytest.fixture
def tiny_mert(tmp_path):
    """A folder like that of a MERT model: a Hubert of a tiny size, with the keys of MERT's own config."""
    from transformers import HubertConfig, HubertModel

    folder = tmp_path / "mert"
    torch.manual_seed(0)
    HubertModel(HubertConfig(**SIZE)).save_pretrained(folder)
    described = json.loads((folder / "config.json").read_text())
    described |= {"model_type": "mert_model", "architectures": ["MERTModel"], "feature_extractor_cqt": False, "deepnorm": False}
    described |= {"sample_rate": 24000, "auto_map": {"AutoModel": "modeling_MERT.MERTModel"}}
    (folder / "config.json").write_text(json.dumps(described))
    return folder


def settings_of(small, folder, *more):
    overrides = ["backbone=mert-95m", f"backbone_model={folder}", "duration=8", *more]
    return config.load(EdmSettings, small.model_dump(mode="json"), overrides)


def test_frames_are_75_a_second_and_lie_where_they_should(tiny_mert):
    backbone = mert.load(EdmSettings(backbone="mert-95m", backbone_model=str(tiny_mert))).eval()
    samples = torch.zeros(1, 24000 * 4)
    assert backbone(samples).shape == (1, 300, 32)
    silent, clicked = samples + 1e-4 * torch.randn(1, 96000), None
    clicked = silent.clone()
    clicked[0, 48000 : 48000 + 40] += 1.0
    with torch.no_grad():  # the convolutions alone: attention spreads everything
        heard = [backbone.hubert.feature_extractor(torch.nn.functional.pad(x, (200, 0))) for x in (silent, clicked)]
    moved = (heard[0] - heard[1]).abs().sum(1)[0]
    assert abs(int(moved.argmax()) - 150) <= 1


def test_weights_equal_the_hubert_models(tiny_mert):
    from transformers import HubertModel

    backbone = mert.load(EdmSettings(backbone="mert-95m", backbone_model=str(tiny_mert))).eval()
    peer = HubertModel.from_pretrained(tiny_mert).eval()
    samples = torch.randn(1, 24000)
    heard = torch.nn.functional.pad((samples - samples.mean()) / (samples.std() + 1e-5), (200, 0))
    with torch.no_grad():
        assert torch.allclose(backbone(samples), peer(heard).last_hidden_state, atol=1e-5)


@pytest.mark.parametrize(
    ("key", "value", "message"), [("deepnorm", True, "deepnorm"), ("feature_extractor_cqt", True, "cqt"), ("sample_rate", 16000, "16000")]
)
def test_what_hubert_cannot_express_is_refused(tiny_mert, key, value, message):
    described = json.loads((tiny_mert / "config.json").read_text())
    (tiny_mert / "config.json").write_text(json.dumps({**described, key: value}))
    with pytest.raises(UserError, match=message):
        mert.load(EdmSettings(backbone="mert-95m", backbone_model=str(tiny_mert)))


def test_cached_and_uncached_frozen_training_are_the_same(small, tiny_mert, outputs, monkeypatch):
    settings = settings_of(small, tiny_mert, "freeze_backbone=true", "training.mixed_precision=false")
    first = train.train(settings, run_name="filling").run
    cached = sorted((outputs / "cache" / "edm_embeddings").glob("*.npy"))
    assert len(cached) == 4 and numpy.load(cached[0], mmap_mode="r").dtype == numpy.float16
    monkeypatch.setattr(mert.MertBackbone, "forward", lambda *_: pytest.fail("the backbone ran though its embeddings are cached"))
    monkeypatch.setattr(mert.MertSystem, "scores", lambda *_: {})
    second = train.train(settings, run_name="cached").run
    monkeypatch.undo()
    monkeypatch.setenv("MUSIC_OUTPUTS", str(outputs))
    monkeypatch.setattr(mert.MertSystem, "use_cache", False)
    third = train.train(settings, run_name="uncached").run
    weights = [(run / "ckpt" / "last" / "model.safetensors").read_bytes() for run in (first, second, third)]
    assert weights[0] == weights[1] == weights[2]


def test_unfreezing_bypasses_the_cache_and_moves_the_backbone(small, tiny_mert, outputs):
    run = train.train(settings_of(small, tiny_mert, "training.epochs=1"), run_name="all").run
    assert not (outputs / "cache" / "edm_embeddings").exists()
    from safetensors.torch import load_file

    start = mert.load(EdmSettings(backbone="mert-95m", backbone_model=str(tiny_mert)))
    after = load_file(run / "ckpt" / "last" / "model.safetensors")
    assert not torch.equal(
        after["backbone.hubert.encoder.layers.0.attention.k_proj.weight"], start.hubert.encoder.layers[0].attention.k_proj.weight
    )
    heads = train.train(settings_of(small, tiny_mert, "freeze_backbone=true", "training.epochs=1"), run_name="heads").run
    tuned = train.train(
        settings_of(small, tiny_mert, "training.epochs=1", "training.optimizer.lr=1e-5"), run_name="tuned", init_from=heads.name
    )
    assert tuned.step == 3


def test_mert_predicts_files(small, tiny_mert, annotated, tmp_path):
    run = train.train(settings_of(small, tiny_mert, "freeze_backbone=true", "training.epochs=1")).run
    (written,) = train.predict(run, [annotated / "track0.wav"], tmp_path / "out")
    assert json.loads(written.read_text())["segments"][-1]["end"] == pytest.approx(24.0, abs=0.01)


def test_onnx_takes_samples_and_says_the_same(trained, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from music_training.edm_structure import export, features, inference

    assert export.to_onnx(trained, tmp_path / "model.onnx") < 1e-3
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    samples = numpy.random.default_rng(0).normal(0, 0.1, 24000 * 20).astype(numpy.float32)
    found = dict(zip([item.name for item in session.get_outputs()], session.run(None, {"samples": samples[None]}), strict=True))
    own = inference.activations(inference.load(trained), features.stream([samples]))
    for name, value in found.items():
        assert numpy.abs(value[0] - own[name]).max() < 5e-3, name


@pytest.mark.parametrize("kind", ["focal", "shift_tolerant", "f1"])
def test_event_losses_prefer_the_truth(kind):
    target = torch.zeros(1, 200)
    target[0, 20::40] = 1.0
    mask = torch.ones_like(target)
    right, wrong = (target * 8 - 4), (target.roll(15, 1) * 8 - 4)
    loss = losses.EVENT_LOSSES[kind]
    assert loss(right, target, mask, 4.0) < 0.3 * loss(wrong, target, mask, 4.0)
    shifted = loss(right.roll(2, 1), target, mask, 4.0)
    assert (shifted < 1.5 * loss(right, target, mask, 4.0)) == (kind == "shift_tolerant")
    cut = torch.cat([mask[:, :100], torch.zeros(1, 100)], 1)
    broken = right.clone()
    broken[:, 110:] = 50.0
    assert loss(broken, target, cut, 4.0) == pytest.approx(loss(right, target, cut, 4.0).item(), abs=2e-3)


def test_energy_loss_counts_loud_frames_more():
    target = torch.tensor([[[0.0] * 3, [1.0] * 3]])
    mask = torch.ones(1, 2)
    quiet_wrong, loud_wrong = target + torch.tensor([[[0.2] * 3, [0.0] * 3]]), target - torch.tensor([[[0.0] * 3, [0.2] * 3]])
    assert losses.energy(loud_wrong, target, mask, True) == pytest.approx(3 * losses.energy(quiet_wrong, target, mask, True).item())
    assert losses.energy(loud_wrong, target, mask, False) == pytest.approx(0.04 / 2)


def test_switched_off_heads_are_not_there_and_weights_add_up():
    settings = EdmSettings(backbone="cnn", energy=False, beat=False, boundary_weight=2.0)
    built = model.build(settings)
    outputs = built(torch.randn(2, 200, 64))
    assert set(outputs) == {"boundary", "downbeat"}
    ones = torch.ones(2, 200)
    parts = losses.total(outputs, {"boundary": ones * 0, "downbeat": ones * 0, "mask": ones, "beat_mask": ones}, settings)
    assert parts["loss"].item() == pytest.approx((2 * parts["boundary_loss"] + 0.5 * parts["downbeat_loss"]).item(), rel=1e-6)


def test_loudness_does_not_change_what_the_cnn_says():
    built = model.build(EdmSettings(backbone="cnn")).eval()
    mel = torch.randn(1, 300, 64) - 2
    with torch.no_grad():
        assert torch.allclose(built(mel)["beat"], built(mel + 1.5)["beat"], atol=1e-4)
