"""The ladder by itself: what counts as bad, what follows, what is remembered. No framework takes part."""

import json
import math
import statistics

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as some

from music_training import runs
from music_training.errors import UserError
from training_checks import stability_monitor
from training_checks.stability_monitor import StabilityConfig, StabilityMonitor, Usual


def warmed(steps: int = 40, **config) -> tuple[StabilityMonitor, int]:
    """A monitor that has seen ``steps`` good steps (seeded, losses about 2, gradients about 1), and the next step."""
    monitor = StabilityMonitor(StabilityConfig(**config))
    monitor.start_epoch(1, 1000)
    random = numpy.random.default_rng(0)
    for step in range(steps):
        decision = monitor.look(step, {"loss": 2 + 0.1 * random.standard_normal()}, math.exp(0.3 * random.standard_normal()))
        assert decision.action == "step"
    return monitor, steps


def test_the_documented_way_to_build_one():
    monitor = StabilityMonitor(StabilityConfig(max_nan_ratio_per_epoch=0.1, max_inf_grad_ratio_per_epoch=0.3, enable_adaptive_lr=True))
    assert monitor.config == StabilityConfig()
    assert monitor.look(1, {"loss": 1.0}, 1.0).action == "step"


@pytest.mark.parametrize(
    ("losses", "gradient", "kind"),
    [
        ({"loss": math.nan}, 1.0, "nan_loss"),
        ({"a": 1.0, "b": math.inf}, 1.0, "inf_loss"),
        ({"loss": 2.0}, math.inf, "inf_gradient"),
        ({"loss": 2.0}, math.nan, "nan_gradient"),
        ({"loss": 9.0}, 1.0, "loss_spike"),
        ({"loss": 2.0}, 50.0, "gradient_spike"),
    ],
)
def test_a_bad_step_is_skipped_and_named(losses, gradient, kind):
    monitor, step = warmed()
    decision = monitor.look(step, losses, gradient, bad_parameter=lambda: "decoder.weight", files=lambda: ["a.wav", "b.wav"])
    assert decision.action == "skip" and "a.wav" in decision.cause and f"step {step}" in decision.cause
    event = monitor.events[-1]
    assert (event["kind"], event["step"], event["files"]) == (kind, step, ["a.wav", "b.wav"])
    if kind.endswith("gradient"):
        assert event["name"] == "decoder.weight" in decision.cause
    json.dumps(event, allow_nan=False)
    assert monitor.look(step + 1, {"loss": 2.0}, 1.0).action == "step"


def test_what_is_dear_is_asked_only_about_a_bad_step():
    monitor, step = warmed()

    def never():
        raise AssertionError

    assert monitor.look(step, {"loss": 2.0}, 1.0, bad_parameter=never, files=never, weights_finite=never).action == "step"


def test_spikes_are_found_as_before_after_any_number_of_nans():
    """A moving average would be NaN for good after the first one."""
    monitor, step = warmed(max_rewinds=100, allowed_nans=1000, poisoned_after=50)
    for _ in range(30):
        step += 1
        assert monitor.look(step, {"loss": math.nan}, math.nan).action != "step"
    assert monitor.look(step + 1, {"loss": 2.0}, 1.0).action == "step"
    assert monitor.look(step + 2, {"loss": 30.0}, 1.0).action != "step"


def test_falling_losses_and_a_few_wild_batches_raise_no_alarm():
    random = numpy.random.default_rng(1)
    monitor = StabilityMonitor()
    monitor.start_epoch(1, 2000)
    for step in range(2000):
        loss = 1.5 + 6 * math.exp(-step / 200) + 0.15 * random.standard_normal()
        assert monitor.look(step, {"loss": loss}, math.exp(0.4 * random.standard_normal() - step / 1000)).action == "step", step


