"""AudioCraft's training over two pods (network namespaces) gives the bits of two processes on one."""

import pytest
from namespaces import LAUNCH, on_one_pod, together

from music_training import files, runs

SCRIPT = files.REPOSITORY / "scripts" / "train_audiocraft.py"


@pytest.mark.long
def test_two_pods_train_the_codec_of_one(pods, egs, codec_overrides):
    overrides = ["solver=compression", *codec_overrides, "optim.epochs=2"]
    together(pods, "bash", LAUNCH, "--gpus", 1, SCRIPT, *overrides, "run=two")
    on_one_pod("bash", LAUNCH, "--gpus", 2, SCRIPT, *overrides, "run=one")
    one, two = (files.digest(runs.find(name) / "ckpt" / "best" / "model.safetensors") for name in ("one", "two"))
    assert one == two
