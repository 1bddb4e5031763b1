"""Configurations in the seed's words, the commands, the runner script, export and budget."""

import json
import os
import subprocess
import sys

import numpy
import pytest
import soundfile
import symusic
import tones
import torch

from music_training import config, files
from music_training.emotion_bridges import __main__ as command
from music_training.emotion_bridges import budget, export
from music_training.emotion_bridges.config import MidiSettings, SpectocloudSettings
from music_training.emotion_bridges.midi_generator import roundtrip
from music_training.emotion_bridges.midi_generator.model import MidiTransformer
from music_training.emotion_bridges.spectocloud.model import Spectocloud
from music_training.errors import UserError

CONFIGS = files.REPOSITORY / "model_config" / "emotion_bridges"


@pytest.mark.parametrize("name, cls, batch", [("spectocloud", SpectocloudSettings, 32), ("midi_generator", MidiSettings, 64)])
def test_the_yaml_files_say_the_defaults(name, cls, batch):
    path = CONFIGS / f"{name}_training_config.yaml"
    settings = config.load(cls, path)
    training = settings.training
    assert training.batch_size == batch and training.epochs == 150 and training.mixed_precision == "fp16"
    stopping = training.early_stopping
    assert (stopping.patience, stopping.min_delta, stopping.min_epochs) == (10, 0.001, 50)
    assert (training.performance.num_workers, training.performance.prefetch_factor) == (8, 4)
    bare = cls()
    without = {"data", "training"}
    assert settings.model_dump(exclude=without) == bare.model_dump(exclude=without)
    assert config.load(cls, settings.model_dump(mode="json")) == settings


def test_the_words_of_the_seed_and_the_trainer_mean_the_same():
    words = [
        "training.amp_dtype=bfloat16",
        "training.grad_accum_steps=8",
        "training.resume_from=old",
        "data.batch_size=16",
        "data.num_workers=0",
    ]
    training = config.load(MidiSettings, {}, words).training
    assert (training.mixed_precision, training.gradient_accumulation_steps, training.checkpoint.resume) == ("bf16", 8, "old")
    assert (training.batch_size, training.performance.num_workers, training.optimizer.lr) == (16, 0, 6e-4)
    off = config.load(MidiSettings, {}, ["training.early_stopping.enabled=false", "training.amp=false", "training.min_epochs=3"]).training
    assert off.early_stopping is None and off.mixed_precision is False
    with pytest.raises(UserError) as caught:
        config.load(MidiSettings, {"training": {"epohs": 3}, "data": {"bach_size": 1}})
    assert "did you mean 'epochs'" in str(caught.value) and "data.bach_size" in str(caught.value)


@pytest.mark.parametrize(
    "text, felt", [("grief", [-0.85, -0.3, 0.9]), ("0.5,-0.2,0.6", [0.5, -0.2, 0.6]), ("-0.5, 1, 0", [-0.5, 1.0, 0.0])]
)
def test_emotions_on_a_command_line(text, felt):
    assert command.emotion_of(text) == felt


@pytest.mark.parametrize("words, fault", [
    (["export_models"], "say what to export"), (["train"], "say which model"), (["evaluate", "nothing"], "not found"),
    (["export_models", "--all"], "no run of spectocloud"), (["round_trip", "none.mid"], None),
])  # fmt: skip
def test_mistakes_are_one_line(words, fault, capsys):
    if fault is None:
        command.main(words)
        assert "refused: none.mid: no such MIDI file" in capsys.readouterr().out
        return
    with pytest.raises(UserError, match=fault):
        command.main(words)


def test_a_real_performance_as_a_row(real_data):
    path = next((real_data / "groove_midi").rglob("*.mid"))
    found = roundtrip.row(path)
    assert found["notes"] == found["come back"] == 410
    assert found["onset"] <= 0.5 / 24 + 1e-9 and found["velocity"] <= 2 and found["tempo"] <= 0.05
    assert found["left out"]["controllers"] == 473


