"""Weights folders: what is written is what is read, an exported file is read too, and a mistake is one line."""

import pytest

from music_training import files
from music_training.errors import UserError
from music_training.musicgen import audiocraft_compat, models

audiocraft_compat.install()

import torch  # noqa: E402
from audiocraft.models import CompressionModel, builders  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402

from music_training.musicgen.train import compose  # noqa: E402


@pytest.fixture
def codec_config(outputs):
    return compose(["model=codec_tiny", "device=cpu"])


@pytest.fixture
def codec(codec_config):
    """A codec with codebooks that were used once, and its weights folder."""
    torch.manual_seed(0)
    model = builders.get_compression_model(codec_config)
    model(torch.randn(1, 1, 32000))
    model.eval()
    folder = models.save_weights(files.outputs_root() / "training" / "a" / "ckpt" / "best", model.state_dict(), codec_config)
    return model, folder


def codes(model) -> torch.Tensor:
    with torch.no_grad():
        return model.encode(torch.sin(torch.arange(32000) / 20)[None, None])[0]


def test_a_weights_folder_gives_the_same_codec_back(codec):
    model, folder = codec
    assert models.is_weights_folder(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "model.safetensors"]
    for reference in (folder, files.relative(folder)):
        loaded = models.load_codec(reference)
        assert not loaded.training
        assert torch.equal(codes(loaded), codes(model))
        with torch.no_grad():
            assert torch.equal(loaded.decode(codes(model)), model.decode(codes(model)))


def test_a_weights_folder_is_replaced_whole(codec, codec_config):
    model, folder = codec
    (folder / "old.txt").touch()
    models.save_weights(folder, {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}, codec_config)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["best"]
    assert not (folder / "old.txt").exists()
    assert all(not tensor.any() for tensor in models.load_codec(folder).state_dict().values())


def test_an_exported_file_gives_the_same_codec(codec, codec_config, tmp_path):
    model, _ = codec
    content = {"best_state": model.state_dict(), "xp.cfg": OmegaConf.to_yaml(codec_config), "version": "1.3.0", "exported": True}
    torch.save(content, tmp_path / "codec.bin")
    assert torch.equal(codes(models.load_codec(tmp_path / "codec.bin")), codes(model))


def test_a_language_model_comes_back_with_its_codec(codec):
    _, folder = codec
    overrides = ["device=cpu", "solver=musicgen", "model=lm_tiny", "conditioner=lut", "dataset.segment_duration=2"]
    config = compose([*overrides, f"compression_model_checkpoint={files.relative(folder)}"])
    torch.manual_seed(1)
    language_model = builders.get_lm_model(config)
    written = models.save_weights(files.outputs_root() / "lm", language_model.state_dict(), config)
    loaded = models.load_language_model("lm")
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in language_model.state_dict().items())
    musicgen = models.load_musicgen(written)
    assert musicgen.max_duration == 2 and musicgen.sample_rate == 32000
    assert "description" in musicgen.lm.condition_provider.conditioners


def test_weights_of_another_configuration_are_refused(codec, codec_config):
    model, folder = codec
    state = dict(model.state_dict())
    gone = next(iter(state))
    del state[gone]
    models.save_weights(folder, state, codec_config)
    with pytest.raises(UserError, match="not the weights of this configuration") as caught:
        models.load_codec(folder)
    assert gone in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml"])
def test_a_folder_without_weights_says_what_to_do(codec, name):
    _, folder = codec
    (folder / name).unlink()
    assert not models.is_weights_folder(folder)
    for load in (models.load_codec, models.load_language_model, models.load_musicgen):
        with pytest.raises(UserError, match="no weights here .*; train a model first"):
            load(folder)


def test_a_name_that_the_hub_does_not_give_is_one_line(monkeypatch, outputs):
    asked = []

    def get_pretrained(name, device):
        asked.append(name)
        raise OSError("we could not connect\nand more")

    monkeypatch.setattr(CompressionModel, "get_pretrained", get_pretrained)
    for name in ("//pretrained/facebook/no_codec", "facebook/no_codec"):
        with pytest.raises(UserError, match="neither a folder or file here nor a model that the hub gives") as caught:
            models.load_codec(name)
        assert "\n" not in str(caught.value)
    assert asked == ["facebook/no_codec"] * 2
