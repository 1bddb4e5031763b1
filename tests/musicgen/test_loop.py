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
@pytest.mark.parametrize("what", ["codec", "language model", "language model with text", "D-Adaptation"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_at_five_random_steps(egs, forked, gan_overrides, speaks, what, ranks):
    kinds = {"language model with text": ["conditioner=lut"], "D-Adaptation": ["optim.optimizer=dadam", "optim.lr=1"]}
    overrides = gan_overrides if what == "codec" else [*speaks, *kinds.get(what, [])]
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


def losses(run: str, name: str, stage: str = "train") -> list[float]:
    return [row[name] for row in runs.read_metrics(runs.folder() / run) if row["stage"] == stage]


def weights_of(run: str, step: int):
    import torch

    from music_training.musicgen import audiocraft_compat

    audiocraft_compat.install()
    state = torch.load(runs.folder() / run / "ckpt" / f"state_{step:08d}.th", weights_only=True)
    return {name: value for name, value in state["model"].items() if value.is_floating_point()}


def largest_difference(one: str, other: str, step: int) -> float:
    """The largest difference of a weight, over the largest weight of its tensor."""
    first, second = weights_of(one, step), weights_of(other, step)
    return max(float((value - second[name]).abs().max() / value.abs().max().clamp(min=1e-3)) for name, value in first.items())


EVERY = ["checkpoint.every_steps=1", "checkpoint.keep_last=50", "dataset.batch_size=4", "optim.epochs=2", "seed=3"]


@pytest.mark.parametrize("conditioner", [pytest.param("none", marks=pytest.mark.long), "lut"])
def test_language_model_is_the_same_in_two_processes_and_in_parts(egs, forked, speaks, conditioner):
    overrides = [*speaks, *EVERY, f"conditioner={conditioner}"]
    assert forked(*overrides, "run=one")[0] == [0]
    assert forked(*overrides, "run=two", ranks=2)[0] == [0, 0]
    assert forked(*overrides, "optim.accumulate=4", "run=parts")[0] == [0]
    for other in ("two", "parts"):
        assert losses(other, "ce") == pytest.approx(losses("one", "ce"), rel=1e-5)
        assert losses(other, "grad_norm") == pytest.approx(losses("one", "grad_norm"), rel=1e-4)
        assert losses(other, "ce", "valid") == pytest.approx(losses("one", "ce", "valid"), rel=1e-4)
        assert largest_difference("one", other, 1) < 1e-3


def test_codec_is_the_same_in_two_processes(egs, forked, gan_overrides):
    plain = [override for override in gan_overrides if not override.startswith(("quantize_after", "schedule", "checkpoint"))]
    overrides = [*plain, *EVERY, "quantize_after=2", "adversarial.every=1", "optim.max_norm=0"]
    assert forked(*overrides, "run=one")[0] == [0]
    codes, log = forked(*overrides, "run=two", ranks=2)
    assert codes == [0, 0], log
    close = {"l1": 1e-3, "msspec": 1e-3, "g_loss": 1e-2, "d_loss": 1e-3, "grad_norm": 1e-2}
    # A vector on the border between two codes may go the other way, and that many are a part of so few.
    for name, tolerance in {**close, "penalty": 0.03, "perplexity_q1": 0.03, "perplexity_q2": 0.03}.items():
        one, two = ([row[name] for row in runs.read_metrics(runs.folder() / run) if name in row] for run in ("one", "two"))
        assert two[:6] == pytest.approx(one[:6], rel=tolerance), name
    books = weights_of("two", 6)
    sizes = [value for name, value in books.items() if name.endswith("cluster_size")]
    alone = [value for name, value in weights_of("one", 6).items() if name.endswith("cluster_size")]
    assert all(float(one.sum()) == pytest.approx(float(two.sum()), rel=1e-4) for one, two in zip(alone, sizes, strict=True))


@pytest.mark.long
def test_codec_in_parts_is_almost_the_same(egs, forked, gan_overrides):
    plain = [override for override in gan_overrides if not override.startswith(("quantize_after", "schedule", "checkpoint"))]
    overrides = [*plain, *EVERY, "optim.epochs=1"]
    assert forked(*overrides, "run=one")[0] == [0]
    assert forked(*overrides, "optim.accumulate=2", "run=parts")[0] == [0]
    for name in ("l1", "msspec"):
        assert losses("parts", name) == pytest.approx(losses("one", name), rel=0.03)
    assert losses("parts", "grad_norm")[0] == pytest.approx(losses("one", "grad_norm")[0], rel=0.1)


def test_a_run_begins_from_another_with_its_optimizer_and_another_schedule(egs, forked, speaks):
    schedule = ["conditioner=lut", "schedule.cosine.warmup=4"]
    assert forked(*speaks, *schedule, "run=first")[0] == [0]
    longer = [*speaks, *schedule, "dataset.segment_duration=2", "dataset.batch_size=4", "optim.accumulate=2", "optim.lr=5e-5"]
    codes, log = forked(*longer, "continue_from=first", "checkpoint.every_steps=1", "checkpoint.keep_last=50", "run=second")
    assert codes == [0], log
    assert "begun from" in log and "model, optimizer" in log
    rates = losses("second", "lr")
    assert rates[0] == 0.0 and max(rates) == pytest.approx(5e-5)  # warmed up again, to this run's rate
    first, second = weights_of("first", 18), weights_of("second", 1)
    assert all(value.equal(second[name]) for name, value in first.items())  # the first update has the rate 0
    import torch

    momenta = [
        torch.load(runs.folder() / run / "ckpt" / name, weights_only=True)["optimizer"]
        for run, name in (("first", "last.th"), ("second", "state_00000001.th"))
    ]
    assert [int(state["state"][0]["step"]) for state in momenta] == [18, 19]
    codes, log = forked(*longer, "continue_from=nowhere", "run=third")
    assert codes == [2] and "continue_from=nowhere: neither a run with a checkpoint, nor" in log.splitlines()[-1]
    codes, log = forked(*longer, "transformer_lm.dim=16", "continue_from=first", "run=fourth")
    assert codes == [2] and "of another model than this run's" in log.splitlines()[-1]


def test_a_full_disk_leaves_the_last_state(tmp_path, monkeypatch):
    import errno

    import torch

    from music_training.musicgen import checkpoints

    checkpoints.save(tmp_path, 1, {"weights": torch.ones(3)}, keep=2)

    def full(state, stream):
        stream.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(tmp_path, 2, {"weights": torch.ones(3)}, keep=2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["last.th", "state_00000001.th"]
    assert checkpoints.load(checkpoints.newest(tmp_path))["weights"].tolist() == [1, 1, 1]
