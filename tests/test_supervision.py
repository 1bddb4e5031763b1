"""Supervision: what is started again and what is not, limits that hold across restarts, signals, the pod that stops."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import psutil
import pytest

from music_training import files, heartbeat, runs, supervision
from music_training.errors import INTERRUPTED, UserError

# A command that does the first things in its list, one a try: an exit code, "-9" (killed), "hang", a step of a training.
WORK = """
import json, os, pathlib, signal, sys, time
from music_training import heartbeat
folder = pathlib.Path(sys.argv[1])
tries = len(list(folder.glob("try*")))
(folder / f"try{tries}").write_text(str(os.getpid()))
plan = json.loads(sys.argv[2])
for thing in plan[min(tries, len(plan) - 1)]:
    if isinstance(thing, list):
        run = folder / "training" / thing[0]
        run.mkdir(parents=True, exist_ok=True)
        heartbeat.Heartbeat(run).beat(thing[1])
    elif thing == "hang":
        time.sleep(300)
    elif thing == "checkpoint":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    elif thing == -9:
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        sys.exit(thing)
"""


@pytest.fixture
def work(outputs):
    """Makes the command that does what a plan says: one list of things for each try, the last one for all further ones."""
    outputs.mkdir()
    return lambda *plan: [sys.executable, "-c", WORK, str(outputs), json.dumps(plan)]


def tries(outputs) -> int:
    return len(list(outputs.glob("try*")))


def supervised(command, **settings) -> int:
    return supervision.supervise(command, supervision.Supervision(**{"pause": 0.01, **settings}))


def test_a_success_is_not_repeated(work, outputs):
    assert supervised(work([0])) == 0 and tries(outputs) == 1
    assert not list((outputs / ".stages" / "supervision").iterdir())


def test_kills_and_failures_are_tried_again(work, outputs, capfd):
    assert supervised(work([-9], [1], [INTERRUPTED], [0])) == 0 and tries(outputs) == 4
    said = capfd.readouterr().out
    assert "ended by SIGKILL; starting again" in said and "exit code 75; starting again" in said


def test_without_progress_it_gives_up(work, outputs, capfd):
    assert supervised(work([1]), retries=2) == 1 and tries(outputs) == 3
    assert "giving up after 2 retries without progress" in capfd.readouterr().out


def test_a_training_that_comes_further_each_time_may_fail_for_ever(work, outputs):
    plan = [[["run_20260101_000000_codec_default", step], -9] for step in (3, 6, 9, 9)]
    assert supervised(work(*plan, [0]), retries=1) == 0 and tries(outputs) == 5


def test_a_new_run_that_dies_at_the_same_step_is_no_progress(work, outputs):
    plan = [[[f"run_20260101_00000{number}_codec_default", 3], -9] for number in range(9)]
    assert supervised(work(*plan), retries=2) == 137 and tries(outputs) == 4


@pytest.mark.parametrize("code", [2, 130])
def test_what_a_person_has_to_change_or_wanted_is_not_repeated(work, outputs, code):
    assert supervised(work([code])) == code and tries(outputs) == 1


def test_a_training_without_a_sign_of_life_is_ended_and_started_again(work, outputs, capfd):
    assert supervised(work([["codec", 1], "hang"], [0]), hang_minutes=0.02) == 0 and tries(outputs) == 2
    assert "no sign of life for 0.02 min" in capfd.readouterr().out


def test_time_is_counted_over_all_tries_and_restarts_of_the_pod(work, outputs, capfd):
    command = work(["checkpoint", "hang"])
    assert supervised(command, max_hours=1 / 3600) == INTERRUPTED
    assert supervised(command, max_hours=1 / 3600) == INTERRUPTED and tries(outputs) == 1  # nothing left: not even started
    assert "--max-hours 0.000277778 are used up; the same command with more goes on" in capfd.readouterr().out
    assert supervised(command, max_hours=2 / 3600) == INTERRUPTED and tries(outputs) == 2


def test_money_is_time_at_a_price(work, outputs, capfd):
    assert supervised(work(["checkpoint", "hang"]), max_cost=0.001, price_per_hour="3.6") == INTERRUPTED
    assert "--max-cost 0.001 is used up" in capfd.readouterr().out
    (note,) = (outputs / ".stages" / "supervision").iterdir()
    assert 1 <= json.loads(note.read_text())["seconds"] < 4
    with pytest.raises(UserError, match="the price of an hour of this machine .1 x none. is not known; give --price-per-hour"):
        supervised(work([0]), max_cost=1, price_per_hour="none")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, INTERRUPTED), (signal.SIGINT, 130)])
def test_a_signal_is_passed_on_and_ends_it(work, outputs, number, code):
    def send():
        while not tries(outputs):
            time.sleep(0.02)
        time.sleep(0.3)
        os.kill(os.getpid(), number)

    threading.Thread(target=send).start()
    assert supervised(work(["checkpoint", "hang"])) == code and tries(outputs) == 1


def test_a_killed_supervisor_leaves_a_checkpoint_and_nobody_running(work, outputs):
    command = [sys.executable, "-m", "music_training.supervision", *work(["checkpoint", "hang"])]
    process = subprocess.Popen(command, cwd=files.REPOSITORY, stdout=subprocess.DEVNULL)
    while not tries(outputs) or not (outputs / "try0").read_text():
        time.sleep(0.02)
    child = int((outputs / "try0").read_text())
    process.kill()
    process.wait()
    for _ in range(200):
        if not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.05)
    pytest.fail("the command outlived its supervisor")


def test_a_heartbeat_says_where_a_training_is_and_goes_with_its_end(outputs, monkeypatch):
    monkeypatch.setattr(heartbeat, "EVERY", 0.0)
    run = runs.create("codec", run_name="mine")
    began = time.time()
    heart = heartbeat.Heartbeat(run)
    heart.beat(3)
    heart.beat(4)
    assert heartbeat.latest(began) == heartbeat.Sign("mine", 4, pytest.approx(time.time(), abs=5))
    assert heartbeat.latest(time.time() + 1) is None
    monkeypatch.setattr(heartbeat.platform, "node", lambda: "another pod")
    assert heartbeat.latest(began) is None
    heart.end()
    assert not (run / heartbeat.NAME).exists()


# The command line, and the pod


def command(*words: str, **environment: str):
    known = {**os.environ, "PYTHONPATH": str(files.REPOSITORY), **environment}
    return subprocess.run(
        [sys.executable, "-m", "music_training.supervision", *words], capture_output=True, text=True, env=known, timeout=60
    )


def test_the_command_line_passes_options_of_the_command_on(outputs):
    ended = command("--retries", "0", "--", sys.executable, "-c", "import sys; sys.exit(len(sys.argv))", "--max-hours", "3")
    assert ended.returncode == 3
    ended = command("--dry-run", "--max-hours", "3", "--max-cost", "9", "--price-per-hour", "2 x H200", "sleep", "1000")
    assert "would run: sleep 1000; 3 retries; 0.00 of 3 hours used" in ended.stdout and "2 x H200" in ended.stdout


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "error: supervise what? give a command"),
        (["--max-hours", "0", "true"], "max_hours"),
        (["--stop-pod-when-done", "true"], "error: --stop-pod-when-done: RUNPOD_POD_ID is not set"),
    ],
)
def test_bad_input_is_one_line(outputs, words, line):
    ended = command(*words, RUNPOD_POD_ID="")
    assert ended.returncode == 2 and line in ended.stderr and len(ended.stderr.splitlines()) == 1


@pytest.fixture
def api(monkeypatch):
    """A server that stops pods after it failed once; gives what it was asked."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            seen.append((self.path, json.loads(body), self.headers["Authorization"]))
            self.send_response(500 if len(seen) == 1 else 200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("RUNPOD_API_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("RUNPOD_API_KEY", "rpa_SECRET")
    monkeypatch.setenv("RUNPOD_POD_ID", "pod7")
    monkeypatch.setattr(supervision.stop_pod, "__defaults__", (False, 3, 0.01))
    yield seen
    server.shutdown()
    server.server_close()


def test_the_pod_stops_when_all_is_done_or_hopeless_or_spent(work, outputs, api, capfd):
    assert supervised(work([0]), stop_pod=True) == 0
    assert api == [("/v2/pods/pod7/action", {"action": "stop"}, "Bearer rpa_SECRET")] * 2
    said = capfd.readouterr()
    assert "would stop pod pod7 through 127.0.0.1 when done" in said.out and "HTTP 500" in said.out and "SECRET" not in said.out + said.err
    assert supervised(work([1]), retries=0, stop_pod=True) == 1 and len(api) == 3
    assert supervised(work(["checkpoint", "hang"]), max_hours=1 / 3600, stop_pod=True) == INTERRUPTED and len(api) == 4


def test_the_pod_stays_in_a_dry_run_and_when_a_person_interrupts(work, outputs, api):
    assert supervised(work([0]), stop_pod=True, dry_run=True) == 0 and tries(outputs) == 0
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    assert supervised(work(["hang"]), stop_pod=True) == 130
    assert api == []


def test_that_the_pod_cannot_be_stopped_is_said_before_the_work(work, outputs, api, monkeypatch):
    monkeypatch.delenv("RUNPOD_API_KEY")
    monkeypatch.setenv("HOME", str(outputs))
    with pytest.raises(UserError, match="--stop-pod-when-done: no API key"):
        supervised(work([0]), stop_pod=True)
    assert tries(outputs) == 0
