"""Backups by rsync and to a local stand-in of the hub: what belongs to them, kills on the way, what comes back."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hub_server import Hub

from music_training import backup, files, notebooks, runs, stages
from music_training.errors import UserError

SCRIPT = files.REPOSITORY / "scripts" / "backup_outputs.py"
REPOSITORY = "me/backup"


@pytest.fixture
def hub(monkeypatch):
    server = Hub()
    values = {"HF_ENDPOINT": server.url, "HF_TOKEN": server.token, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    yield server
    server.close()
    assert server.unknown == []


def write(name: str, size: int = 2000) -> Path:
    path = files.outputs_root() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size))
    return path


def make_outputs(size: int = 2000) -> Path:
    """Two finished stages (a data set with a folder of small files, a training), an unfinished one, things that do not count."""

    def data(draft):
        write("downloads/archive.zip")
        audio = [write(f"segments/d/audio/{number % 2}/{number}.flac", 50) for number in range(8)]
        return stages.Made([write("segments/d/list.jsonl")], {}, sorted({path.parent for path in audio}))

    def train(draft):
        run = runs.create("codec", run_name="mine")
        for name in ("last.th", "state_3.th", "step_00000009/model.safetensors", "last/state.pt", "epoch_3/model.safetensors"):
            write(f"training/mine/ckpt/{name}", size)
        return stages.Made([write("training/mine/ckpt/best/model.safetensors", 3 * size), run / "metadata.yaml"])

    def fail(draft):
        write("training/other/ckpt/last.th")
        draft.remember(run="other")
        raise RuntimeError

    listing = files.outputs_root() / "segments/d/list.jsonl"
    stages.run("segment", data, scope="s", params={})
    stages.run("train", train, scope="s", params={}, inputs=[listing])
    with pytest.raises(RuntimeError):
        stages.run("again", fail, scope="s", params={})
    write("samples/index.html")
    write("training/mine/ckpt/.best.77.tmp/model.safetensors")
    return files.outputs_root()


def up_to_date() -> bool:
    """Whether no stage has to run again."""
    never = lambda draft: pytest.fail("made again")  # noqa: E731
    listing = files.outputs_root() / "segments/d/list.jsonl"
    stages.run("segment", never, scope="s", params={})
    return stages.run("train", never, scope="s", params={}, inputs=[listing]).skipped


def command(*words: str, outputs: Path, **environment: str) -> subprocess.Popen:
    known = {**os.environ, "MUSIC_OUTPUTS": str(outputs), **environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, str(SCRIPT), *words], env=known, start_new_session=True, **pipes)


def run(*words: str, outputs: Path) -> str:
    process = command(*words, outputs=outputs)
    said, errors = process.communicate()
    assert process.returncode == 0, errors
    return said


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


EXPECTED = {
    "segments/d/list.jsonl",
    *(f"segments/d/audio/{number % 2}/{number}.flac" for number in range(8)),
    *(f"training/mine/{name}" for name in ("metadata.yaml", "ckpt/best/model.safetensors", "ckpt/epoch_3/model.safetensors")),
    "samples/index.html",
}


def test_only_what_is_finished_belongs_to_a_backup(outputs):
    make_outputs()
    made = backup.plan()
    assert {name for name in made.files if not name.startswith(".stages/")} == EXPECTED
    assert sum(name.startswith(".stages/s/") for name in made.files) == 2 and set(made.folders) == {
        "segments/d/audio/0",
        "segments/d/audio/1",
    }
    more = {name for name in backup.plan(training_state=True).files if name not in made.files}
    state = ("last.th", "state_3.th", "step_00000009/model.safetensors", "last/state.pt")
    assert more == {f"training/mine/ckpt/{name}" for name in state}
    (outputs / "training/mine/ckpt/best/model.safetensors").unlink()
    made = backup.plan()
    assert len(made.incomplete) == 1 and "train" in made.incomplete[0]
    assert not any(name.startswith("training/") for name in made.files)


def test_what_has_not_changed_is_not_read_again(outputs, tmp_path, monkeypatch):
    make_outputs()
    backup.backup(backup.Rsync(str(tmp_path / "there")))
    monkeypatch.setattr(files, "digest", lambda path: pytest.fail(f"read {path}"))
    assert len(backup.plan().files) == len(EXPECTED) + 2


@pytest.fixture(params=["rsync", "hub"])
def place(request, tmp_path):
    """The options that name a place."""
    if request.param == "hub":
        request.getfixturevalue("hub")
        return ["--hub", REPOSITORY]
    return ["--rsync", str(tmp_path / "there")]


def test_there_and_back_again(place, outputs, tmp_path, monkeypatch):
    make_outputs()
    said = run("backup", *place, outputs=outputs)
    assert f"new or changed: {len(EXPECTED) + 2} files" in said and "sent and checked" in said
    assert run("backup", *place, outputs=outputs).endswith("up to date\n")
    back = tmp_path / "back"
    assert f"done: {len(EXPECTED) + 2} restored" in run("restore", *place, outputs=back)
    assert {name for name in contents(back) if not name.startswith(".stages")} == EXPECTED
    assert contents(back).items() - {(backup.LIST, (back / backup.LIST).read_bytes())} <= contents(outputs).items()
    for folder in ("segments/d/audio/0", "segments/d/audio/1"):
        assert (back / folder).stat().st_mtime_ns == (outputs / folder).stat().st_mtime_ns
    monkeypatch.setenv("MUSIC_OUTPUTS", str(back))
    assert up_to_date()
    assert "0 to fetch" in run("restore", *place, outputs=back)

    # A file that is here with another content stays, and comes back when asked.
    (back / "samples/index.html").write_text("mine")
    (back / "segments/d/list.jsonl").unlink()
    said = run("restore", *place, outputs=back)
    assert "1 files are here with another content and stay (samples/index.html ...)" in said and "done: 1 restored" in said
    run("restore", "--overwrite", *place, outputs=back)
    assert contents(back)["samples/index.html"] == contents(outputs)["samples/index.html"]


def test_a_backup_renews_and_adds_and_never_deletes(place, outputs, tmp_path):
    make_outputs()
    run("backup", *place, outputs=outputs)
    write("samples/index.html")
    for path in (outputs / ".stages/s").glob("train-*"):
        path.unlink()  # freed here
    (outputs / "training/mine/ckpt/best/model.safetensors").unlink()
    assert "new or changed: 1 files" in run("backup", "--dry-run", *place, outputs=outputs)
    assert "done: 1 sent" in run("backup", *place, outputs=outputs)
    back = tmp_path / "back"
    run("restore", *place, outputs=back)
    assert contents(back)["samples/index.html"] == contents(outputs)["samples/index.html"]
    assert "training/mine/ckpt/best/model.safetensors" in contents(back)


# Kills: the place or the line is slow, the command is killed on the way, the same command ends the work.


def slow_rsync(tmp_path) -> dict[str, str]:
    script = files.write_text(tmp_path / "bin" / "rsync", '#!/bin/sh\nexec /usr/bin/rsync --bwlimit=2000 "$@"\n')
    script.chmod(0o755)
    return {"PATH": f"{script.parent}:{os.environ['PATH']}"}


def kill_after(process: subprocess.Popen, begun) -> None:
    while not begun():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_a_killed_backup_leaves_the_one_before_and_goes_on(place, outputs, tmp_path, request):
    make_outputs(1_000_000)
    run("backup", *place, outputs=outputs)
    before = contents(outputs)
    write("samples/index.html", 4_000_000)
    for number in range(3):
        write(f"training/mine/ckpt/epoch_3/{number}.safetensors", 2_000_000)
    if place[0] == "--hub":
        hub = request.getfixturevalue("hub")
        hub.full_at = len(hub.uploads) + 1
        process = command("backup", *place, outputs=outputs)
        kill_after(process, lambda: len(hub.uploads) == hub.full_at)
        assert len(hub.repositories[REPOSITORY]) == 2  # no half commit
        killed, hub.full_at = set(hub.uploads), None
        hub.emptied.set()
    else:
        process = command("backup", *place, outputs=outputs, **slow_rsync(tmp_path))
        kill_after(process, lambda: list((tmp_path / "there").rglob(".~tmp~/*")))
    back = tmp_path / "back"
    run("restore", *place, outputs=back)
    assert contents(back)["samples/index.html"] == before["samples/index.html"]
    run("backup", *place, outputs=outputs)
    if place[0] == "--hub":
        assert len(hub.uploads) == len(set(hub.uploads)) and killed < set(hub.uploads)  # nothing was sent twice, and some was left to send
    run("restore", "--overwrite", *place, outputs=back)
    assert contents(back).items() - {(backup.LIST, (back / backup.LIST).read_bytes())} <= contents(outputs).items()
    assert "training/mine/ckpt/epoch_3/2.safetensors" in contents(back)


def test_a_killed_restore_goes_on_and_leaves_no_stamp_before_its_files(place, outputs, tmp_path, monkeypatch):
    make_outputs(1_000_000)
    run("backup", *place, outputs=outputs)
    back = tmp_path / "back"
    slow = slow_rsync(tmp_path) if place[0] == "--rsync" else {}
    kill_after(command("restore", *place, outputs=back, **slow), lambda: list((back / ".restore").rglob("*.*")))
    assert not list((back / ".stages").rglob("*.json"))
    run("restore", *place, outputs=back)
    assert {name for name in contents(back) if not name.startswith(".stages")} == EXPECTED
    monkeypatch.setenv("MUSIC_OUTPUTS", str(back))
    assert up_to_date()


# The hub's own matters


def test_folders_of_very_many_files_travel_as_archives(hub, outputs, tmp_path, monkeypatch):
    monkeypatch.setattr(backup, "PACK_FROM", 3)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # may have been read before the environment was set
    make_outputs()
    place = backup.Hub(REPOSITORY)
    place.api.endpoint = hub.url
    backup.backup(place)
    stored = hub.files(REPOSITORY)
    assert {"packs/segments/d/audio/0.tar", "packs/segments/d/audio/1.tar"} <= set(stored) and not any(".flac" in name for name in stored)
    sent = len(hub.uploads)
    backup.backup(place)
    assert len(hub.uploads) == sent
    back = tmp_path / "back"
    monkeypatch.setenv("MUSIC_OUTPUTS", str(back))
    place.read_list()
    backup.restore(place)
    assert {name for name in contents(back) if not name.startswith(".stages")} == EXPECTED
    assert up_to_date()
    write("segments/d/audio/0/0.flac", 50)
    assert backup.restore(place) == 1  # a pack comes back whole
    assert up_to_date()


def test_a_repository_is_private_unless_it_is_asked_for_otherwise(hub, outputs):
    make_outputs()
    run("backup", "--hub", REPOSITORY, outputs=outputs)
    run("backup", "--hub", "me/open", "--public", outputs=outputs)
    assert hub.private == {REPOSITORY: True, "me/open": False}


@pytest.mark.parametrize(
    ("words", "change", "line"),
    [
        (["backup", "--hub", REPOSITORY], {"HF_TOKEN": "hf_WRONG"}, "me/backup: the hub answered 401; set HF_TOKEN to a token"),
        (["backup", "--hub", "no/such/name"], {}, "no/such/name: "),
        (["backup", "--hub", REPOSITORY], {"HF_ENDPOINT": "http://127.0.0.1:9"}, "the hub cannot be reached"),
        (["restore", "--hub", REPOSITORY], {}, "there is no whole backup"),
        (["restore", "--rsync", "/none/at/all"], {}, "there is no whole backup"),
        (["backup", "--rsync", "no-such-host.invalid:x"], {}, "no-such-host.invalid:x/: "),
    ],
)
def test_what_a_person_can_mend_is_one_line(hub, outputs, words, change, line):
    make_outputs()
    process = command(*words, outputs=outputs, **change)
    _, errors = process.communicate()
    assert process.returncode == 2 and line in errors and len(errors.splitlines()) == 1, errors
    assert "hf_" not in errors


def test_what_was_damaged_there_does_not_come_back(outputs, tmp_path):
    make_outputs()
    there, back = tmp_path / "there", tmp_path / "back"
    run("backup", "--rsync", str(there), outputs=outputs)
    (there / "segments/d/list.jsonl").write_bytes(b"x" * 2000)
    process = command("restore", "--rsync", str(there), outputs=back)
    _, errors = process.communicate()
    assert process.returncode == 2 and "segments/d/list.jsonl: is not what the list of the backup says" in errors
    assert not (back / "segments/d/list.jsonl").exists()


def test_a_list_that_points_outside_is_refused(outputs, tmp_path):
    make_outputs()
    there, back = tmp_path / "there", tmp_path / "back"
    run("backup", "--rsync", str(there), outputs=outputs)
    listing = json.loads((there / backup.LIST).read_text())
    listing["files"]["../../evil.txt"] = next(iter(listing["files"].values()))
    (there / backup.LIST).write_text(json.dumps(listing))
    process = command("restore", "--rsync", str(there), outputs=back)
    assert "must not name files outside" in process.communicate()[1] and process.returncode == 2
    with pytest.raises(UserError):
        backup._check_name("/etc/passwd")


def test_executed_notebooks_belong_to_it(outputs, tmp_path):
    outputs.mkdir()
    executed = notebooks.executed_path("tiny", "01_setup")
    files.write_text(executed, "{}")
    toy = files.write_text(tmp_path / "01_setup.ipynb", json.dumps({"cells": []}))
    notebooks.save_stamp(notebooks.read("01_setup", toy.parent), "tiny/x", "tiny", {}, tmp_path / "none", 1.0)
    assert set(backup.plan().files) == {"notebooks/tiny/01_setup.ipynb", ".stages/tiny/x/notebooks/01_setup.json"}