def test_the_ladder_rung_by_rung():
    monitor, step = warmed(skips=2, memory=50, halvings=2, max_rewinds=1, recovery_steps=10**9, poisoned_after=100)
    seen = []
    for _ in range(30):
        step += 2
        decision = monitor.look(step - 1, {"loss": 2.0}, 500.0)
        seen.append((decision.action, round(decision.lr_scale, 6)))
        if decision.action == "stop":
            break
        monitor.look(step, {"loss": 2.0}, 1.0)
    expected = [("skip", 1.0)] * 2 + [("clip", 1.0)] * 2 + [("clip", 0.5)] * 2 + [("clip", 0.25)] * 2 + [("rewind", 0.125)]
    assert seen[: len(expected)] == expected
    assert seen[-1][0] == "stop" and [action for action, _ in seen].count("rewind") == 1


def test_clipping_is_to_what_is_usual_and_ends():
    monitor, step = warmed(skips=0, memory=20)
    norms = [math.exp(value) for value in monitor._usual["model/gradient"].recent]
    decision = monitor.look(step, {"loss": 2.0}, 500.0)
    assert decision.action == "clip"
    assert statistics.median(norms) <= decision.max_norm <= sorted(norms)[int(0.8 * len(norms))]
    after = [monitor.look(step + 1 + number, {"loss": 2.0}, 1.9).action for number in range(22)]
    assert after[0] == "clip" and after[-1] == "step"


def test_the_learning_rate_comes_back_over_clean_steps():
    monitor, step = warmed(skips=0, recovery_steps=10)
    monitor.rung = 1
    assert monitor.look(step, {"loss": math.nan}).lr_scale == 0.5
    scales = [monitor.look(step + 1 + number, {"loss": 2.0}, 1.0).lr_scale for number in range(12)]
    assert scales[4] == pytest.approx(0.5**0.5) and scales[9] == pytest.approx(1) and scales[-1] == 1.0
    assert scales == sorted(scales)


def test_without_adaptive_rate_that_rung_is_left_out():
    monitor, step = warmed(skips=0, enable_adaptive_lr=False)
    decisions = [monitor.look(step + number, {"loss": 2.0}, 500.0) for number in range(2)]
    assert [(decision.action, decision.lr_scale) for decision in decisions] == [("clip", 1.0), ("rewind", 1.0)]


def test_many_bad_steps_in_a_row_and_poisoned_weights_go_straight_to_the_rewind():
    monitor, step = warmed(poisoned_after=4, skips=10)
    assert [monitor.look(step + number, {"loss": 40.0}, 1.0).action for number in range(4)] == ["skip", "skip", "skip", "rewind"]
    monitor, step = warmed()
    decision = monitor.look(step, {"loss": math.nan}, math.nan, weights_finite=lambda: False)
    assert decision.action == "rewind" and "weights are not finite" in decision.cause


def test_too_many_nan_losses_of_an_epoch_stop_it_and_a_new_epoch_has_a_new_budget():
    monitor, step = warmed(skips=10**6, poisoned_after=10**6, max_nan_ratio_per_epoch=0.01)
    actions = []
    for number in range(11):
        actions.append(monitor.look(step + 2 * number, {"loss": math.nan}).action)
        monitor.look(step + 2 * number + 1, {"loss": 2.0}, 1.0)
    assert actions == ["skip"] * 10 + ["stop"]
    assert monitor.end_epoch()["nan_loss"] == 11
    monitor, step = warmed(skips=10**6, poisoned_after=10**6)
    for epoch in range(2, 6):
        monitor.start_epoch(epoch, 8)
        assert [monitor.look(step + 10 * epoch + number, {"loss": math.nan}).action for number in range(3)] == ["skip"] * 3


def test_fp16_overflow_is_no_fault_but_counted_and_warned_about():
    monitor, step = warmed()
    monitor.start_epoch(2, 20)
    decisions = [monitor.look(step + number, {"loss": 2.0}, math.inf, overflow=True) for number in range(10)]
    assert {decision.action for decision in decisions} == {"skip"} and decisions[0].cause == "fp16 overflow"
    assert (monitor.rung, monitor.rewinds, monitor.lr_scale) == (0, 0, 1.0)
    assert monitor.counts == {"steps": 10, "overflow": 10}
    assert [event["action"] for event in monitor.events] == ["warn"]
    assert "7 of 20 steps of epoch 2" in monitor.events[0]["cause"]
    assert monitor.look(step + 11, {"loss": math.nan}, math.inf, overflow=True).cause != "fp16 overflow"


