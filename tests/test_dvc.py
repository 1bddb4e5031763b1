"""``dvc add`` on a run folder, with the real dvc in a git repository of its own; skipped where dvc is not installed."""

import os
import shutil
import subprocess

import pytest

from music_training import runs
from music_training.trainer import checkpoints

DVC = os.environ.get("DVC") or shutil.which("dvc")


@pytest.mark.long
@pytest.mark.skipif(not DVC, reason="dvc is not installed (pip install dvc, or $DVC names its command)")
def test_a_run_folder_is_added_and_comes_back(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    repository = tmp_path / "repository"
    repository.mkdir()
    monkeypatch.setenv("MUSIC_OUTPUTS", str(repository / "outputs"))
    run = runs.create("cnn", run_name="baseline")
    metrics = runs.Metrics(run)
    metrics.append(1, loss=1.0)
    metrics.close()
    saved = checkpoints.save(run / "ckpt", 1, torch.nn.Linear(3, 3), None, {"step": 1}, {})
    checkpoints.link(saved, "last")
    checkpoints.link(saved, "best", without=[checkpoints.STATE])
    before = {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()}

    def call(*command):
        environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "DVC_NO_ANALYTICS": "1", "HOME": str(tmp_path)}
        done = subprocess.run(command, cwd=repository, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    call("git", "init", "-q")
    call(DVC, "init", "-q")
    call(DVC, "add", "outputs/training/baseline")
    call("git", "add", "-f", "outputs/training/baseline.dvc", "outputs/training/.gitignore")
    call("git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "track")
    assert "baseline.dvc" in call("git", "ls-files") and "safetensors" not in call("git", "ls-files")
    shutil.rmtree(run)
    call(DVC, "checkout", "outputs/training/baseline.dvc")
    assert {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert checkpoints.newest(run / "ckpt") is not None
