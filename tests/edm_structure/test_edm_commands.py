"""From annotations to predictions: the functions, the command lines, their messages."""

import csv
import json
import os
import subprocess
import sys

import jams
import mir_eval
import numpy
import pytest

from music_training import config, files, runs
from music_training.edm_structure import __main__ as cli
from music_training.edm_structure import features, inference, tracks, train
from music_training.edm_structure.config import EdmSettings
from music_training.errors import UserError
from music_training.library import annotations


def test_train_names_the_run_after_its_backbone(small):
    run = train.train(small).run
    assert "_cnn_default" in run.name and runs.read_metadata(run)["system"] == "cnn"
    assert config.load(EdmSettings, run / "config.yaml") == small
    rows = runs.read_metrics(run)
    assert {"boundary_loss", "energy_loss", "beat_loss", "downbeat_loss", "label_loss"} <= set(rows[0])
    assert {"val_loss", "val_HR.5F", "val_beat_F1"} <= set(rows[-1])


def test_a_model_learns_the_little_library(small):
    longer = config.load(
        EdmSettings, small.model_dump(mode="json"), ["training.epochs=60", "training.validation.epochs=60", "augmentation.share=0"]
    )
    outcome = train.train(longer)
    assert outcome.metrics["val_beat_F1"] > 0.9 and outcome.metrics["val_HR.5F"] > 0.9, outcome.metrics


def test_stage_is_done_once_and_goes_on_where_it_was(small, monkeypatch):
    from music_training.trainer.loop import Trainer

    class Killed(Exception):
        pass

    real = Trainer._validate

    def die(self):
        real(self)
        if self.epoch:
            raise Killed

    monkeypatch.setattr(Trainer, "_validate", die)
    with pytest.raises(Killed):
        train.train_stage(small, scope="test")
    (begun,) = runs.listing()
    monkeypatch.setattr(Trainer, "_validate", real)
    first = train.train_stage(small, scope="test")
    assert first.result["run"] == begun["name"] and len(runs.listing()) == 1 and not first.skipped
    assert train.train_stage(small, scope="test").skipped
    whole = train.train(small, run_name="undisturbed").run
    assert (whole / "ckpt/last/model.safetensors").read_bytes() == (begun["path"] / "ckpt/last/model.safetensors").read_bytes()


def test_predict_writes_what_others_read(trained, annotated, tmp_path):
    out = tmp_path / "out"
    (written,) = train.predict(trained, [annotated / "track0.wav"], out, plot=True, sonify=True)
    content = json.loads(written.read_text())
    assert set(content) == {"path", "bpm", "beats", "downbeats", "beat_positions", "segments"}
    assert len(content["beats"]) == len(content["beat_positions"])
    assert content["downbeats"] == [time for time, place in zip(content["beats"], content["beat_positions"], strict=True) if place == 1]
    assert content["segments"][0]["start"] == 0 and set(content["segments"][0]) == {"start", "end", "label"}
    assert annotations.read(out / "track0.yaml").structure[0].time == 0
    document = jams.load(str(out / "track0.jams"))  # validates against the schema
    intervals, _ = document.search(namespace="segment_open")[0].to_interval_values()
    mir_eval.segment.validate_boundary(intervals, intervals, trim=False)
    assert (out / "track0.png").read_bytes()[:4] == b"\x89PNG" and (out / "track0.sonified.wav").stat().st_size > 1e5
    before = written.stat().st_mtime_ns
    train.predict(trained, [annotated / "track0.wav"], out, skip_existing=True)
    assert written.stat().st_mtime_ns == before


def test_windows_join_to_what_one_window_says(trained, annotated, monkeypatch):
    predictor = inference.load(trained)
    counted = [0]
    whole = inference.join(inference.of_file(predictor, annotated / "track0.wav", counted))
    assert counted[0] / features.SAMPLE_RATE == pytest.approx(24.0, abs=0.01) and len(whole["beat"]) == 1201
    monkeypatch.setattr(inference, "SECONDS", 12.0)
    monkeypatch.setattr(inference, "OVERLAP", 6.0)
    joined = inference.join(inference.of_file(predictor, annotated / "track0.wav"))
    assert {name: value.shape for name, value in joined.items()} == {name: value.shape for name, value in whole.items()}
    assert numpy.corrcoef(joined["beat"], whole["beat"])[0, 1] > 0.95


def test_evaluate_writes_a_row_per_track_and_intervals(trained, annotated):
    result = train.evaluate(trained)
    rows = list(csv.DictReader((trained / "evaluation" / "tracks.csv").read_text().splitlines()))
    held = {row["track"] for row in rows}
    assert len(held) == 1 and {"HR.5F", "HR3F", "PWF", "label_accuracy", "beat_F1", "downbeat_F1"} <= set(rows[0])
    assert json.loads((trained / "evaluation" / "summary.json").read_text())["HR.5F"]["mean"] == result["summary"]["HR.5F"]["mean"]
    every = train.evaluate(trained, tracks=tracks.from_folder(annotated))
    assert every["summary"]["beat_F1"]["tracks"] == 4


