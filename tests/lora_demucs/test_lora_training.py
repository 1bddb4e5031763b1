"""From stems to an adapter in use: train, go on after a stop, evaluate, separate, export, quantise."""

import numpy
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from stem_examples import RATE, STEMS, small

from music_training import config, runs
from music_training.errors import UserError
from music_training.lora_demucs import __main__ as command
from music_training.lora_demucs import base, export, train
from music_training.lora_demucs.config import LoraDemucsSettings
from music_training.trainer.callbacks import Callback

FEW = {
    "epochs": 1, "max_steps": 4, "batch_size": 2, "mixed_precision": False, "optimizer": {"lr": 3e-3},
    "scheduler": {"warmup_steps": 0}, "checkpoint": {"interval": 2}, "validation": {"interval": 100},
    "logging": {"interval": 2, "tensorboard": False}, "performance": {"num_workers": 0},
}  # fmt: skip


@pytest.fixture
def settings(tmp_path, stem_folder):
    base.write(small(), tmp_path / "base.safetensors")
    content = {"base": str(tmp_path / "base.safetensors"), "dset": {"wav": str(stem_folder), "sources": list(STEMS)}}
    content |= {"loss": "log_ratio", "steps_per_epoch": 4, "valid_seconds": 1, "training": FEW}
    return config.load(LoraDemucsSettings, content)


class Stop(Callback):
    def on_checkpoint(self, trainer, path) -> None:
        if trainer.step == 2:
            raise KeyboardInterrupt


def test_train_evaluate_separate_export(settings, tmp_path, capsys):
    outcome = train.train(settings, run_name="whole")
    assert outcome.step == 4 and outcome.metrics["val_nsdr"] == outcome.best
    adapter = outcome.run / train.ADAPTER
    assert (adapter / "adapter.safetensors").stat().st_size < 2 * (tmp_path / "base.safetensors").stat().st_size
    result = train.evaluate(outcome.run)
    assert set(result["summary"]) == {"adapted", "unadapted", "split"} and set(result["summary"]["adapted"]["nsdr"]) == set(STEMS)
    assert "silence" in str(train.score_table(result))

    noise = 0.1 * numpy.random.default_rng(0).standard_normal((2 * RATE, 2))
    soundfile.write(tmp_path / "song.wav", noise, RATE)
    command.main(["separate", str(tmp_path / "song.wav"), "--adapter", "whole", "--out-dir", str(tmp_path / "out"), "--two-stems", "kick"])
    assert sorted(path.name for path in (tmp_path / "out" / "song").iterdir()) == ["kick.wav", "no_kick.wav"]

    command.main(["export", "whole", str(tmp_path / "model"), "--name", "mine", "--include-lora"])
    from demucs.pretrained import get_model

    theirs = get_model("mine", tmp_path / "model")
    ours = train.open_adapted("whole")
    mixture = torch.from_numpy(noise.T[None, :, :RATE].astype(numpy.float32))
    with torch.no_grad():
        wanted = ours.model(mixture)
        assert theirs.sources == list(STEMS) and (theirs(mixture) - wanted).abs().max() < 1e-5
        loaded = export.load_lora_weights(small(), tmp_path / "model" / "mine_lora")
        assert torch.equal(loaded(mixture), wanted)
    figures = export.quantize_adapter("whole", tmp_path / "int8.safetensors")
    assert figures["snr_db"] > 30 and figures["ratio"] < 0.5
    with pytest.raises(UserError, match="neither an adapter's folder nor a run"):
        train.separate("nothing", [tmp_path / "song.wav"], tmp_path / "out")


def test_a_stopped_run_goes_on_to_the_same_weights(settings):
    whole = train.train(settings, run_name="whole").run
    with pytest.raises(KeyboardInterrupt):
        train.train(settings, run_name="stopped", callbacks=[Stop()])
    again = train.train(settings, resume="stopped").run
    one, other = (load_file(run / train.ADAPTER / "adapter.safetensors") for run in (whole, again))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_all_weights_from_scratch_and_gradient_ranks_on_top(settings, stem_folder):
    content = settings.model_dump(mode="json")
    content |= {"base": "scratch", "method": "full"}
    content["dset"] |= {"sources": ["drums", "bass", "other", "vocals"], "sample_rate": RATE}
    content["htdemucs"] |= {"channels": 8, "nfft": 512, "depth": 3, "t_layers": 1, "bottom_channels": 8, "t_heads": 2, "segment": 1}
    train.train(config.load(LoraDemucsSettings, content), run_name="small")
    assert base.load("small").sources == ["drums", "bass", "other", "vocals"]
    content |= {"base": "small", "method": "lora"}
    content["dset"] |= {"sources": list(STEMS), "sample_rate": None}
    content["htdemucs"] = {"lora_rank_mode": "gradient", "calibration_batches": 1, "min_rank": 1, "lora_rank_adaptation": True,
                           "adaptation": {"interval": 1, "share": 0.3, "start": 0.0, "end": 1.0}, "enable_checkpointing": True}  # fmt: skip
    made = train.train(config.load(LoraDemucsSettings, content), run_name="moved")
    assert len(set(train.open_adapted(made.run).known["default"].ranks.values())) > 1
    content["htdemucs"] = {"nfft": 1024, "t_layers": 3}
    with pytest.raises(UserError, match="its weights fix it"):
        train.train(config.load(LoraDemucsSettings, content))
    assert runs.find("moved").is_dir()


@pytest.mark.long
def test_onnx_by_itself_gives_the_stems_of_the_adapted_model(settings, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    train.train(settings, run_name="whole")
    command.main(["export", "whole", str(tmp_path), "--name", "mine", "--onnx"])
    assert "are left to the caller" in capsys.readouterr().out
    model = train.open_adapted("whole").model
    mixture = torch.from_numpy(0.1 * numpy.random.default_rng(3).standard_normal((1, 2, RATE)).astype(numpy.float32))
    session = onnxruntime.InferenceSession(str(tmp_path / "mine.onnx"), providers=["CPUExecutionProvider"])
    spectrum = model._magnitude(model._spec(mixture)).contiguous()
    spectra, waves = map(torch.from_numpy, session.run(None, {"spectrum": spectrum.numpy(), "mixture": mixture.numpy()}))
    with torch.no_grad():
        wanted = model(mixture)
    found = model._ispec(model._mask(None, spectra), RATE) + waves
    assert found.shape == (1, len(STEMS), 2, RATE) and (found - wanted).abs().max() < 1e-4 * wanted.abs().max()


@pytest.mark.long
def test_onnx_of_a_model_of_magnitudes(tmp_path):
    from demucs.htdemucs import HTDemucs

    torch.manual_seed(0)
    shape = {"channels": 8, "depth": 3, "nfft": 512, "t_layers": 0, "samplerate": RATE, "segment": 1}
    model = HTDemucs(["drums", "bass"], audio_channels=1, cac=False, wiener_iters=-1, end_iters=-1, **shape)
    assert export.to_onnx(model, tmp_path / "small.onnx") < 1e-4


@pytest.mark.long
def test_an_onnx_file_that_differs_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "PARITY", -1.0)
    with pytest.raises(UserError, match="not kept"):
        export.to_onnx(small(), tmp_path / "small.onnx")
    assert not (tmp_path / "small.onnx").exists()
