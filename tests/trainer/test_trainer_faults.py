"""Kills, signals and other numbers of processes: a training goes on as if nothing had happened."""

import contextlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy import Toy, ToySettings

from music_training import config, files, runs
from music_training.errors import INTERRUPTED, UserError
from music_training.trainer import checkpoints, command, processes

TOY = Path(__file__).with_name("toy.py")
TIMES = ("examples_per_second",)


def toy(*arguments, processes=1, check=True, **environment):
    command = [sys.executable]
    if processes > 1:
        port = str(random.randint(20000, 40000))
        command += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", port]
    command += [str(TOY), *arguments]
    given = {key: str(value) for key, value in environment.items()}
    environment = {**os.environ, "PYTHONPATH": str(files.REPOSITORY), "OMP_NUM_THREADS": "1", **given}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    if check:
        assert done.returncode == 0, done.stderr[-3000:]
    return done


def history(run: str) -> list[dict]:
    return [{name: value for name, value in row.items() if name not in TIMES} for row in runs.read_metrics(runs.find(run))]


def weights(run: str) -> bytes:
    return (runs.find(run) / "ckpt" / "last" / "model.safetensors").read_bytes()


def same(one: str, other: str) -> None:
    assert history(one) == history(other)
    assert weights(one) == weights(other)
    states = [checkpoints.load_state(runs.find(run) / "ckpt" / "last") for run in (one, other)]
    for first, second in zip(*(state["optimizer"]["state"].values() for state in states), strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)


OFTEN = ("training.checkpoint.interval=3", "training.ema=0.9", "training.early_stopping.patience=50")


def test_a_kill_in_the_middle_of_an_update_changes_nothing():
    toy("whole", *OFTEN)
    assert toy("killed", *OFTEN, check=False, TOY_DIE_AT=11).returncode == -9
    toy("killed", *OFTEN, check=False, TOY_DIE_AT=2)  # and again, soon after it went on
    toy("killed", *OFTEN)
    same("whole", "killed")


def test_sigterm_writes_a_checkpoint_and_exits_with_75():
    stopped = toy("stopped", check=False, TOY_TERM_AT=5)
    assert stopped.returncode == INTERRUPTED == 75
    run = runs.find("stopped")
    assert files.read_json(run / "ckpt" / "last" / "checkpoint.json")["step"] == 5
    assert runs.read_metadata(run)["status"] == "interrupted"
    toy("stopped")
    toy("undisturbed")
    same("undisturbed", "stopped")


@pytest.mark.parametrize(("last", "limit"), [(18, ()), (10, ("training.max_steps=10",))], ids=["epochs", "steps"])
def test_sigterm_at_the_last_update_loses_no_validation(last, limit):
    toy("whole", *limit)
    if toy("stopped", *limit, check=False, TOY_TERM_AT=last).returncode == INTERRUPTED:
        toy("stopped", *limit)
    same("whole", "stopped")
    assert runs.read_metadata(runs.find("stopped"))["status"] == "finished"
    assert (runs.find("stopped") / "ckpt" / "best" / "model.safetensors").is_file()


@pytest.mark.long
@pytest.mark.parametrize("how", ["TOY_DIE_AT", "TOY_TERM_AT"])
def test_a_supervised_training_ends_as_an_undisturbed_one(how):
    toy("whole", *OFTEN)
    command = [sys.executable, "-m", "music_training.supervision", "--pause", "0", sys.executable, str(TOY), "killed", *OFTEN]
    environment = {**os.environ, "PYTHONPATH": str(files.REPOSITORY), "OMP_NUM_THREADS": "1", how: "11"}  # of each try; 18 are needed
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.count("starting again") == 1, done.stdout + done.stderr
    same("whole", "killed")


@pytest.mark.parametrize("room", [0, 12288], ids=["for nothing", "for half a checkpoint"])
def test_a_full_disk_is_one_line_and_the_last_good_checkpoint_survives(small_disk, monkeypatch, room):
    toy("whole", *OFTEN)
    whole = weights("whole")
    folder, resize = small_disk
    resize(4 * 2**20)
    monkeypatch.setenv("MUSIC_OUTPUTS", str(folder / "outputs"))
    assert toy("full", *OFTEN, check=False, TOY_TERM_AT=5).returncode == INTERRUPTED
    with open(folder / "filler", "wb", buffering=0) as filler, contextlib.suppress(OSError):
        while filler.write(bytes(4096)):
            pass
    os.truncate(folder / "filler", (folder / "filler").stat().st_size - room)
    full = toy("full", *OFTEN, check=False)
    assert full.returncode == 2 and "the disk is full; free some space and run the same command again" in full.stderr, full.stderr
    assert "Traceback" not in full.stderr
    newest = checkpoints.newest(runs.find("full") / "ckpt")
    assert files.read_json(newest / "checkpoint.json")["step"] == 5 and checkpoints.load_state(newest)
    (folder / "filler").unlink()
    toy("full", *OFTEN)
    assert weights("full") == whole


@pytest.mark.long
@pytest.mark.timeout(3600)  # 37 processes, one after the other
def test_kills_at_every_step():
    toy("whole", *OFTEN)
    for step in range(1, 19):
        assert toy(f"killed{step}", *OFTEN, check=False, TOY_DIE_AT=step).returncode == -9
        toy(f"killed{step}", *OFTEN)
        same("whole", f"killed{step}")


