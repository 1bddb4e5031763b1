"""Trainings that are stopped at any step, and go on as if they had not been."""

import json
import random

import pytest

from music_training import files, runs
from music_training.errors import INTERRUPTED


def end_of(run: str) -> dict:
    """What a training made: its weights, the epochs' and the best ones, and its history."""
    folder = runs.folder() / run
    weights = {path.parent.name: files.digest(path) for path in sorted(folder.glob("ckpt/*/model.safetensors"))}
    history = [{key: value for key, value in row.items() if key != "seconds"} for row in runs.read_metrics(folder)]
    return {"weights": weights, "history": history}


def optimizer_state(run: str) -> dict:
    import torch

    from music_training.musicgen import audiocraft_compat

    audiocraft_compat.install()
    state = torch.load(runs.folder() / run / "ckpt" / "last.th", weights_only=True)
    return {
        name: state[name]
        for name in ("model", "optimizer", "ema", "adv_losses", "lr_scheduler", "balancer.averager", "place")
        if name in state
    }


def same(one, other) -> bool:
    import torch

    if torch.is_tensor(one):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def stopped_at(forked, overrides: list[str], steps: list[int], ranks: int = 1) -> None:
    """Kill a training at the end of each of ``steps``; it ends as a whole one does."""
    assert forked(*overrides, "run=whole", ranks=ranks)[0] == [0] * ranks
    for step in steps:
        codes, log = forked(*overrides, "run=killed", ranks=ranks, kill_at=step)
        assert codes[0] == -9, log
    codes, log = forked(*overrides, "run=killed", ranks=ranks)
    assert codes == [0] * ranks, log
    assert end_of("killed") == end_of("whole")
    assert same(optimizer_state("killed"), optimizer_state("whole"))


def test_codec_killed_at_step_boundaries(egs, forked, gan_overrides):
    stopped_at(forked, gan_overrides, [5, 11, 13])


def test_language_model_killed_at_step_boundaries(egs, forked, speaks):
    stopped_at(forked, [*speaks, "conditioner=lut"], [3, 13])


def test_two_processes_killed_at_a_step_boundary(egs, forked, speaks):
    stopped_at(forked, [*speaks, "conditioner=lut", "optim.epochs=2"], [7], ranks=2)


@pytest.mark.long
@pytest.mark.parametrize("what", ["codec", "language model", "language model with text"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_at_five_random_steps(egs, forked, gan_overrides, speaks, what, ranks):
    overrides = gan_overrides if what == "codec" else [*speaks, *(["conditioner=lut"] if "text" in what else [])]
    steps = sorted(random.Random(f"{what} {ranks}").sample(range(1, 18), 5))
    stopped_at(forked, overrides, steps, ranks)


def test_sigterm_saves_the_step_and_exits_with_75(egs, forked, speaks):
    assert forked(*speaks, "run=whole")[0] == [0]
    codes, log = forked(*speaks, "run=stopped", term_at=9)
    assert codes == [INTERRUPTED]
    assert "stopped by SIGTERM after step 9; the same command continues stopped" in log
    assert (runs.folder() / "stopped" / "ckpt" / "state_00000009.th").is_file()
    assert runs.read_metadata(runs.folder() / "stopped")["status"] == "interrupted"
    assert forked(*speaks, "run=stopped")[0] == [0]
    assert end_of("stopped") == end_of("whole")


def test_old_states_and_bad_epochs_are_pruned(egs, forked, speaks):
    pruned = ["checkpoint.every_steps=1", "checkpoint.keep_last=3", "checkpoint.keep_best=1", "optim.epochs=4", "optim.lr=3e-3"]
    assert forked(*speaks, *pruned, "run=pruned")[0] == [0]
    folder = runs.folder() / "pruned"
    assert sorted(path.name for path in folder.glob("ckpt/state_*")) == [f"state_{step:08d}.th" for step in (22, 23, 24)]
    assert files.digest(folder / "ckpt" / "last.th") == files.digest(folder / "ckpt" / "state_00000024.th")
    valid = {row["epoch"]: row["ce"] for row in runs.read_metrics(folder) if row["stage"] == "valid"}
    best = min(valid, key=valid.get)
    assert {path.name for path in folder.glob("ckpt/epoch_*")} == {f"epoch_{best}", "epoch_4"}
    kept = json.loads(json.dumps(sorted(path.name for path in (folder / "ckpt").iterdir())))
    assert kept == sorted({"best", "last.th", "state_00000022.th", "state_00000023.th", "state_00000024.th", f"epoch_{best}", "epoch_4"})
