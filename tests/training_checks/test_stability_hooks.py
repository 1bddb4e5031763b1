"""The monitor in the Accelerate trainer: what each rung leaves, and a training that looks no different while all is well."""

import math
import sys

import pytest
import torch
from torch import nn

from music_training import files, runs
from music_training.errors import UserError
from music_training.guard import Update
from music_training.trainer import checkpoints
from music_training.trainer.callbacks import Callback, CallbackRegistry
from music_training.trainer.config import Training
from music_training.trainer.loop import Trainer
from training_checks import stability_monitor
from training_checks.stability_hooks import MonitorGuard, StabilityCallback, all_finite, first_bad_gradient, watch
from training_checks.stability_monitor import StabilityConfig, StabilityMonitor

sys.path.insert(0, str(files.REPOSITORY / "tests" / "trainer"))
from toy import Toy, ToySettings

SETTINGS = Training(
    epochs=3,
    batch_size=4,
    ema=0.9,
    optimizer={"lr": 0.01},
    scheduler={"warmup_steps": 0},
    logging={"interval": 1},
    checkpoint={"interval": 4},
    performance={"threads": 1, "num_workers": 0},
)


class Fault(Callback):
    """Spoils gradients (or weights) just before the monitor looks, and remembers the weights around each update."""

    order = 1

    def __init__(self, at=(), kind=""):
        self.at, self.kind, self.before, self.after, self.rates = set(at), kind, {}, {}, {}

    def on_gradients(self, trainer):
        step = trainer.step + 1
        self.before[step] = _flat(trainer.model)
        if step in self.at:
            values = [value for value in trainer.model.parameters() if value.grad is not None]
            if self.kind == "nan":
                trainer.losses = {name: value * math.nan for name, value in trainer.losses.items()}
                values[0].grad.fill_(math.nan)
            elif self.kind == "inf":
                values[1].grad[0] = math.inf
            elif self.kind == "huge":
                for value in values:
                    value.grad.mul_(1e4)
            elif self.kind == "weights":
                values[0].data.view(-1)[0] = math.nan
                values[0].grad.fill_(math.nan)

    def on_step_end(self, trainer, step, metrics):
        self.after[step] = _flat(trainer.model)
        self.rates[step] = trainer.optimizer.param_groups[0]["lr"]


def _flat(model):
    return torch.cat([value.detach().flatten().clone() for value in model.parameters()])


def train(name, *given):
    run = runs.create("toy", run_name=name)
    trainer = Trainer(Toy(ToySettings(training=SETTINGS)), SETTINGS, run, given)
    return trainer.fit(), trainer


def monitor(**config):
    return StabilityCallback(StabilityConfig(**{"min_history": 4, "window": 16, **config}))


def test_while_all_is_well_nothing_is_changed():
    train("alone")
    _, watched = train("watched", monitor())
    for kind in (False, True):
        left, right = (
            checkpoints.read_weights(checkpoints.newest(runs.find(name) / "ckpt"), averaged=kind) for name in ("alone", "watched")
        )
        assert all(torch.equal(value, right[name]) for name, value in left.items())
    events = stability_monitor.read_log(runs.find("watched"))
    assert [(event["kind"], event["steps"]) for event in events] == [("epoch", 6)] * 3
    assert stability_monitor.check("watched").passed
    assert watched.step == 18


@pytest.mark.parametrize("kind", ["nan", "inf"])
def test_a_bad_step_leaves_the_weights_as_they_are(kind):
    fault = Fault([6], kind)
    outcome, trainer = train("watched", fault, monitor())
    assert outcome.step == 18 and all_finite(trainer.model.named_parameters())
    assert torch.equal(fault.after[6], fault.before[6]) and not torch.equal(fault.after[7], fault.before[7])
    event = next(event for event in stability_monitor.read_log(runs.find("watched")) if event["kind"] != "epoch")
    assert (event["step"], event["action"]) == (6, "skip")
    assert event["kind"] == {"nan": "nan_loss", "inf": "inf_gradient"}[kind]
    if kind == "inf":
        assert event["name"] == "0.bias"
    assert len(event["files"]) == 4 and all(name.startswith("example ") for name in event["files"])
    row = next(row for row in runs.read_metrics(runs.find("watched")) if row["step"] == 6)
    assert math.isfinite(row["gradient_norm"])
    alone = Fault([6], kind)
    _, trainer = train("alone", alone)
    assert not all_finite(trainer.model.named_parameters())


