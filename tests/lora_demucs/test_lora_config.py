"""Settings: the file states the defaults, short names are understood, contradictions are refused."""

import pytest

from music_training import config, files
from music_training.config import ConfigError
from music_training.lora_demucs.config import LoraDemucsSettings


def test_the_file_states_every_default():
    path = files.REPOSITORY / "model_config" / "lora_demucs.yaml"
    assert config.load(LoraDemucsSettings, path) == LoraDemucsSettings()
    assert config.read_yaml(path).keys() == LoraDemucsSettings.model_fields.keys()


def test_short_names_and_presets():
    given = ["continue_from=htdemucs_6s", "variant=finetune", "optim.lr=1e-4", "optim.warmup_steps=7", "batch_size=32"]
    given += ["htdemucs.gradient_clip=0.5", "htdemucs.precision=bfloat16", "htdemucs.lora_rank=8", "dset.num_workers=3", "segment=12"]
    made = config.load(LoraDemucsSettings, {}, given)
    training = made.training
    assert (made.base, made.htdemucs.lora_rank, made.htdemucs.segment) == ("htdemucs_6s", 8, 12)
    assert (training.optimizer.lr, training.scheduler.warmup_steps, training.scheduler.type) == (1e-4, 7, "linear")
    assert (training.batch_size, training.gradient_clipping, training.mixed_precision) == (32, 0.5, "bf16")
    assert training.performance.num_workers == 3
    scratch = config.load(LoraDemucsSettings, {}, ["preset=from_scratch"]).training
    assert (scratch.optimizer.lr, scratch.scheduler.warmup_steps, scratch.scheduler.type) == (1e-4, 1000, "cosine")


@pytest.mark.parametrize(
    "override, message",
    [
        ("base=scratch", "take method full"),
        ("htdemucs.min_rank=20", "min_rank 20 is above max_rank 16"),
        ("dset.sources=[kick, kick]", "each once"),
        ("htdemucs.lora_rnk=4", "did you mean 'lora_rank'"),
    ],
)
def test_contradictions_are_one_line(override, message):
    with pytest.raises(ConfigError, match=message):
        config.load(LoraDemucsSettings, {}, [override])
