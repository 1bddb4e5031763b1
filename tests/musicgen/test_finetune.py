"""What begins with another model begins with exactly that one; adapters change nothing until trained, and only themselves."""

import pytest

from music_training import files, runs
from music_training.errors import UserError
from music_training.musicgen import audiocraft_compat, export, finetune, models, training

audiocraft_compat.install()

import torch  # noqa: E402
from audiocraft.models import builders  # noqa: E402
from audiocraft.modules.conditioners import ConditioningAttributes  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from music_training.musicgen.train import compose  # noqa: E402

TEXT = [ConditioningAttributes(text={"description": "four tones"}), ConditioningAttributes(text={"description": None})]


@pytest.fixture
def speaker(speakers) -> str:
    """A random language model with its codec, as a weights folder of this project."""
    return speakers


@pytest.fixture
def exported(speaker, tmp_path) -> str:
    return str(export.export(speaker, tmp_path / "published"))


def logits(model) -> torch.Tensor:
    codes = torch.randint(32, (2, 2, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval().compute_predictions(codes, TEXT).logits.nan_to_num()


def test_an_exported_model_is_fetched_once_with_its_codec_and_its_licence(exported, speaker, capsys):
    about = finetune.fetch(exported)
    original, fetched = (models.load_language_model(path) for path in (speaker, about["model"]))
    assert torch.equal(logits(original), logits(fetched))
    codes = torch.randint(32, (1, 2, 50))
    with torch.no_grad():
        assert torch.equal(models.load_codec(about["codec"]).decode(codes), models.load_codec("codec").decode(codes))
    assert about["licence"] == "other" and about["segment_seconds"] == 1
    capsys.readouterr()
    assert finetune.fetch(exported) == about and "up to date" in capsys.readouterr().out
    assert finetune.fetch(speaker)["model"] == speaker  # one of our own stays where it is
    assert "licence of these weights: other" in finetune.describe(exported)


@pytest.mark.parametrize("name", ["facebook/musicgen-small", "//pretrained/facebook/encodec_32khz"])
def test_published_weights_say_their_licence_without_a_network(name):
    assert "CC-BY-NC-4.0" in finetune.licence(name)


def test_architecture_and_codec_come_with_the_model(exported, speaker):
    given = ["solver=musicgen", f"start_from={exported}", "optim.lr=1e-5"]
    config = compose([*finetune.expand(given), "device=cpu"])
    model = builders.get_lm_model(config)
    missing, unexpected = model.load_state_dict(load_file(files.absolute(speaker) / "model.safetensors"), strict=False)
    assert not missing and not unexpected
    assert config.compression_model_checkpoint == finetune.fetch(exported)["codec"] and config.optim.lr == 1e-5
    assert finetune.expand(["solver=musicgen", "model=lm_tiny"]) == ["solver=musicgen", "model=lm_tiny"]
    with pytest.raises(UserError, match="come with start_from"):
        finetune.expand([*given, "model=lm_tiny"])


def test_adapters_start_without_effect_train_alone_and_are_what_peft_reads(speaker, tmp_path):
    import peft

    model = models.load_language_model(speaker)
    before = logits(model)
    count = finetune.adapt(model, rank=4, alpha=8)
    assert torch.equal(logits(model), before)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(".lora_" in name for name in trained) and count < 0.5 * sum(p.numel() for p in model.parameters())
    for kind in ("self_attn.lora_", "cross_attention.lora_", "out_proj.lora_", "linear1.lora_", "linear2.lora_"):
        assert any(kind in name for name in trained), kind
    for name, parameter in trained.items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    config = models.read_config(files.absolute(speaker))
    config.lora, config.start_from = {"rank": 4, "alpha": 8}, speaker
    folder = models.save_weights(files.outputs_root() / "adapted", model.state_dict(), config)
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors", "config.yaml"]
    adapted = logits(model)
    assert (adapted - before).abs().max() > 0.1
    torch.testing.assert_close(logits(models.load_language_model(folder)), adapted, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(models.load_language_model(folder, adapter=False)), before)
    theirs = models.load_language_model(speaker)
    peft.PeftModel.from_pretrained(theirs.transformer, str(folder))
    torch.testing.assert_close(logits(theirs), adapted, rtol=1e-4, atol=1e-4)
    out = export.export(files.relative(folder), tmp_path / "merged")  # adapters are added to what is exported
    torch.testing.assert_close(logits(models.load_language_model(finetune.fetch(str(out))["model"])), adapted, rtol=1e-4, atol=1e-4)


def test_lora_trains_from_an_exported_model_and_the_music_is_another(egs, train, exported):
    base = finetune.fetch(exported)["model"]
    asked = [
        "solver=musicgen",
        f"start_from={exported}",
        "lora.rank=2",
        "optim.lr=0.05",
        "dataset.segment_duration=1",
        "dataset.batch_size=2",
    ]
    asked += ["datasource.train=egs/tones/train", "datasource.valid=egs/tones/valid", "dataset.valid.num_samples=2"]
    done = train(*asked, "optim.epochs=1", "optim.updates_per_epoch=4", "run=adapters")
    assert done.returncode == 0, done.stdout
    best = files.outputs_root() / "training" / "adapters" / "ckpt" / "best"
    assert models.weights_file(best).name == "adapter_model.safetensors"
    audio = []
    for adapter in (True, False):
        model = models.load_musicgen(best, adapter=adapter)
        model.set_generation_params(duration=0.5, top_k=32)
        torch.manual_seed(0)
        audio.append(model.generate(["four tones"]))
    assert not torch.equal(*audio)
    plain = models.load_musicgen(base)
    plain.set_generation_params(duration=0.5, top_k=32)
    torch.manual_seed(0)
    assert torch.equal(plain.generate(["four tones"]), audio[1])  # without the adapters it is the model that it began with


def test_a_mistake_is_one_line(outputs, tmp_path, monkeypatch):
    import huggingface_hub

    def refuse(*_, **__):
        raise OSError("cannot be reached\nmore")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    for call, said in (
        (lambda: finetune.fetch("someone/no-model"), "neither a run or folder here nor a model that the hub gives"),
        (lambda: finetune.fetch(str(tmp_path)), "no model here"),
        (lambda: training.LanguageModelSettings(pretrained="a/b", codec="c"), "comes with its own"),
        (lambda: training.LanguageModelSettings(lora={"rank": 4}), "give pretrained"),
    ):
        with pytest.raises(ValueError, match=said):
            call()
    torch.save({"xp.cfg": "a: 1", "best_state": {}, "more": Foreign(str(tmp_path / "ran"))}, tmp_path / "state_dict.bin")
    with pytest.raises(UserError, match="such a file is not opened"):
        finetune.fetch(str(tmp_path))
    assert not (tmp_path / "ran").exists()


class Foreign:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, folder: str):
        self.folder = folder

    def __reduce__(self):
        import os

        return os.mkdir, (self.folder,)


def test_a_codec_in_the_form_of_transformers_takes_the_codecs_place(outputs, tmp_path):
    from transformers import EncodecConfig, EncodecModel

    sizes = dict(sampling_rate=32000, audio_channels=1, num_filters=2, hidden_size=16, codebook_size=32, codebook_dim=16, num_lstm_layers=1)
    config = EncodecConfig(**sizes, upsampling_ratios=[8, 5, 4, 4], target_bandwidths=[0.5], normalize=False, use_causal_conv=False)
    EncodecModel(config).save_pretrained(tmp_path / "encodec")
    codec = models.load_codec(tmp_path / "encodec")
    codes, scale = codec.encode(torch.randn(1, 1, 32000))
    assert codes.shape == (1, 2, 50) and scale is None
    assert codec.decode(codes).shape[-1] >= 32000


@pytest.mark.long
def test_a_language_model_trains_on_the_text_encoder_of_a_local_folder(egs, train, speakers, language_model_overrides, tmp_path):
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import Unigram
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    known = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581four", -1.0), ("\u2581tones", -2.0)]
    words = Tokenizer(Unigram(known, unk_id=2))
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    special = dict(pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(tmp_path / "t5")
    sizes = dict(vocab_size=128, d_model=16, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    T5EncoderModel(T5Config(**sizes)).save_pretrained(tmp_path / "t5")
    asked = [text for text in language_model_overrides if text != "conditioner=lut"]
    asked += ["conditioner=t5", f"conditioners.description.t5.name={tmp_path / 't5'}", "compression_model_checkpoint=codec"]
    done = train(*asked, "optim.epochs=1", "optim.updates_per_epoch=3", "run=t5")
    assert done.returncode == 0, done.stdout
    model = models.load_musicgen("training/t5/ckpt/best")
    model.set_generation_params(duration=0.5, top_k=32, cfg_coef=3.0)
    drawn = []
    for text in ("four tones", "four", "four tones"):
        torch.manual_seed(0)
        drawn.append(model.generate([text]))
    assert torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[1])
    out = export.export("training/t5/ckpt/best", tmp_path / "out")  # without the text encoder's weights
    assert not any("t5" in name for name in torch.load(out / "state_dict.bin", weights_only=True)["best_state"])


@pytest.mark.parametrize("kind", [pytest.param("all weights", marks=pytest.mark.long), "adapters"])
def test_fine_tuning_killed_at_a_step_ends_the_same_and_lowers_the_loss(egs, forked, exported, kind):
    asked = ["solver=musicgen", f"start_from={exported}", "dataset.segment_duration=1", "dataset.batch_size=2", "logging.every=1"]
    asked += ["datasource.train=egs/tones/train", "datasource.valid=egs/tones/valid", "dataset.valid.num_samples=2"]
    asked += ["optim.epochs=2", "optim.updates_per_epoch=6", "optim.lr=1e-3", "checkpoint.every_steps=4"]
    asked += ["lora.rank=2", "optim.lr=0.02"] if kind == "adapters" else []
    assert forked(*asked, "run=whole")[0] == [0]
    assert forked(*asked, "run=killed", kill_at=7)[0] == [-9]
    codes, log = forked(*asked, "run=killed")
    assert codes == [0], log
    folders = [runs.folder() / run / "ckpt" / "best" for run in ("whole", "killed")]
    one, other = (files.digest(models.weights_file(folder)) for folder in folders)
    assert one == other
    losses = [row["ce"] for row in runs.read_metrics(runs.folder() / "whole") if row["stage"] == "valid"]
    assert losses[-1] < losses[0]
    assert forked(*asked, "run=two", ranks=2)[0] == [0, 0]
    together = [row["ce"] for row in runs.read_metrics(runs.folder() / "two") if row["stage"] == "train"]
    alone = [row["ce"] for row in runs.read_metrics(runs.folder() / "whole") if row["stage"] == "train"]
    assert together == pytest.approx(alone, rel=1e-4)
