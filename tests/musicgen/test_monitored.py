"""The stability monitor in real trainings of a tiny codec and a tiny language model, with faults put into them.

With the monitor a training ends with finite weights and its log names the cause; without it does not. What each rung of
the ladder leaves is compared, bit by bit, with a training that was told beforehand to do the same.
"""

import numpy
import pytest
import soundfile
import torch

from music_training import runs
from music_training.musicgen import audiocraft_compat, checkpoints
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
    return equal(weights(one), weights(other))


def rows(run: str) -> list[dict]:
    """The logged rows of a training, without what no two trainings share."""
    found = [row for row in runs.read_metrics(runs.folder() / run) if row["stage"] == "train"]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in found]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


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
    codes, log = forked(*short, *fault("bad_weights", 6), "+guard_options.record=[7]", "checkpoint.keep_last=20", "run=watched")
    assert codes == [0], log
    event = events("watched")[0]
    assert (event["step"], event["action"]) == (6, "rewind") and "weights are not finite" in event["cause"]
    assert finite("watched")
    assert [row["step"] for row in rows("watched")] == list(range(1, 13)) and rows("watched")[4]["rewinds"] == 1
    before = torch.load(runs.folder() / "watched" / "logs" / "before_7.th", weights_only=True)
    assert equal(before, state("watched", 4))
    forked(*short, *fault("bad_weights", 6, monitor=False), "run=alone")
    assert not finite("alone")


@pytest.mark.long
def test_after_a_rewind_a_training_goes_on_as_if_it_had_never_seen_the_data(forked, short):
    """Against one that had two batches fewer from the start, which its fourth state says are left out."""
    keep = [*short, "checkpoint.keep_last=20"]
    assert forked(*keep, *fault("bad_weights", 6, monitor=False), "+guard_options.plan={6:{action:rewind}}", "run=rewound")[0] == [0]
    assert forked(*keep, *told(), "run=never", kill_at=5)[0] == [-9]
    path = checkpoints.newest(runs.folder() / "never" / "ckpt")
    assert path.name == "state_00000004.th"
    known = checkpoints.load(path)
    assert known["place"]["skipped"] == 0
    known["place"] |= {"skipped": 2, "rewinds": 1}
    torch.save(known, path)
    assert forked(*keep, *told(), "run=never")[0] == [0]
    assert same("rewound", "never") and rows("rewound") == rows("never")
    assert forked(*keep, *told(), "run=undisturbed")[0] == [0]
    assert rows("undisturbed")[:4] == rows("never")[:4] and not same("undisturbed", "never")


@pytest.mark.long
def test_a_rate_that_explodes_ends_with_a_report_and_the_weights_of_before(forked, short):
    """From the ninth update on ten times the rate of the one before."""
    options = ["+guard_options.poisoned_after=3", "+guard_options.max_rewinds=1", "+guard_options.skips=2"]
    longer = [*short, "optim.epochs=8", "optim.max_norm=0"]
    codes, log = forked(*longer, *fault("growing_rate", 9), *options, "run=watched")
    assert codes == [2], log
    assert log.splitlines()[-1].startswith("error: the guard stopped the training at step ")
    assert finite("watched") and not stability_monitor.check("watched").passed
    assert {"rewind", "stop"} <= {event["action"] for event in events("watched")}
    kinds = {"loss_spike", "gradient_spike", "nan_loss", "nan_gradient", "inf_gradient", "inf_loss"}
    assert {event["kind"] for event in events("watched")} <= kinds
    name = "ce" if "ce" in rows("watched")[0] else "l1"
    kept = rows("watched")[-1][name]
    forked(*longer, *fault("growing_rate", 9, monitor=False), "run=alone")
    last = rows("alone")[-1].get(name)
    assert not finite("alone") or last is None or last > 100 * kept, (last, kept)


def spoil(outputs, samples: numpy.ndarray) -> str:
    """Put ``samples`` in the place of a training file's; returns its path."""
    path = "segments/tones/train3_0000.wav"
    soundfile.write(outputs / path, samples.astype(numpy.float32), 32000, subtype="FLOAT")
    return path


def noise_of_bytes() -> numpy.ndarray:
    """What a file of float samples holds whose bytes were overwritten by chance: any size up to 1e38, and some NaN."""
    return numpy.frombuffer(numpy.random.default_rng(0).bytes(4 * 64000), numpy.float32).copy()


