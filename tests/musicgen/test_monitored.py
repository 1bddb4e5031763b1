"""The stability monitor in real trainings of a tiny codec and a tiny language model, with faults put into them.

With the monitor a training ends with finite weights and its log names the cause; without it does not. What each rung of
the ladder leaves is compared, bit by bit, with a training that was told beforehand to do the same.
"""

import numpy
import pytest
import soundfile
import torch

from music_training import runs
from music_training.musicgen import audiocraft_compat
from training_checks import stability_monitor

GUARD = "guard=faults:faulty"
EARLY = ["+guard_options.min_history=4", "+guard_options.window=16"]  # these trainings have 12 updates


@pytest.fixture(autouse=True, scope="module")
def known_classes():
    """Training states hold the configuration's classes, which have to be named as safe."""
    audiocraft_compat.install()


def weights(run: str) -> dict[str, torch.Tensor]:
    return torch.load(runs.folder() / run / "ckpt" / "last.th", weights_only=True)["model"]


def state(run: str, step: int) -> dict[str, torch.Tensor]:
    return torch.load(runs.folder() / run / "ckpt" / f"state_{step:08d}.th", weights_only=True)["model"]


def finite(run: str) -> bool:
    return all(bool(value.isfinite().all()) for value in weights(run).values() if value.is_floating_point())


def same(one: str, other: str) -> bool:
    left, right = weights(one), weights(other)
    return all(torch.equal(value, right[name]) for name, value in left.items())


def events(run: str) -> list[dict]:
    return [event for event in stability_monitor.read_log(runs.folder() / run) if event["kind"] != "epoch"]


def fault(name: str, *at: int, monitor: bool = True) -> list[str]:
    asked = [GUARD, f"+guard_options.fault={name}", f"+guard_options.at=[{','.join(map(str, at))}]"]
    return [*asked, *EARLY] if monitor else [*asked, "+guard_options.monitor=false"]


def told(**plan: str) -> list[str]:
    """A guard without judgement that does what it is told: ``at4="action:skip"``."""
    inner = ",".join(f"{number[2:]}:{{{what}}}" for number, what in plan.items())
    return [GUARD, "+guard_options.monitor=false", f"+guard_options.plan={{{inner}}}"]


@pytest.fixture
def speaking(egs, speaks) -> list[str]:
    return [*speaks, "optim.epochs=2"]


@pytest.fixture
def coding(egs, codec_overrides) -> list[str]:
    plain = [override for override in codec_overrides if not override.startswith("quantize_after")]
    return [*plain, "optim.epochs=2", "checkpoint.every_steps=4", "checkpoint.every_minutes=null"]


@pytest.fixture(params=["lm", "codec"])
def short(request) -> list[str]:
    if request.param == "codec":
        return request.getfixturevalue("coding")
    return request.getfixturevalue("speaking")


def test_a_nan_loss_is_skipped_and_nothing_of_it_stays(forked, short):
    codes, log = forked(*short, *fault("nan_loss", 5), "run=watched")
    assert codes == [0], log
    assert finite("watched")
    (event,) = events("watched")
    assert (event["step"], event["kind"], event["action"]) == (5, "nan_loss", "skip")
    assert len(event["files"]) == 2 and all("segments/tones/train" in path for path in event["files"])
    assert forked(*short, *told(at5="action:skip"), "run=told")[0] == [0]
    assert same("watched", "told")
    forked(*short, *fault("nan_loss", 5, monitor=False), "run=alone")
    assert not finite("alone")


@pytest.mark.long
def test_an_infinite_gradient_is_skipped_and_its_parameter_named(forked, short):
    codes, log = forked(*short, *fault("inf_gradient", 6), "run=watched")
    assert codes == [0], log
    (event,) = events("watched")
    assert (event["step"], event["kind"], event["action"]) == (6, "inf_gradient", "skip")
    assert event["name"] in list(weights("watched")) and event["name"] in event["cause"]
    assert finite("watched")
    assert forked(*short, *told(at6="action:skip"), "run=told")[0] == [0]
    assert same("watched", "told")
    forked(*short, *fault("inf_gradient", 6, monitor=False), "optim.max_norm=0", "run=alone")
    assert not finite("alone")


@pytest.mark.long
def test_rung_clip_bounds_a_huge_gradient_by_what_is_usual(forked, short):
    often = [*short, "checkpoint.every_steps=1", "checkpoint.keep_last=20", "optim.max_norm=0"]
    codes, log = forked(*often, *fault("huge_gradient", 7), "+guard_options.skips=0", "run=watched")
    assert codes == [0], log
    event = events("watched")[0]
    assert (event["step"], event["kind"], event["action"], event["rung"]) == (7, "gradient_spike", "clip", "clip")
    assert event["value"] > 100 * event["usual"] and event["max_norm"] < 4 * event["usual"]
    plan = f"+guard_options.plan={{7:{{action:clip,max_norm:{event['max_norm']!r}}}}}"
    assert forked(*often, *fault("huge_gradient", 7, monitor=False), plan, "run=told")[0] == [0]
    assert forked(*often, *fault("huge_gradient", 7, monitor=False), "run=alone")[0] == [0]
    after = [state("watched", 7), state("told", 7), state("alone", 7)]
    assert all(torch.equal(value, after[1][name]) for name, value in after[0].items())
    assert any(not torch.equal(value, after[2][name]) for name, value in after[0].items())