def test_cross_validation_holds_out_every_artist_once(small):
    result = train.cross_validate(config.load(EdmSettings, small.model_dump(mode="json"), ["folds=2", "training.epochs=1"]))
    assert sorted(row["track"] for row in result["rows"]) == [f"track{number}" for number in range(4)]
    assert len(runs.listing()) == 2


def test_annotations_from_jams_and_audio_dir(annotated, tmp_path):
    other = tmp_path / "jams"
    other.mkdir()
    for path in annotated.glob("*.yaml"):
        annotations.write_jams(annotations.read(path), other / f"{path.stem}.jams")
    with pytest.raises(config.ConfigError, match="--audio-dir"):
        tracks.from_folder(other)
    again, first = tracks.from_folder(other, str(annotated)), tracks.from_folder(annotated)
    for one, two in zip(again, first, strict=True):
        assert numpy.allclose(one.starts, two.starts) and one.labels == two.labels and one.audio == two.audio
        assert numpy.allclose(one.beats, two.beats)


def test_all_faults_of_annotations_at_once(annotated):
    for name, old, new in (
        ("track0", "label: drop", "label: dorp"),
        ("track1", "time: 0.0", "time: -1.0"),
        ("track2", "track2.wav", "gone.wav"),
    ):
        path = annotated / f"{name}.yaml"
        path.write_text(path.read_text().replace(old, new))
    with pytest.raises(config.ConfigError) as caught:
        tracks.from_folder(annotated)
    assert len(caught.value.errors) == 3
    assert "track0.yaml:5" in str(caught.value) and "'drop'" in str(caught.value) and "gone.wav does not exist" in str(caught.value)


def test_the_open_annotation_sets_load(real_data, tmp_path):
    sets = pytest.importorskip("music_training.library.annotation_sets")
    converted = sets.harmonix(real_data / "harmonixset")
    sets.write(converted, tmp_path)
    read = annotations.read_folder(tmp_path)
    assert len(read) == len(converted.tracks) > 80
    for path in read:
        beats, downbeats = tracks.beats_of(read[path], path)
        assert (numpy.diff(beats) > 0).all() and len(downbeats) <= len(beats)


def test_jams_files_load_or_say_why(real_data):
    loaded, refused = 0, []
    for path in sorted(real_data.rglob("*.jams")):
        try:
            loaded += len(annotations.read_jams(path).structure) > 0
        except config.ConfigError as error:
            refused.append(str(error))
    assert loaded >= 2 and all(".jams" in line for line in refused)


def test_command_lines(annotated, tmp_path, capsys):
    flags = ["--backbone", "cnn", "--epochs", "1", "--batch-size", "2", "--lr", "0.001", "--workers", "0", "--duration", "6", "--no-energy"]
    small = ["--label", "cnn.channels=8", "cnn.layers=2", "training.logging.tensorboard=false"]
    cli.main(["train", str(annotated), "--audio-dir", str(annotated), *flags, "--beat-weight", "0.7", "--run-name", "base", *small])
    saved = config.load(EdmSettings, runs.find("base") / "config.yaml")
    assert (saved.energy, saved.label, saved.beat_weight, saved.training.epochs, saved.training.optimizer.lr) == (
        False,
        True,
        0.7,
        1,
        0.001,
    )
    cli.main(["train", "--resume", "base"])
    assert "1 epochs are done" in capsys.readouterr().out
    with pytest.raises(UserError, match="keeps its own settings"):
        cli.main(["train", str(annotated), "--resume", "base", "--lr", "1"])
    cli.main(["train", str(annotated), *flags, *small, "--init-from", "base", "--run-name", "tuned"])
    assert runs.read_metadata(runs.find("tuned"))["init_from"] == "base"
    cli.main(["evaluate", "base"])
    assert "HR.5F" in capsys.readouterr().out
    cli.main(["predict", str(annotated / "track1.wav"), "--checkpoint", "base", "--out-dir", str(tmp_path / "p"), "--no-snap"])
    assert (tmp_path / "p" / "track1.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nowhere"], "nowhere: no such folder of annotations"),
        (["train"], "no data"),
        (["train", "x", "--no-boundary", "--no-energy", "--no-beat", "--no-label", "--no-downbeat"], "all tasks are switched off"),
        (["train", "x", "duraton=3"], "did you mean 'duration'"),
        (["evaluate", "nothing"], "run 'nothing': not found"),
        (["predict", "gone.wav", "--checkpoint", "nothing", "--out-dir", "o"], "gone.wav"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    with pytest.raises(UserError) as caught:
        cli.main(arguments)
    assert message in str(caught.value)


def test_the_command_is_quick_to_help_and_exits_with_2(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(files.REPOSITORY)}
    code = "import sys; from music_training.edm_structure.__main__ import main; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
    script = str(files.REPOSITORY / "scripts" / "train.py")
    for command in (["-m", "music_training.edm_structure", "train", "nowhere"], [script, "edm_structure", "nowhere"]):
        done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr == "error: nowhere: no such folder of annotations\n"
    done = subprocess.run([sys.executable, script, "--config", str(tmp_path / "no.yaml")], env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "no such file" in done.stderr


def test_the_shipped_configuration_states_the_defaults():
    assert config.load(EdmSettings, files.REPOSITORY / "model_config" / "edm_structure.yaml") == EdmSettings()