@pytest.mark.long
@pytest.mark.parametrize("content", ["nan", "bytes"])
def test_a_file_of_nan_or_of_chance_is_named_and_does_not_end_up_in_the_weights(forked, short, outputs, content):
    path = spoil(outputs, numpy.full(64000, numpy.nan) if content == "nan" else noise_of_bytes())
    (outputs / "segments/tones/train4_0000.wav").write_bytes(b"RIFF, and then nothing")
    codes, log = forked(*short, "optim.epochs=4", GUARD, *EARLY, "+guard_options.max_nan_ratio_per_epoch=0.2", "run=watched")
    assert finite("watched")
    named = [event for event in events("watched") if event["kind"].startswith(("nan", "inf"))]
    assert named and all(path in event["files"] for event in named)
    assert codes == [0] or path in log.splitlines()[-1]
    forked(*short, "optim.epochs=4", GUARD, "+guard_options.monitor=false", "run=alone")
    assert not finite("alone")
    codes, log = forked(*short, "optim.epochs=4", "run=unguarded")  # the loop by itself ends, and names the files
    assert codes == [2] and path in log.splitlines()[-1]


@pytest.mark.long
def test_a_batch_that_is_far_too_loud_is_skipped_and_its_file_named(forked, coding, outputs):
    """Samples a million times too loud: the loss and the gradients leap, and no NaN shows it."""
    path = spoil(outputs, 1e6 * soundfile.read(outputs / "segments/tones/train3_0000.wav")[0])
    codes, log = forked(*coding, "optim.epochs=4", GUARD, *EARLY, "run=watched")
    assert finite("watched")
    spikes = [event for event in events("watched") if event["kind"].endswith("spike")]
    assert spikes and path in spikes[0]["files"] and spikes[0]["action"] == "skip"
    assert codes == [0] or path in log.splitlines()[-1]


HALF = ["autocast=true", "autocast_dtype=float16", "device=cpu"]


@pytest.fixture
def adversarial(egs, gan_overrides) -> list[str]:
    plain = [override for override in gan_overrides if not override.startswith(("quantize_after", "checkpoint", "schedule"))]
    return [*plain, "optim.epochs=2", "adversarial.every=1", "checkpoint.every_steps=1", "checkpoint.keep_last=20"]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["codec", "lm"])
def test_an_fp16_overflow_is_no_fault_and_a_nan_in_fp16_is(forked, request, kind):
    short = [*request.getfixturevalue("adversarial" if kind == "codec" else "speaking"), *HALF]
    short += ["checkpoint.every_steps=1", "checkpoint.keep_last=20"] if kind == "lm" else []
    codes, log = forked(*short, *fault("high_scale", 5), "run=overflowing")
    assert codes == [0], log
    counts = [event for event in stability_monitor.read_log(runs.folder() / "overflowing") if event["kind"] == "epoch"]
    assert sum(event.get("overflow", 0) for event in counts) == 1 and events("overflowing") == []
    assert stability_monitor.check("overflowing").passed and finite("overflowing")
    assert equal(state("overflowing", 5), state("overflowing", 4)) and not equal(state("overflowing", 6), state("overflowing", 5))
    codes, log = forked(*short, *fault("nan_loss", 5), "run=spoilt")
    assert codes == [0], log
    assert [(event["step"], event["kind"]) for event in events("spoilt")] == [(5, "nan_loss")] and finite("spoilt")
    codes, log = forked(*short, *fault("bad_weights", 6), "run=back")  # the scaler goes back, too
    assert codes == [0], log
    assert events("back")[0]["action"] == "rewind" and finite("back")


@pytest.mark.long
def test_a_discriminator_that_fails_does_not_stop_its_generator(forked, adversarial):
    codes, log = forked(*adversarial, *fault("nan_discriminator", 5), "run=watched")
    assert codes == [0], log
    (event,) = events("watched")
    assert (event["step"], event["part"], event["kind"], event["action"]) == (5, "discriminator", "nan_loss", "skip")
    before, after = (checkpoints.load(runs.folder() / "watched" / "ckpt" / f"state_0000000{step}.th") for step in (4, 5))
    judges = [name for name, value in before["adv_losses"].items() if torch.is_tensor(value)]
    assert judges and all(torch.equal(before["adv_losses"][name], after["adv_losses"][name]) for name in judges)
    assert not equal(before["model"], after["model"]) and finite("watched")
    forked(*adversarial, *fault("nan_discriminator", 5, monitor=False), "run=alone")
    assert not finite("alone")


@pytest.mark.long
def test_by_looking_alone_nothing_changes_and_a_continued_run_is_the_same(forked, short):
    watching = [*short, "guard=training_checks.stability_hooks:guard"]
    assert forked(*watching, "run=watched")[0] == [0]
    assert forked(*short, "run=alone")[0] == [0]
    assert same("watched", "alone") and events("watched") == []