@pytest.mark.long
def test_rung_rate_halves_and_recovers(forked, short):
    options = ["+guard_options.skips=0", "+guard_options.recovery_steps=4", "+guard_options.allowed_nans=99"]
    codes, log = forked(*short, *fault("nan_loss", 3, 4), *options, "run=watched")
    assert codes == [0], log
    first, second = events("watched")
    assert (first["rung"], first["lr_scale"]) == ("clip", 1.0) and (second["rung"], second["lr_scale"]) == ("learning rate", 0.5)
    epochs = [event for event in stability_monitor.read_log(runs.folder() / "watched") if event["kind"] == "epoch"]
    assert epochs[0]["lr_scale"] == pytest.approx(0.5 ** (1 - 2 / 4)) and epochs[-1]["lr_scale"] == 1.0


def test_poisoned_weights_go_back_to_the_last_state_and_the_data_goes_on(forked, short):
    """The sixth update finds its weights spoilt: those of the state after the fourth come back."""
    codes, log = forked(*short, *fault("bad_weights", 6), "+guard_options.enable_adaptive_lr=false", "run=watched")
    assert codes == [0], log
    event = events("watched")[0]
    assert (event["step"], event["action"]) == (6, "rewind") and "weights are not finite" in event["cause"]
    assert finite("watched")
    rows = [row for row in runs.read_metrics(runs.folder() / "watched") if row["stage"] == "train"]
    assert [row["step"] for row in rows] == list(range(1, 13)) and rows[4]["rewinds"] == 1
    assert forked(*short, *told(at6="action:rewind"), "run=told")[0] == [0]
    left = [{name: value for name, value in row.items() if name != "seconds"} for row in rows]
    right = [
        {name: value for name, value in row.items() if name != "seconds"}
        for row in runs.read_metrics(runs.folder() / "told")
        if row["stage"] == "train"
    ]
    assert left[:5] == right[:5]  # from there on the monitor clips to what is usual
    forked(*short, *fault("bad_weights", 6, monitor=False), "run=alone")
    assert not finite("alone")


@pytest.mark.long
def test_a_rate_that_explodes_ends_with_a_report_and_the_weights_of_before(forked, short, coding):
    if "solver=musicgen" in short:  # an untrained codec says the same code always, which any rate learns
        assert forked(*coding, "optim.epochs=1", "run=voice")[0] == [0]
        short = [*short, "compression_model_checkpoint=training/voice/ckpt/best"]
    options = ["+guard_options.poisoned_after=3", "+guard_options.max_rewinds=1", "+guard_options.skips=2"]
    longer = [*short, "optim.epochs=8", "optim.max_norm=0", "optim.adam.weight_decay=0"]  # decay alone would end at zero
    codes, log = forked(*longer, *fault("high_rate", 9), *options, "run=watched")
    assert finite("watched")
    report = stability_monitor.check("watched")
    if codes == [2]:  # the ladder came to its end: one line, and a report
        assert log.splitlines()[-1].startswith("error: the guard stopped the training at step ")
        assert not report.passed
    assert {"rewind"} <= {event["action"] for event in events("watched")}
    assert {event["kind"] for event in events("watched")} <= {
        "loss_spike",
        "gradient_spike",
        "nan_loss",
        "nan_gradient",
        "inf_gradient",
        "inf_loss",
    }
    ended, _ = forked(*longer, *fault("high_rate", 9, monitor=False), "run=alone")

    rows = [row for row in runs.read_metrics(runs.folder() / "alone") if row["stage"] == "train"]
    name = "ce" if "ce" in rows[0] else "l1"
    worse = rows[-1].get(name) is None or rows[-1][name] > rows[7][name]  # the eighth update is the last one before
    assert ended != [0] or not finite("alone") or worse


@pytest.mark.long
def test_a_file_with_nan_ends_a_codec_early_with_its_name(forked, coding, outputs):
    path = outputs / "segments" / "tones" / "train3_0000.wav"
    samples, rate = soundfile.read(path)
    samples[:] = numpy.nan
    soundfile.write(path, samples, rate, subtype="FLOAT")
    codes, log = forked(*coding, "optim.epochs=4", GUARD, *EARLY, "+guard_options.max_nan_ratio_per_epoch=0.2", "run=watched")
    assert finite("watched")
    named = [event for event in events("watched") if event["kind"] in ("nan_loss", "nan_gradient")]
    assert named and all("segments/tones/train3_0000.wav" in event["files"] for event in named)
    assert codes == [0] or "train3_0000.wav" in log.splitlines()[-1]
    forked(*coding, "optim.epochs=4", GUARD, "+guard_options.monitor=false", "run=alone")
    assert not finite("alone")


@pytest.mark.long
def test_a_batch_of_garbage_is_skipped_and_its_file_named(forked, coding, outputs):
    """Samples a thousand times too loud: the loss and the gradients leap, and no NaN shows it."""
    path = outputs / "segments" / "tones" / "train3_0000.wav"
    samples, rate = soundfile.read(path)
    soundfile.write(path, 1e6 * samples, rate, subtype="FLOAT")
    (outputs / "segments" / "tones" / "train4_0000.wav").write_bytes(b"RIFF, and then nothing")
    codes, log = forked(*coding, "optim.epochs=4", GUARD, *EARLY, "run=watched")
    assert finite("watched")
    spikes = [event for event in events("watched") if event["kind"].endswith("spike")]
    assert spikes and "segments/tones/train3_0000.wav" in spikes[0]["files"] and spikes[0]["action"] == "skip"
    assert codes == [0] or "train3_0000.wav" in log.splitlines()[-1]


@pytest.mark.long
def test_by_looking_alone_nothing_changes_and_a_continued_run_is_the_same(forked, short):
    watching = [*short, "guard=training_checks.stability_hooks:guard"]
    assert forked(*watching, "run=watched")[0] == [0]
    assert forked(*short, "run=alone")[0] == [0]
    assert same("watched", "alone") and events("watched") == []
