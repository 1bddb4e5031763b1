"""Stages: done once, redone exactly when something changed, movable, and with a memory that outlives a kill."""

import os
import shutil
import subprocess
import sys

import pytest

from music_training import files, stages
from music_training.errors import UserError

SCOPE = "tiny/data"


@pytest.fixture
def source(outputs):
    return files.write_text(outputs / "in.txt", "input")


class Maker:
    """Writes one output from one input, and counts how often."""

    def __init__(self, outputs, source):
        self.outputs, self.source, self.calls = outputs, source, 0

    def __call__(self, draft):
        self.calls += 1
        path = files.write_text(self.outputs / "out" / "a.txt", self.source.read_text().upper())
        return stages.Made([path], {"length": 5})

    def run(self, **options):
        options = {"params": {"x": 1}, "inputs": [self.source], **options}
        return stages.run("make", self, scope=SCOPE, **options)


@pytest.fixture
def maker(outputs, source):
    return Maker(outputs, source)


def state(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def test_the_second_run_writes_nothing_and_gives_the_same_result(maker, outputs, capsys):
    first = maker.run()
    before = state(outputs)
    second = maker.run()
    assert (first.skipped, second.skipped, maker.calls) == (False, True, 1)
    assert first.result == second.result == {"length": 5}
    assert state(outputs) == before
    assert capsys.readouterr().out.splitlines()[-1] == "make: up to date"


@pytest.mark.parametrize("change", ["input", "params", "version", "output changed", "output deleted", "force", "environment", "inputs"])
def test_every_change_makes_it_again(maker, source, outputs, monkeypatch, change):
    maker.run()
    options = {}
    if change == "input":
        source.write_text("other")
    elif change == "output changed":
        (outputs / "out" / "a.txt").write_text("XXXXX")
    elif change == "output deleted":
        (outputs / "out" / "a.txt").unlink()
    elif change == "environment":
        monkeypatch.setenv("MUSIC_FORCE", "1")
    else:
        options = {"params": {"params": {"x": 2}}, "version": {"version": 2}, "force": {"force": True}}.get(change, {"inputs": []})
    assert not maker.run(**options).skipped
    assert maker.calls == 2
    monkeypatch.delenv("MUSIC_FORCE", raising=False)
    assert maker.run(**{name: value for name, value in options.items() if name != "force"}).skipped


def test_a_broken_stamp_makes_it_again(maker):
    maker.run()
    stages.stamp_file("make", SCOPE, {"x": 1}).write_text('{"half')
    assert not maker.run().skipped


def test_outputs_can_be_moved_and_their_times_may_change(maker, outputs, monkeypatch):
    maker.run()
    moved = outputs.with_name("moved")
    shutil.move(outputs, moved)
    for path in moved.rglob("*"):
        os.utime(path, (1, 1))
    monkeypatch.setenv("MUSIC_OUTPUTS", str(moved))
    assert str(outputs) not in stages.stamp_file("make", SCOPE, {"x": 1}).read_text()
    maker.outputs, maker.source = moved, moved / "in.txt"
    assert maker.run().skipped and maker.calls == 1


def test_the_repository_can_be_another_one(tmp_path, outputs, monkeypatch):
    """As on a new pod: an input that comes with the code lies elsewhere, with other times."""
    here, there, elsewhere = tmp_path / "here", tmp_path / "there", tmp_path / "person.yaml"
    for checkout in (here, there):
        files.write_text(checkout / "model_config" / "prompts.yaml", "- name: a")
    files.write_text(elsewhere, "- name: b")
    os.utime(there / "model_config" / "prompts.yaml", (1, 1))

    def run(checkout):
        monkeypatch.setattr(files, "REPOSITORY", checkout)
        inputs = [checkout / "model_config" / "prompts.yaml", elsewhere]
        return stages.run("sample", lambda _: stages.Made([files.write_text(outputs / "a", "")]), scope=SCOPE, params={}, inputs=inputs)

    assert not run(here).skipped
    assert run(there).skipped
    shutil.rmtree(here)
    assert run(there).skipped and stages.inputs_unchanged(files.read_json(stages.stamp_file("sample", SCOPE, {})))
    files.write_text(there / "model_config" / "prompts.yaml", "- name: c")
    assert not run(there).skipped


def test_the_order_of_parameters_does_not_matter(maker):
    maker.run(params={"a": 1, "b": 2})
    assert maker.run(params={"b": 2, "a": 1}).skipped


def test_what_was_promised_must_be_there(outputs):
    with pytest.raises(RuntimeError, match="did not write out/none"):
        stages.run("make", lambda draft: stages.Made([outputs / "out" / "none"]), scope=SCOPE, params={})
    assert not stages.stamp_file("make", SCOPE, {}).exists()


def test_a_failed_stage_leaves_no_stamp_and_its_memory(maker, source):
    def fail(draft):
        draft.remember(run="run_1", epoch=3)
        raise ZeroDivisionError

    options = {"scope": SCOPE, "params": {}, "inputs": [source]}
    with pytest.raises(ZeroDivisionError):
        stages.run("train", fail, **options)

    seen = []

    def look(draft):
        seen.append(dict(draft.memory))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stages.run("train", look, **options)
    source.touch()  # the same content
    with pytest.raises(ZeroDivisionError):
        stages.run("train", look, **options)
    with pytest.raises(ZeroDivisionError):
        stages.run("train", look, **{**options, "params": {"other": 1}})
    with pytest.raises(ZeroDivisionError):
        stages.run("train", look, force=True, **options)
    source.write_text("other input")
    with pytest.raises(ZeroDivisionError):
        stages.run("train", look, **options)
    memory = {"run": "run_1", "epoch": 3}
    assert seen == [memory, memory, {}, {}, {}]


def test_memory_outlives_a_kill_and_goes_when_the_stage_is_done(outputs):
    program = """
import os, signal
from music_training import stages
def make(draft):
    draft.remember(run="run_7")
    os.kill(os.getpid(), signal.SIGKILL)
stages.run("train", make, scope="tiny/data", params={})
"""
    assert subprocess.run([sys.executable, "-c", program], cwd=files.REPOSITORY).returncode == -9
    seen = []

    def make(draft):
        seen.append(draft.memory)
        return stages.Made([])

    stages.run("train", make, scope=SCOPE, params={})
    stages.run("train", make, scope=SCOPE, params={}, force=True)
    assert seen == [{"run": "run_7"}, {}]


def test_two_processes_make_it_once(outputs, source):
    program = """
import sys, time
from pathlib import Path
from music_training import files, stages
def make(draft):
    time.sleep(0.5)
    with open(files.outputs_root() / "calls", "a") as stream:
        stream.write("x")
    return stages.Made([files.write_text(files.outputs_root() / "o", "1")])
stages.run("make", make, scope="tiny/data", params={})
"""
    running = [subprocess.Popen([sys.executable, "-c", program], cwd=files.REPOSITORY) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    assert (outputs / "calls").read_text() == "x"


def test_a_held_stage_is_an_error_in_words(maker, monkeypatch):
    monkeypatch.setattr(stages, "LOCK_WAIT", 0.0)
    lock = stages.stamp_file("make", SCOPE, {"x": 1}).with_suffix(".lock")
    program = "import sys; from music_training import files\nwith files.lock(sys.argv[1], 'x'):\n    print(1, flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", program, lock], cwd=files.REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    holder.stdout.readline()
    with pytest.raises(UserError, match=r"stage make \(tiny/data\) is already running"):
        maker.run()
    holder.communicate()
    assert not maker.run().skipped


def test_the_runner_is_told_every_stage_also_a_skipped_one(maker, tmp_path, monkeypatch):
    listing = tmp_path / "stages.txt"
    monkeypatch.setenv("MUSIC_STAGE_LIST", str(listing))
    maker.run()
    maker.run()
    lines = listing.read_text().splitlines()
    assert lines[0] == lines[1] and files.absolute(lines[0]) == stages.stamp_file("make", SCOPE, {"x": 1})