def test_the_runner_script(tmp_path):
    script = files.REPOSITORY / "scripts" / "train_cuda_v2.sh"
    run = lambda *words: subprocess.run(["bash", str(script), *words], capture_output=True, text=True)  # noqa: E731
    helped = run("--help").stdout
    for option in ("--audio-root", "--midi-root", "--data-mount", "--skip-manifests", "--skip-spectocloud", "--skip-midi", "--skip-export"):
        assert option in helped
    assert run("--nonsense").returncode == 2 and "go together" in run("--audio-root", str(tmp_path)).stderr


def test_the_runner_in_a_container(tmp_path):
    """A stand-in for docker notes how it was called: the mounts, and the same command inside without what is for outside."""
    calls, data = tmp_path / "calls.jsonl", tmp_path / "some data"
    data.mkdir()
    program = files.write_text(
        tmp_path / "bin" / "docker",
        f"#!{sys.executable}\nimport json, sys\nopen({str(calls)!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')\n",
    )
    program.chmod(0o755)
    script = files.REPOSITORY / "scripts" / "train_cuda_v2.sh"

    def run(*words, **environment):
        calls.unlink(missing_ok=True)
        known = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", **environment}
        ended = subprocess.run(["bash", str(script), *words], capture_output=True, text=True, cwd=tmp_path, env=known)
        return ended, [json.loads(line) for line in calls.read_text().splitlines()] if calls.is_file() else []

    words = ["--audio-root", "/data/audio", "--midi-root", "/data/my midi", "--gpus", "2", "--skip-export", "training.epochs=3"]
    ended, (build, started) = run("--data-mount", str(data), *words)
    assert ended.returncode == 0, ended.stderr
    assert build == ["build", "-f", "deployment/docker/Dockerfile.cuda", "-t", "music-training:v2", "."]
    assert started[:2] == ["run", "--rm"] and started[started.index("--gpus") + 1] == "all"
    mounts = [value for option, value in zip(started, started[1:], strict=False) if option == "-v"]
    assert mounts == [f"{files.REPOSITORY}:/workspace", f"{data}:/data"]
    assert started[started.index("-w") :] == ["-w", "/workspace", "music-training:v2", "bash", "scripts/train_cuda_v2.sh", *words]
    assert started[started.index("--user") + 1] == f"{os.getuid()}:{os.getgid()}"

    ended, (_, started) = run("--docker")
    assert "/data" not in " ".join(started) and started[-2:] == ["bash", "scripts/train_cuda_v2.sh"]
    for wrong, line in ((["--data-mount", str(tmp_path / "none")], "no such folder"), (["--data-mount"], "wants a value")):
        ended, called = run(*wrong)
        assert ended.returncode == 2 and line in ended.stderr and not called
    ended, called = run("--docker", DOCKERFILE="none")
    assert ended.returncode == 2 and "no such file" in ended.stderr and not called


