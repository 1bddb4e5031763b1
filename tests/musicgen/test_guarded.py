"""What a guard says is done: left out, clipped, slowed, taken back, ended; and it is asked about every update."""

import json

import pytest
import torch

from music_training import runs

GUARD = "guard=guards:planned"


def seen(run: str) -> list[dict]:
    return [json.loads(line) for line in (runs.folder() / run / "logs" / "guard.jsonl").read_text().splitlines()]


def trained(run: str) -> list[dict]:
    return [row for row in runs.read_metrics(runs.folder() / run) if row["stage"] == "train"]


def plan(**steps: dict) -> list[str]:
    """Overrides of a guard that decides so: ``at3={"action": "skip"}``."""
    decisions = [f"{step[2:]}:{{{','.join(f'{name}:{value}' for name, value in what.items())}}}" for step, what in steps.items()]
    return [GUARD, f"+guard_options.plan={{{','.join(decisions)}}}"]


@pytest.fixture
def short(speaks) -> list[str]:
    return [*speaks, "optim.epochs=2"]


def test_it_sees_every_update_and_changes_nothing_by_looking(egs, forked, short):
    assert forked(*short, "run=alone")[0] == [0]
    codes, log = forked(*short, *plan(at99={"action": "skip"}), "run=watched")
    assert codes == [0], log
    events = seen("watched")
    assert [event["step"] for event in events if "step" in event] == list(range(1, 13))
    assert all(event["same"] for event in events if "step" in event)
    assert [event for event in events if "steps" in event] == [{"epoch": 1, "steps": 6}, {"epoch": 2, "steps": 6}]
    assert [row["ce"] for row in trained("watched")] == [row["ce"] for row in trained("alone")]


def test_skip_clip_and_a_smaller_rate(egs, forked, short):
    def weights(run: str, step: int) -> torch.Tensor:
        state = torch.load(runs.folder() / run / "ckpt" / f"state_{step:08d}.th", weights_only=True)
        return torch.cat([value.flatten() for value in state["model"].values()])

    keep = ["checkpoint.every_steps=1", "checkpoint.keep_last=20"]
    decisions = plan(at3={"action": "skip"}, at5={"action": "clip", "max_norm": 1e-9}, at7={"lr_scale": 0.5})
    codes, log = forked(*short, *keep, *decisions, "run=guarded")
    assert codes == [0], log
    assert torch.equal(weights("guarded", 3), weights("guarded", 2))
    assert not torch.equal(weights("guarded", 4), weights("guarded", 3))
    files = [event["files"] for event in seen("guarded") if "step" in event]
    assert all(len(batch) == 2 and all(path.startswith("segments/tones/train") for path in batch) for batch in files)
    halved = [*short, *keep, *plan(at1={"lr_scale": 0.5}), "optim.lr=2e-4", "optim.adam.weight_decay=0"]
    whole = [*short, *keep, "optim.lr=1e-4", "optim.adam.weight_decay=0"]
    constant = "schedule.lr_scheduler=null"
    assert forked(*halved, constant, "run=halved")[0] == [0] and forked(*whole, constant, "run=plain")[0] == [0]
    assert torch.allclose(weights("halved", 1), weights("plain", 1), atol=1e-7)
    assert not torch.allclose(weights("halved", 2), weights("plain", 2), atol=1e-7)


def test_a_rewind_goes_on_with_the_data_after_the_batch_and_survives_a_kill(egs, forked, short):
    back = [*short, *plan(at7={"action": "rewind"})]
    codes, log = forked(*back, "run=rewound")
    assert codes == [0], log
    asked = [event["step"] for event in seen("rewound") if "step" in event]
    assert asked == [1, 2, 3, 4, 5, 6, 7, 7, 8, 9, 10, 11, 12]  # the state of step 6 is the last one before
    rows = trained("rewound")
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert [row.get("rewinds", 0) for row in rows] == [0] * 6 + [1] * 6
    assert forked(*short, *plan(at99={"action": "skip"}), "run=undisturbed")[0] == [0]
    batches, undisturbed = ([event["files"] for event in seen(run) if "step" in event] for run in ("rewound", "undisturbed"))
    assert batches[:7] == undisturbed[:7] and batches[7:12] == undisturbed[7:]  # the batch of step 7 is left out
    assert forked(*back, "run=killed", kill_at=9)[0] == [-9]
    assert forked(*back, "run=killed")[0] == [0]
    strip = [{name: value for name, value in row.items() if name != "seconds"} for row in rows]
    assert [{name: value for name, value in row.items() if name != "seconds"} for row in trained("killed")] == strip


def test_stop_is_one_line_and_leaves_the_last_state(egs, forked, short):
    codes, log = forked(*short, *plan(at5={"action": "stop"}), "run=ended")
    assert codes == [2]
    assert log.splitlines()[-1] == "error: the guard stopped the training at step 5: planned"
    assert (runs.folder() / "ended" / "ckpt" / "state_00000004.th").is_file()


def test_generator_and_discriminator_are_asked_apart_and_a_skipped_batch_teaches_the_codebooks_nothing(egs, forked, gan_overrides):
    plain = [override for override in gan_overrides if not override.startswith(("quantize_after", "checkpoint"))]
    keep = ["checkpoint.every_steps=1", "checkpoint.keep_last=20", "optim.epochs=1", "adversarial.every=1"]
    codes, log = forked(*plain, *keep, *plan(at3={"action": "skip"}), "+guard_options.part=generator", "run=gan")
    assert codes == [0], log
    assert [(event["step"], event["part"]) for event in seen("gan") if "step" in event][:4] == [
        (1, "discriminator"),
        (1, "generator"),
        (2, "discriminator"),
        (2, "generator"),
    ]
    before, after = (torch.load(runs.folder() / "gan" / "ckpt" / f"state_0000000{step}.th", weights_only=True) for step in (2, 3))
    assert all(torch.equal(value, after["model"][name]) for name, value in before["model"].items())
    changed = [
        name for name, value in before["adv_losses"].items() if torch.is_tensor(value) and not value.equal(after["adv_losses"][name])
    ]
    assert changed


def test_without_a_guard_gradients_that_are_not_finite_end_the_training_before_the_update(egs, forked, short):
    codes, log = forked(*short, "optim.lr=1e30", "optim.max_norm=0", "run=diverged")
    assert codes == [2]
    last = log.splitlines()[-1]
    assert last.startswith("error: the gradients of the lm are not finite at step ") and "segments/tones/train" in last