def test_generator_and_discriminator_are_judged_apart():
    monitor = StabilityMonitor(StabilityConfig())
    for step in range(30):
        monitor.look(step, {"loss": 100.0}, 50.0, part="generator")
        monitor.look(step, {"loss": 0.5}, 0.1, part="discriminator")
    assert monitor.counts["steps"] == 30
    assert monitor.look(30, {"loss": 100.0}, 50.0, part="generator").action == "step"
    assert monitor.look(30, {"loss": 100.0}, 0.1, part="discriminator").action == "skip"
    assert monitor.events[-1]["part"] == "discriminator"


def test_a_change_on_purpose_is_announced():
    monitor, step = warmed()
    monitor.forget()
    assert monitor.look(step, {"loss": 50.0}, 30.0).action == "step"


def test_the_state_goes_on_where_it_was():
    monitor, step = warmed(skips=1, poisoned_after=3)
    for number in range(5):
        monitor.look(step + number, {"loss": 40.0 if number % 2 else 2.0}, 1.0)
    other = StabilityMonitor(monitor.config)
    other.load_state_dict(json.loads(json.dumps(monitor.state_dict())))
    random = numpy.random.default_rng(3)
    for number in range(5, 200):
        values = (
            {"loss": float(random.choice([2.0, 2.1, 50.0, math.nan], p=[0.6, 0.3, 0.08, 0.02]))},
            float(random.choice([1.0, 90.0], p=[0.95, 0.05])),
        )
        assert monitor.look(step + number, *values) == other.look(step + number, *values)
    assert json.dumps(monitor.state_dict()) == json.dumps(other.state_dict())


@given(some.lists(some.floats(-1e6, 1e6), min_size=9, max_size=40))
def test_the_window_is_that_of_a_sorted_list(values):
    known = Usual(8)
    for value in values:
        known.add(value)
    last = sorted(values[-8:])
    assert list(known.recent) == values[-8:]
    assert [known.quantile(share) for share in (0, 0.25, 0.5, 0.75, 1)] == [last[0], last[2], last[4], last[6], last[7]]


# The log, the report, the picture


@pytest.fixture
def run(outputs):
    """A run with a spike, three NaN losses and a stop."""
    run = runs.create("codec", run_name="watched")
    rows = runs.Metrics(run)
    monitor = StabilityMonitor(StabilityConfig(max_nan_ratio_per_epoch=0.0), log=run / stability_monitor.LOG)
    monitor.start_epoch(1, 50)
    for step in range(50):
        monitor.look(step, {"g_loss": 80.0 if step == 30 else 2.0}, 1.0)
        rows.append(step, stage="train", g_loss=2.0)
    monitor.end_epoch()
    for step in range(50, 54):
        monitor.look(step, {"g_loss": math.nan}, math.nan, files=lambda: ["segments/bad_0001.wav"])
    rows.close()
    return run


def test_the_report_names_kinds_causes_and_files(run):
    report = stability_monitor.check("watched")
    kinds = {finding.subject: finding for finding in report.findings}
    assert kinds["loss spike"].severity == "warning" and "first at step 30" in kinds["loss spike"].message
    assert kinds["nan loss"].severity == "fault" and "stopped at step 53" in kinds["nan loss"].message
    assert "bad_0001.wav" in kinds["nan loss"].todo
    assert report.figures == {"epochs": 1, "steps": 50, "loss_spike": 1, "nan_loss": 4}
    figure = stability_monitor.plot("watched")
    assert "5 bad steps" in figure.axes[0].get_title()


def test_a_run_without_a_log_or_without_faults(run):
    runs.create("codec", run_name="unwatched")
    with pytest.raises(UserError, match="unwatched: no logs/stability.jsonl"):
        stability_monitor.check("unwatched")
    (run / stability_monitor.LOG).write_text('{"kind": "epoch", "epoch": 1, "steps": 8}\n{"kind": "epo')
    report = stability_monitor.check(run)
    assert report.passed and report.findings[0].message == "no bad step in 8"