def test_figures_beside_the_loss_may_leap():
    class Leap(Callback):
        order = 1

        def on_gradients(self, trainer):
            trainer.losses["accuracy"] = trainer.losses["loss"] * 0 + (0.9 if trainer.step > 8 else 0.01)

    train("watched", Leap(), monitor())
    assert {event["kind"] for event in stability_monitor.read_log(runs.find("watched"))} == {"epoch"}


def test_clip_and_the_rate_that_is_halved_and_recovers():
    fault = Fault([8, 9], "huge")
    train("watched", fault, monitor(skips=0, recovery_steps=2))
    first, second = [event for event in stability_monitor.read_log(runs.find("watched")) if event["kind"] != "epoch"]
    assert (first["rung"], first["action"]) == ("clip", "clip") and first["value"] > 1000 * first["usual"]
    assert (second["rung"], second["lr_scale"]) == ("learning rate", 0.5)
    assert fault.rates[9] == pytest.approx(0.5 * fault.rates[8], rel=0.2)
    assert fault.rates[12] > fault.rates[9]
    assert (fault.after[8] - fault.before[8]).norm() < 1


def test_poisoned_weights_come_back_from_the_last_checkpoint_with_the_optimizer():
    fault = Fault([7], "weights")
    outcome, trainer = train("watched", fault, monitor())
    assert outcome.step == 18 and all_finite(trainer.model.named_parameters())
    assert torch.equal(fault.after[7], fault.after[6])  # the checkpoint at the end of the first epoch
    event = next(event for event in stability_monitor.read_log(runs.find("watched")) if event["kind"] != "epoch")
    assert event["action"] == "rewind" and event["lr_scale"] == 0.5


def test_without_a_checkpoint_and_at_the_end_of_the_ladder_it_stops_in_one_line():
    with pytest.raises(UserError, match="no checkpoint to go back to at step 2"):
        train("early", Fault([2], "weights"), monitor())
    with pytest.raises(UserError, match="stopped the training at step 10: nan loss in loss"):
        train("often", Fault(range(6, 18), "nan"), monitor())
    assert not stability_monitor.check("often").passed


def test_a_continued_training_has_its_monitor_back():
    callback = monitor()
    train("watched", Fault([16], "nan"), callback)
    state = checkpoints.load_state(checkpoints.newest(runs.find("watched") / "ckpt"))["callbacks"]["stability"]
    other = monitor()
    other.load_state_dict(state)
    assert other.monitor.counts["nan_loss"] == 1 == callback.monitor.counts["nan_loss"]
    assert other.monitor.state_dict()["usual"] == callback.monitor.state_dict()["usual"]


def test_one_switch_for_every_training_of_a_process_and_those_that_it_starts(monkeypatch):
    monkeypatch.setattr(CallbackRegistry, "_everywhere", [])
    monkeypatch.setattr(CallbackRegistry, "_known", {})
    assert watch() == watch() == ""
    _, trainer = train("everywhere")
    assert [type(item) for item in trainer.callbacks].count(StabilityCallback) == 1
    _, trainer = train("handed-in", monitor())
    assert [type(item) for item in trainer.callbacks].count(StabilityCallback) == 1
    assert watch(False) == "null"
    _, trainer = train("nobody")
    assert StabilityCallback not in map(type, trainer.callbacks)


def test_a_codecs_adversarial_losses_may_rise_and_what_it_reconstructs_may_not():
    def look(part, **losses):
        step = next(steps)
        return guard.before_step(Update(part, step, 1, losses, 1.0, list, None)).action

    steps, guard = iter(range(1, 99)), MonitorGuard(StabilityMonitor(StabilityConfig(min_history=4)))
    for number in range(8):
        assert look("generator", loss=50 + number, adv_msstftd=0.001 * (number % 2), l1=0.1 + 0.001 * number) == "step"
        assert look("discriminator", loss=1 + 0.01 * number) == "step"
    assert look("generator", loss=500.0, adv_msstftd=0.5, l1=0.1) == "step" == look("discriminator", loss=9.0)
    assert look("generator", loss=50.0, adv_msstftd=math.nan, l1=0.1) == "skip" == look("discriminator", loss=math.inf)
    assert look("generator", loss=50.0, adv_msstftd=0.0, l1=3.0) == "skip"


def test_the_first_bad_parameter_is_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model(torch.ones(1, 2)).sum().backward()
    assert first_bad_gradient(model.named_parameters()) == ""
    model[0].bias.grad[1] = math.nan
    model[1].weight.grad.fill_(math.inf)
    assert first_bad_gradient(model.named_parameters()) == "0.bias"