@pytest.mark.long
def test_the_runner_trains_both_and_exports_them(tmp_path, outputs, midi_settings, cloud_settings):
    """From two folders to ONNX files, without a container, in the configuration's place small ones."""
    for number, folder in enumerate(("happy", "sad", "angry", "calm")):
        audio, midi = (tmp_path / kind / folder / f"track{number}" for kind in ("audio", "midi"))
        audio.parent.mkdir(parents=True)
        midi.parent.mkdir(parents=True)
        soundfile.write(f"{audio}.wav", tones.tone(220 * 2**number), 16000)
        score, track = symusic.Score(480), symusic.Track("a", 0, False)
        for place in range(32):
            track.notes.append(symusic.Note(240 * place, 240, 60 + number + place % 5, 80))
        score.tracks.append(track)
        score.dump_midi(f"{midi}.mid")
    words = ["--val-split", "0.25"]
    for option, settings in (("--spectocloud-config", cloud_settings), ("--midi-config", midi_settings)):
        which = "spectocloud" if settings is cloud_settings else "midi"
        data = {"train_manifest": f"data/manifests/{which}_train.jsonl", "val_manifest": f"data/manifests/{which}_val.jsonl"}
        changed = settings.model_copy(update={"data": settings.data.model_copy(update={**data, "dataset": None})})
        config.save(changed, tmp_path / f"{which}.yaml")
        words += [option, str(tmp_path / f"{which}.yaml")]
    command = ["bash", str(files.REPOSITORY / "scripts" / "train_cuda_v2.sh"), *words, "training.max_steps=4"]
    command += ["--audio-root", str(tmp_path / "audio"), "--midi-root", str(tmp_path / "midi")]
    known = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(files.REPOSITORY), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, env=known)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    assert "synthetic" not in ended.stdout.lower() and ended.stdout.count(": 4 steps") == 2
    for kind in ("spectocloud", "midi_generator"):
        assert (outputs / "exports" / f"{kind}.onnx").is_file() and (outputs / "exports" / f"{kind}_fixed.onnx").is_file()


@pytest.mark.long
@pytest.mark.parametrize("kind", ["spectocloud", "midi_generator"])
def test_exports_agree_with_pytorch(kind, midi_settings, cloud_settings, tmp_path):
    settings = cloud_settings if kind == "spectocloud" else midi_settings
    torch.manual_seed(0)
    model = (Spectocloud if kind == "spectocloud" else MidiTransformer)(settings).eval()
    found = export.to_onnx(model, settings, tmp_path)
    assert set(found) == {tmp_path / f"{kind}.onnx", tmp_path / f"{kind}_fixed.onnx"}
    assert max(found.values()) <= export.TOLERANCE
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    trial = export._cloud_inputs(1, 50) if kind == "spectocloud" else export._midi_inputs(model, 1, 0, 7)
    with pytest.raises(UserError, match="differs from PyTorch"):
        export.parity(tmp_path / f"{kind}.onnx", model, [trial], export.NAMES[kind][0])


@pytest.mark.long
@pytest.mark.parametrize("kind", ["spectocloud", "midi_generator"])
def test_core_ml_where_its_tools_are(kind, midi_settings, cloud_settings, tmp_path, monkeypatch):
    settings = cloud_settings if kind == "spectocloud" else midi_settings
    model = (Spectocloud if kind == "spectocloud" else MidiTransformer)(settings).eval()
    coremltools = pytest.importorskip("coremltools", reason="coremltools is not installed")
    assert export.to_core_ml(model, settings, tmp_path) == f"{tmp_path / kind}.mlpackage: written, not run"
    described = coremltools.models.MLModel(str(tmp_path / f"{kind}.mlpackage"), skip_model_load=True).get_spec().description
    inputs, outputs = export.NAMES[kind]
    assert [one.name for one in described.input] == (inputs if kind == "spectocloud" else inputs[:3])
    assert [one.name for one in described.output] == (outputs if kind == "spectocloud" else outputs[:1])
    assert [path.name for path in tmp_path.iterdir()] == [f"{kind}.mlpackage"]
    monkeypatch.setattr(coremltools, "convert", lambda *_, **__: (_ for _ in ()).throw(NotImplementedError("no such\nnode")))
    assert "cannot convert it (no such)" in export.to_core_ml(model, settings, tmp_path / "other")


@pytest.mark.long
def test_the_budget_is_steps_times_price(midi_settings):
    said = budget.estimate(midi_settings, price_per_hour=2.0, epochs=10, steps=2, examples=64)
    rate = float(said.split(" updates a second")[0].rsplit(" ", 1)[1])
    hours = float(said.splitlines()[2].split(" hours")[0])
    assert "64 examples / 4 an update x 10 epochs = 160 updates" in said
    assert hours == pytest.approx(160 / rate / 3600, abs=0.01)
    assert numpy.isfinite(rate)
