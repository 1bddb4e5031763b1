"""The stages of a curriculum, what they train with, and a small one: killed on the way it ends as if it had not been."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from music_training import files, runs
from music_training.config import ConfigError
from music_training.errors import UserError
from music_training.musicgen.training import LanguageModelSettings
from training_checks import curriculum_train as curriculum
from training_checks.curriculum_train import CurriculumSettings

BASE = LanguageModelSettings(model="lm_tiny", epochs=9, updates_per_epoch=7, warmup_steps=40, hydra=["a=1"])


def test_the_standard_curriculum():
    stages = curriculum.read(CurriculumSettings())
    assert [stage.name for stage in stages] == ["short_10s", "medium_20s", "full_30s"]
    assert [(stage.config.segment_seconds, stage.batch, stage.config.epochs) for stage in stages] == [
        (10, 128, 50),
        (20, 64, 50),
        (30, 32, 100),
    ]
    assert [stage.parts for stage in stages] == [1, 1, 1]


def test_tokens_per_step_are_held_by_computing_a_batch_in_parts():
    stages = curriculum.read(CurriculumSettings(hold_tokens=True))
    assert [(stage.batch, stage.parts) for stage in stages] == [(128, 1), (64, 1), (42, 2)]
    assert all(stage.batch // stage.parts <= stage.config.batch_size for stage in stages)
    assert [stage.seconds_per_step for stage in stages] == [1280, 1280, 1260]
    settings = curriculum.settings_of(stages[2], BASE, CurriculumSettings(hold_tokens=True), "codec", "before")
    assert settings.hydra == ["a=1", "optim.accumulate=2", "continue_from=before"]


def test_a_stage_changes_what_it_says_and_keeps_the_rest(tmp_path):
    files.write_text(tmp_path / "own" / "b.yaml", "segment_seconds: 4\nbatch_size: 3\nepochs: 2\nwarmup_steps: 0\nlearning_rate: 1e-3\n")
    files.write_text(tmp_path / "own" / "a.yaml", "segment_seconds: 8\nbatch_size: 1\nepochs: 1\n")
    asked = CurriculumSettings(curriculum=str(tmp_path / "own"), updates_per_epoch=5, hydra=["b=2"])
    first, second = curriculum.read(asked)
    assert (first.name, second.name, second.number) == ("b", "a", 2)
    settings = curriculum.settings_of(first, BASE, asked, "codec", "")
    expected = {"segment_seconds": 4, "batch_size": 3, "epochs": 2, "updates_per_epoch": 5, "warmup_steps": 0, "learning_rate": 1e-3}
    expected |= {"description": "b", "codec": "codec", "hydra": ["a=1", "b=2"], "model": "lm_tiny"}
    assert {name: getattr(settings, name) for name in expected} == expected
    assert curriculum.settings_of(second, BASE, asked, "codec", "run").warmup_steps == 40


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(UserError, match="curriculum 'minni': no stages .*did you mean 'mini'"):
        curriculum.read(CurriculumSettings(curriculum="minni"))
    files.write_text(tmp_path / "a.yaml", "segment_second: 4\nbatch_size: 3\nepochs: 2\n")
    with pytest.raises(ConfigError, match="segment_second: unknown key; did you mean 'segment_seconds'"):
        curriculum.read(CurriculumSettings(curriculum=str(tmp_path)))


def command(*arguments, outputs=None, **options):
    script = ["training_checks/curriculum_train.py", "--profile", "tiny", "--curriculum", "mini", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **({"MUSIC_OUTPUTS": str(outputs)} if outputs else {})}
    return subprocess.Popen(
        [sys.executable, *script],
        cwd=files.REPOSITORY,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **options,
    )


def told(*arguments, **options):
    process = command(*arguments, **options)
    output, _ = process.communicate(timeout=900)
    return process.returncode, output


def test_the_command_lists_and_refuses(outputs):
    code, text = told("--list")
    assert code == 0 and text.count("to do") == 3
    code, text = told("--stage", "full_15s")
    assert (code, text) == (
        2,
        "error: --stage full_15s: the stage before it, medium_5s, is not finished; train it first, or give --continue-from RUN\n",
    )
    code, text = told("--stage", "full")
    assert code == 2 and "did you mean" in text
    code, text = told("--auto", "--continue-from", "x")
    assert code == 2 and text.startswith("error: --continue-from goes with --stage")


@pytest.fixture
def prepared(tmp_path):
    """Two equal outputs folders: the tiny library, segmented, and a tiny codec trained on it."""
    first, second = tmp_path / "first", tmp_path / "second"
    runner = [sys.executable, "scripts/run_notebooks.py", "--profile", "tiny", "--only", "02,03,04"]
    subprocess.run(runner, cwd=files.REPOSITORY, env={**os.environ, "MUSIC_OUTPUTS": str(first)}, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cp", "-a", str(first), str(second)], check=True)
    return first, second


def weights(root) -> dict[str, str]:
    """Digests of the last weights by stage."""
    found = {}
    for run in (root / "training").glob("*_musicgen_*"):
        found[run.name.rpartition("musicgen_")[2]] = files.digest(run / "ckpt" / "best" / "model.safetensors")
    return found


@pytest.mark.long
def test_a_small_curriculum_killed_inside_a_stage_ends_with_the_same_bits(prepared):
    whole, killed = prepared
    asked = ["--auto", "-p", "updates_per_epoch=4", "-p", "hydra=[checkpoint.every_steps=1,logging.every=1,dataset.valid.num_samples=4]"]
    code, text = told(*asked, outputs=whole)
    assert code == 0, text
    process = command(*asked, outputs=killed, start_new_session=True)
    deadline = time.monotonic() + 600
    while not any(len(path.read_text().splitlines()) >= 3 for path in (killed / "training").glob("*medium-5s/metrics.jsonl")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    code, text = told(*asked, outputs=killed)
    assert code == 0 and "continuing run_" in text, text
    assert set(weights(whole)) == {"short-2s", "medium-5s", "full-15s"}
    assert weights(killed) == weights(whole)
    code, text = told(*asked, outputs=killed)
    assert code == 0 and text.count("up to date") >= 3
    code, text = told("--auto", "--dry-run", outputs=whole)
    assert text.count("finished (run_") == 3


@pytest.mark.long
def test_every_step_of_a_curriculum_that_holds_tokens_sees_as_much(egs, codec, tmp_path, monkeypatch):
    """Counted from the files of every update and from the loss's own axis, with a batch that is computed in parts."""
    for name, text in {"a_1s": "1\nbatch_size: 4", "b_2s": "2\nbatch_size: 1"}.items():
        files.write_text(tmp_path / "own" / f"{name}.yaml", f"segment_seconds: {text}\nepochs: 1\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(files.REPOSITORY), str(files.REPOSITORY / "tests" / "musicgen")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    hydra = ["+guard_options.plan={}", "+guard_options.part=lm", "logging.every=1", "dataset.valid.num_samples=2"]
    base = LanguageModelSettings(model="lm_tiny", conditioning="lut", codec=codec, updates_per_epoch=3, workers=0, hydra=hydra)
    sizes = {}
    for hold in (True, False):
        settings = CurriculumSettings(curriculum=str(tmp_path / "own"), hold_tokens=hold)
        results = curriculum.train(base, settings, egs, f"test/{hold}", "guards:planned")
        seen = {}
        for result, seconds in zip(results, (1, 2), strict=True):
            lines = (runs.folder() / result["run"] / "logs" / "guard.jsonl").read_text().splitlines()
            asked = [json.loads(line) for line in lines if '"files"' in line]
            assert len(asked) == 3
            seen[result["stage"]] = {seconds * len(update["files"]) for update in asked}
        sizes[hold] = seen
        train = curriculum.losses(results).query("part == 'train'")
        steps = train.hours.diff().dropna() * 3600
        assert len(train) == 6 and (steps.round(6) == 4).all() == hold
        assert train.begin.unique() == pytest.approx([0, 12 / 3600])
    assert sizes == {True: {"a_1s": {4}, "b_2s": {4}}, False: {"a_1s": {4}, "b_2s": {2}}}
    config = (runs.folder() / results[0]["run"] / "config.yaml").read_text()
    assert "accumulate: 1" in config
    held = next(path for path in runs.folder().glob("*/config.yaml") if "accumulate: 2" in path.read_text())
    log = (held.parent / "logs" / "train.log").read_text()
    assert "batches of 1 x 2" in log and "b-2s" in held.parent.name


@pytest.mark.long
def test_weights_average_and_optimizer_cross_the_boundary(prepared, monkeypatch):
    """The first stage's state and the second one's before its first update: equal, and the rate starts low again."""
    import torch

    from music_training.musicgen import audiocraft_compat

    audiocraft_compat.install()  # names the configuration's classes in a training state as safe
    root, _ = prepared
    often = "checkpoint.every_steps=1,checkpoint.keep_last=99,logging.every=1,dataset.valid.num_samples=4"
    hydra = f"hydra=[{often},optim.ema.use=true,optim.ema.decay=0.9]"
    for stage in ("short_2s", "medium_5s"):
        code, text = told("--stage", stage, "-p", "updates_per_epoch=4", "-p", "learning_rate=1e-9", "-p", hydra, outputs=root)
        assert code == 0, text
    first, second = (next((root / "training").glob(f"*{name}")) for name in ("short-2s", "medium-5s"))
    before = torch.load(first / "ckpt" / "last.th", weights_only=True)
    after = torch.load(second / "ckpt" / "state_00000001.th", weights_only=True)
    for name, value in before["model"].items():
        torch.testing.assert_close(value, after["model"][name], atol=1e-6, rtol=0)
    averaged, kept = before["ema"]["state"]["model"], after["ema"]["state"]["model"]
    assert all(torch.allclose(value, kept[name], atol=1e-6) for name, value in averaged.items() if value.is_floating_point())
    steps = [int(state["step"]) for state in after["optimizer"]["state"].values()]
    assert set(steps) == {int(next(iter(before["optimizer"]["state"].values()))["step"]) + 1} == {9}
    monkeypatch.setenv("MUSIC_OUTPUTS", str(root))
    rates = [row["lr"] for row in runs.read_metrics(second) if row["stage"] == "train"]
    assert rates[0] < rates[1] < max(rates)
