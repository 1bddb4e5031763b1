"""What makes a training faster or smaller leaves its result: compiled, recomputed, in half precision."""

import pytest

from music_training import runs


def losses(run: str, name: str) -> list[float]:
    return [row[name] for row in runs.read_metrics(runs.folder() / run) if row["stage"] == "train"]


def test_recomputed_activations_give_the_same_training(egs, forked, speaks):
    short = [*speaks, "conditioner=lut", "optim.epochs=1"]
    assert forked(*short, "run=kept")[0] == [0]
    codes, log = forked(*short, "transformer_lm.checkpointing=torch", "run=recomputed")
    assert codes == [0], log
    for name in ("ce", "grad_norm"):
        assert losses("recomputed", name) == pytest.approx(losses("kept", name), rel=1e-6)


def test_half_precision_trains_nearly_the_same(egs, forked, speaks, gan_overrides):
    """bf16 autocast: weights, losses and the codec's codebooks stay in float32."""
    short = [*speaks, "conditioner=lut", "optim.epochs=2"]
    assert forked(*short, "run=whole")[0] == [0]
    codes, log = forked(*short, "autocast=true", "run=half")
    assert codes == [0], log
    assert "bfloat16" in log
    assert losses("half", "ce") == pytest.approx(losses("whole", "ce"), rel=5e-3)
    assert losses("half", "ce") != losses("whole", "ce")
    assert forked(*gan_overrides, "optim.epochs=1", "run=codec")[0] == [0]
    codes, log = forked(*gan_overrides, "optim.epochs=1", "autocast=true", "run=half_codec")
    assert codes == [0], log
    assert losses("half_codec", "msspec") == pytest.approx(losses("codec", "msspec"), rel=0.05)


@pytest.mark.long
def test_a_compiled_codec_trains_the_same(egs, train, codec_overrides):
    short = [*codec_overrides, "optim.epochs=1"]
    assert train(*short, "run=plain").returncode == 0
    compiled = train(*short, "compile=true", "run=compiled")
    assert compiled.returncode == 0, compiled.stdout
    assert "in the audio; training goes on with it" in compiled.stdout
    for name in ("l1", "msspec", "grad_norm"):
        assert losses("compiled", name) == pytest.approx(losses("plain", name), rel=1e-3)


@pytest.mark.long
def test_without_a_compiler_it_trains_uncompiled(egs, train, codec_overrides, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    short = [*codec_overrides, "optim.epochs=1"]
    assert train(*short, "run=plain").returncode == 0
    found = train(*short, "compile=true", "run=without")
    assert found.returncode == 0, found.stdout
    assert "training goes on without it" in found.stdout
    assert losses("without", "l1") == losses("plain", "l1")