@pytest.mark.long
def test_two_processes_go_on_to_the_same_bits():
    toy("whole", *OFTEN, processes=2)
    assert toy("killed", *OFTEN, processes=2, check=False, TOY_DIE_AT=6).returncode != 0
    assert files.read_json(checkpoints.newest(runs.find("killed") / "ckpt") / "checkpoint.json")["step"] == 3
    toy("killed", *OFTEN, processes=2)
    same("whole", "killed")
    assert history("whole")[-1]["val_loss"] < 5


COUNTING = """
import sys
import torch
from torch import nn
sys.path.insert(0, {folder!r})
import toy

class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = nn.Parameter(torch.zeros(24))

class Count(toy.Toy):
    '''The gradient of each parameter is minus the share of its example in an update: SGD counts the examples.'''
    def __init__(self, settings):
        super().__init__(settings)
        self.model = nn.ModuleDict({{"counts": Counts()}})
        self.model.forward = lambda index: self.model["counts"].seen[index]
    def example(self, index, rng):
        return index
    def loss(self, model, batch):
        self.calls += 1
        if self.calls == self.term:
            import os, signal
            os.kill(os.getpid(), signal.SIGTERM)
        return {{"loss": -model(batch).mean()}}
    def validate(self, trainer):
        return {{}}

toy.Toy = Count
toy.main()
"""


@pytest.mark.long
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_with_another_number_of_processes_every_example_counts_once(tmp_path, monkeypatch, before, after):
    script = tmp_path / "count.py"
    script.write_text(COUNTING.format(folder=str(TOY.parent)))
    monkeypatch.setattr(sys.modules[__name__], "TOY", script)
    plain = ["training.epochs=1", "training.batch_size=2", "training.optimizer={type: sgd, lr: 1.0, momentum: 0, weight_decay: 0}"]
    plain += ["training.scheduler.type=constant", "training.gradient_clipping=null"]
    assert toy("run", *plain, processes=before, check=False, TOY_TERM_AT=2).returncode != 0
    done = 2 * 2 * before
    counts = [checkpoints.read_weights(runs.find("run") / "ckpt" / "last")["counts.seen"]]
    assert int((counts[0] > 0).sum()) == done
    toy("run", *plain, processes=after)
    final = checkpoints.read_weights(runs.find("run") / "ckpt" / "last")["counts.seen"]
    assert torch.equal(final[counts[0] > 0], torch.full([done], 1 / (2 * before)))
    assert torch.equal(final[counts[0] == 0], torch.full([24 - done], 1 / (2 * after)))


def test_a_torn_checkpoint_does_not_count():
    toy("run", *OFTEN)
    folder = runs.find("run") / "ckpt"
    newest = checkpoints.newest(folder)
    torn = folder / ".step_00000099.1.tmp"
    torn.mkdir()
    (torn / "checkpoint.json").write_text('{"step": 99}')
    (torn / "state.pt").write_bytes(b"")
    assert checkpoints.newest(folder) == newest
    os.rename(folder / "last", folder / ".last.old")  # killed between the two renames
    for path in folder.glob("step_*"):
        os.rename(path, folder.parent / path.name)
    assert checkpoints.newest(folder).name == ".last.old"


def test_a_kill_before_the_best_gets_its_name(monkeypatch):
    """The last validation is the best, and the process ends after the checkpoint is written and before anything names it."""
    settings = config.load(ToySettings, {}, ["training.max_steps=6", "training.validation.interval=100"])
    with monkeypatch.context() as changed:
        changed.setattr(checkpoints, "link", lambda *_, **__: os._exit(9))
        if not (child := os.fork()):
            command.train(Toy, settings, system="toy", run_name="killed")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    run = runs.find("killed")
    assert not (run / "ckpt" / "best").exists()
    outcome = command.train(Toy, settings, system="toy", run_name="killed")
    assert outcome.step == 6 and outcome.best is not None
    assert runs.read_metadata(run)["status"] == "finished" and not (run / "heartbeat.json").exists()
    for name in ("best", "last"):
        assert files.read_json(run / "ckpt" / name / "checkpoint.json")["step"] == 6
    assert not (run / "ckpt" / "best" / "state.pt").exists()


def test_state_files_hold_no_code():
    import pickle
    import zipfile

    toy("run")
    path = runs.find("run") / "ckpt" / "last" / "state.pt"
    assert torch.load(path, weights_only=True)["progress"]["step"] == 18
    names = {line for line in zipfile.ZipFile(path).namelist() if line.endswith("data.pkl")}
    assert len(names) == 1 and pickle.PROTO  # a zip with one pickle of tensors and plain values
    assert json.loads((path.parent / "checkpoint.json").read_text())["step"] == 18


def test_accelerate_launch_with_one_process_is_found_out(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    launch = ["/usr/bin/python", "/usr/bin/accelerate", "launch", "--cpu", "--num_processes", "2", "train.py"]
    with pytest.raises(UserError, match="torchrun --nproc_per_node 2"):
        processes.check_launch(launch)
    processes.check_launch([*launch[:4], "--num_processes=1"])
    processes.check_launch(["bash"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    processes.check_launch(launch)


@pytest.mark.long
def test_the_real_accelerate_launch_is_found_out():
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", str(TOY), "run"]
    environment = {**os.environ, "PYTHONPATH": str(files.REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and "use: torchrun --nproc_per_node 2" in done.stderr
