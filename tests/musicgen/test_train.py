"""Training in run folders: exact continuation after a kill, no silent reuse, one line for a mistake."""

import signal
import time

import pytest

from music_training import files, runs
from music_training.musicgen.models import load_codec, read_config, save_weights


def weights(run: str) -> str:
    return files.digest(runs.folder() / run / "ckpt" / "best" / "model.safetensors")


def history(run: str) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in runs.read_metrics(runs.folder() / run)]


def kill_in_epoch(process, run: str, epoch: int) -> None:
    """``kill -9`` once two steps of an epoch are logged."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        rows = runs.read_metrics(runs.folder() / run)
        if sum(row["epoch"] == epoch and row["stage"] == "train" for row in rows) >= 2:
            break
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.long
def test_codec_then_language_model_continue_exactly_after_a_kill(egs, train, codec_overrides, language_model_overrides):
    assert train(*codec_overrides, "run=whole").returncode == 0
    kill_in_epoch(train(*codec_overrides, "run=killed", wait=False), "killed", 2)
    assert (runs.folder() / "killed" / "ckpt" / "epoch_1").is_dir()
    assert not (runs.folder() / "killed" / "ckpt" / "epoch_3").is_dir()
    again = train(*codec_overrides, "run=killed")
    assert again.returncode == 0, again.stdout
    assert weights("killed") == weights("whole")
    assert history("killed") == history("whole")

    speaks = [*language_model_overrides, "compression_model_checkpoint=training/whole/ckpt/best"]
    assert train(*speaks, "run=lm_whole").returncode == 0
    kill_in_epoch(train(*speaks, "run=lm_killed", wait=False), "lm_killed", 3)
    assert train(*speaks, "run=lm_killed").returncode == 0
    assert weights("lm_killed") == weights("lm_whole")
    assert history("lm_killed") == history("lm_whole")


@pytest.mark.long
def test_a_codec_that_is_checked_while_it_trains_becomes_the_same(egs, outputs, train, codec_overrides, monkeypatch):
    assert train(*codec_overrides, "run=plain").returncode == 0
    best = runs.folder() / "plain" / "ckpt" / "best"
    state = files.relative(runs.folder() / "plain" / "ckpt" / "last.th")
    for loaded in (load_codec(state), load_codec("training/plain/ckpt/best")):  # a training state is a codec, too
        assert not loaded.training
        digest = files.digest(save_weights(outputs / "again", loaded.state_dict(), read_config(best)) / "model.safetensors")
        assert digest == weights("plain")
    monkeypatch.setenv("CODEC_CHECK_EVERY", "2")
    monkeypatch.setenv("CODEC_CHECK_SAMPLES", "1")
    checked = train(*codec_overrides, "run=checked")
    assert checked.returncode == 0, checked.stdout
    assert "codec quality: checked, epoch 2 on 1 clips" in checked.stdout
    assert weights("checked") == weights("plain") and history("checked") == history("plain")
    assert len((runs.folder() / "checked" / "logs" / "codec_check.jsonl").read_text().splitlines()) == 1
    assert (outputs / "samples" / "checked" / "reconstruction_epoch_2" / "card.json").is_file()
    monkeypatch.setenv("CODEC_CHECK_EVERY", "now and then")
    refused = train(*codec_overrides, "run=other")
    assert refused.returncode == 2 and "error: CODEC_CHECK_EVERY=now and then: a whole number" in refused.stdout


def test_a_changed_configuration_or_manifest_is_a_new_run(egs, outputs, forked, codec_overrides):
    short = [*codec_overrides, "optim.epochs=1", "optim.updates_per_epoch=2"]
    assert forked(*short)[0] == [0]
    assert forked(*short)[0] == [0]  # the same: found again, nothing trained
    assert len(runs.listing()) == 1
    assert forked(*short, "optim.lr=1e-3")[0] == [0]
    assert len(runs.listing()) == 2
    manifest = outputs / "egs" / "tones" / "train" / "data.jsonl"
    files.write_text(manifest, "".join(manifest.read_text().splitlines(keepends=True)[:-1]))
    assert forked(*short)[0] == [0]
    assert len(runs.listing()) == 3
    codes, log = forked(*short, f"run={runs.listing()[0]['name']}")
    assert codes == [2]
    assert "was begun with another configuration or other data" in log.splitlines()[-1]


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("optim.lrr=1", "error: optim.lrr=1: unknown key; did you mean 'lr'?"),
        ("model=codec_tinny", "error: model=codec_tinny: unknown; did you mean 'codec_tiny'?"),
        ("optim.lr=fast", "error: optim.lr=fast: expected a number, as in optim.lr=0.0003"),
        ("nonsense", "error: argument 'nonsense': write it as key=value (see --help)"),
        ("datasource.train=egs/nowhere", "error: datasource.train=egs/nowhere: no manifest data.jsonl there; run 03_segment_audio first"),
    ],
)
def test_a_mistake_is_one_line(forked, argument, expected):
    codes, log = forked(argument)
    assert codes == [2]
    assert log.strip() == expected


def test_the_command_itself_exits_with_2(train):
    done = train("optim.lrr=1")
    assert (done.returncode, done.stdout.strip()) == (2, "error: optim.lrr=1: unknown key; did you mean 'lr'?")


def test_a_run_may_be_called_by_a_number(egs, forked, codec_overrides):
    codes, log = forked(*codec_overrides, "optim.epochs=1", "optim.updates_per_epoch=2", "run=007")
    assert codes == [0], log
    assert (runs.folder() / "007" / "ckpt" / "best").is_dir()


def test_loss_weights_change_at_a_step(egs, forked, codec_overrides):
    plain = [override for override in codec_overrides if not override.startswith("quantize_after")]
    short = [*plain, "optim.epochs=1", "later.step=3"]
    assert forked(*plain, "optim.epochs=1", "run=plain")[0] == [0]
    assert forked(*short, "+later.losses.msspec=50", "run=later")[0] == [0]
    one, two = ([row["msspec"] for row in runs.read_metrics(runs.folder() / run) if row["stage"] == "train"] for run in ("plain", "later"))
    assert one[:4] == two[:4] and one[4:] != two[4:]  # the first update with the new weights shows in the step after it
    codes, log = forked(*short, "+later.losses.mespec=50", "run=unknown")
    assert codes == [2] and "later.losses.mespec: losses has no weight of that name; did you mean 'msspec'?" in log.splitlines()[-1]
