"""Keep a long command going on a rented pod: start it again where it was killed, guard time and money, stop the pod.

bash scripts/supervise.sh --max-hours 12 --stop-pod-when-done bash scripts/run_pipeline.sh --profile fma_small

The command has to go on where it was when it is started again, as all commands of this project do.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from functools import partial

from pydantic import Field

from . import config, files, heartbeat, parallel, prices, signals
from .errors import INTERRUPTED, UserError, run_command

POD_TOOL = files.REPOSITORY / "runpod_ssh_sync.py"
LOOK_EVERY = 0.5  # seconds
NOT_AGAIN = (2, 130)  # a person's mistake, a person's Ctrl-C
LONGEST_PAUSE = 60.0  # seconds


class Supervision(config.Settings):
    """How often to start again, and when to stop.

    ``retries`` counts failures without progress in between (a later step of a training than ever before); ``pause`` (s)
    comes before the first of them and doubles. A training without a sign of life for ``hang_minutes`` is ended and
    started again. ``max_hours`` and ``max_cost`` (at ``price_per_hour``: a number or a GPU of model_config/prices.yaml;
    None: what this machine's GPUs cost there) count the time of all tries, also of those before a restart of the pod. A
    command that is asked to stop gets ``grace`` seconds for its checkpoint.
    """

    retries: int = Field(3, ge=0)
    pause: float = Field(5.0, ge=0)
    hang_minutes: float | None = Field(None, gt=0)
    max_hours: float | None = Field(None, gt=0)
    max_cost: float | None = Field(None, gt=0)
    price_per_hour: str | None = None
    grace: float = Field(120.0, gt=0)
    stop_pod: bool = False
    dry_run: bool = False


def supervise(command: list[str], settings: Supervision) -> int:
    """Run ``command`` to its end and return its exit code; INTERRUPTED where a limit or SIGTERM stopped it.

    UserError where a limit cannot be kept (no price) or the pod could not be stopped (no id, no key).
    """
    budget = Budget(command, settings)
    if settings.stop_pod:
        stop_pod(dry_run=True)
    if settings.dry_run:
        print(f"would run: {' '.join(command)}; {settings.retries} retries; {budget}", flush=True)
        return 0
    attempt = Attempts(command, settings, budget)
    try:
        code = attempt.run()
    finally:
        budget.save()
    if code == 0:
        budget.forget()
    if settings.stop_pod and attempt.asked is None and code != 130:
        stop_pod()
    return code


class Attempts:
    """The tries to bring one command to its end; ``asked`` is the signal that a person (or the pod) sent, if any."""

    def __init__(self, command: list[str], settings: Supervision, budget: Budget):
        self.command, self.settings, self.budget = command, settings, budget
        self.asked: int | None = None
        self.child: subprocess.Popen | None = None
        self.reached: dict[str, int] = {}  # the latest step of each training

    def run(self) -> int:
        """Try until it is done, hopeless, too dear or asked to stop; returns the exit code."""
        failures = 0
        with signals.handled(self._notice, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            while True:
                if self.budget.reason():
                    return self._over()
                code, why = self._try_once()
                if self.asked is not None:
                    say(f"asked to stop by {signal.Signals(self.asked).name}; the same command goes on")
                    return 130 if self.asked == signal.SIGINT else INTERRUPTED
                if self.budget.reason():
                    return self._over()
                if code == 0 or code in NOT_AGAIN:
                    return code
                failures = 0 if self._progress() else failures + 1
                if failures > self.settings.retries:
                    say(f"{why}; giving up after {self.settings.retries} retries without progress")
                    return code
                pause = min(self.settings.pause * 2 ** max(0, failures - 1), LONGEST_PAUSE)
                say(f"{why}; starting again in {pause:g} s" + (f" (retry {failures} of {self.settings.retries})" if failures else ""))
                self._sleep(pause)

    def _try_once(self) -> tuple[int, str]:
        """One run of the command: its exit code, as a shell would say it, and how it ended in words."""
        began, hung = time.time(), False
        dying = partial(parallel.die_with_parent, os.getpid(), signal.SIGTERM)  # a killed supervisor leaves a checkpoint, too
        self.child = subprocess.Popen(self.command, start_new_session=True, preexec_fn=dying)
        limit = self.settings.hang_minutes
        while self.child.poll() is None and self.asked is None and not self.budget.reason() and not hung:
            self._sleep(LOOK_EVERY)
            self.sign = heartbeat.latest(began)
            hung = bool(limit and self.sign and time.time() - self.sign.time > 60 * limit)
        self._end_child()
        self.sign = heartbeat.latest(began)
        code = self.child.returncode
        if hung:
            return INTERRUPTED, f"no sign of life for {limit:g} min"
        if code < 0:
            return 128 - code, f"ended by {signal.Signals(-code).name}"
        return code, f"exit code {code}"

    def _end_child(self) -> None:
        """Ask the command and all that it started to stop, wait for its checkpoint, then end what is left."""
        with contextlib.suppress(ProcessLookupError):
            if self.child.poll() is None:
                os.killpg(self.child.pid, self.asked or signal.SIGTERM)
            try:
                self.child.wait(self.settings.grace)
            except subprocess.TimeoutExpired:
                say(f"it did not end within {self.settings.grace:g} s: killing it")
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()

    def _progress(self) -> bool:
        """Whether a training came further than in any try before."""
        if self.sign is None or self.sign.step <= self.reached.get(self.sign.training, -1):
            return False
        self.reached[self.sign.training] = self.sign.step
        return True

    def _over(self) -> int:
        say(f"{self.budget.reason()}; the same command with more goes on where it is")
        return INTERRUPTED

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self.asked is None and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, LOOK_EVERY))
            self.budget.tick()

    def _notice(self, number: int) -> None:
        self.asked = number


class Budget:
    """Time and money that a command has used, kept in ``outputs/.stages/supervision/`` until it is done."""

    def __init__(self, command: list[str], settings: Supervision):
        self.limits = settings
        key = hashlib.sha256("\0".join(command).encode()).hexdigest()[:12]
        self.path = files.outputs_root() / ".stages" / "supervision" / f"{key}.json"
        self.seconds = (files.read_json(self.path) or {}).get("seconds", 0.0)
        self.command, self._last, self._saved = command, time.monotonic(), 0.0
        self.price = prices.per_hour(settings.price_per_hour) if settings.max_cost else None
        if self.price and not self.price.hourly:
            raise UserError(f"--max-cost: the price of an hour of this machine ({self.price.what}) is not known; give --price-per-hour")

    def __str__(self) -> str:
        limits = [f"{self.seconds / 3600:.2f} of {self.limits.max_hours:g} hours used"] if self.limits.max_hours else []
        if self.price:
            used = prices.text(self.price.of(self.seconds), self.price.currency)
            limits.append(f"{used} of {prices.text(self.limits.max_cost, self.price.currency)} used ({self.price.what})")
        return ", ".join(limits) or "no limit of time or money"

    def tick(self) -> None:
        """Count the time since the last call; note it every half minute."""
        now = time.monotonic()
        self.seconds, self._last = self.seconds + now - self._last, now
        if now - self._saved > 30:
            self.save()

    def reason(self) -> str:
        """Which limit is reached, in words; empty while none is."""
        if self.limits.max_hours and self.seconds >= 3600 * self.limits.max_hours:
            return f"--max-hours {self.limits.max_hours:g} are used up"
        if self.price and self.price.of(self.seconds) >= self.limits.max_cost:
            return f"--max-cost {self.limits.max_cost:g} is used up"
        return ""

    def save(self) -> None:
        """Note what is used; a full disk does not end the guard."""
        self._saved = time.monotonic()
        with contextlib.suppress(OSError):
            files.write_json(self.path, {"command": self.command, "seconds": round(self.seconds, 1)})

    def forget(self) -> None:
        """The command is done: the next one like it begins at zero."""
        self.path.unlink(missing_ok=True)


def stop_pod(dry_run: bool = False, tries: int = 6, pause: float = 10.0) -> None:
    """Stop the pod that this runs on (``$RUNPOD_POD_ID``) through the provider's API; ``dry_run`` only checks that it could.

    UserError where there is no id or no key, or where the API refused ``tries`` times.
    """
    pod = os.environ.get("RUNPOD_POD_ID")
    if not pod:
        raise UserError("--stop-pod-when-done: RUNPOD_POD_ID is not set; this does not look like a RunPod pod")
    command = [sys.executable, str(POD_TOOL), "stop", pod, *(["--dry-run"] if dry_run else [])]
    for number in range(tries):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            say(done.stdout.strip() + (" when done" if dry_run else ""))
            return
        if dry_run or done.returncode == 2:
            break
        say(f"the pod could not be stopped ({done.stderr.strip()}); trying again")
        time.sleep(pause * 2**number)
    raise UserError(f"--stop-pod-when-done: {done.stderr.strip().removeprefix('error: ')}")


def say(text: str) -> None:
    print(f"supervise: {text}", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Read the command line and supervise."""
    parser = argparse.ArgumentParser(prog="supervise.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--retries", type=int, default=3, metavar="N", help="failures without progress before giving up (3)")
    parser.add_argument("--pause", type=float, default=5.0, metavar="S", help="before the first retry, doubled each time (5)")
    parser.add_argument("--hang-minutes", type=float, metavar="M", help="end and restart a training that shows no sign of life for so long")
    parser.add_argument("--grace", type=float, default=120.0, metavar="S", help="time for a checkpoint when asked to stop (120)")
    parser.add_argument("--dry-run", action="store_true", help="say what would happen, and stop")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what to run, with its options")
    arguments = vars(parser.parse_args(argv))
    command = arguments.pop("command")
    command = command[1:] if command[:1] == ["--"] else command
    if not command:
        raise UserError("supervise what? give a command: bash scripts/supervise.sh [options] bash scripts/run_pipeline.sh")
    return supervise(command, config.load(Supervision, {name: value for name, value in arguments.items() if value is not None}))


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that the notebook runner has, too."""
    parser.add_argument("--max-hours", type=float, metavar="H", help="stop at a checkpoint when so much time is used")
    parser.add_argument("--max-cost", type=float, metavar="X", help="the same for money, at --price-per-hour")
    parser.add_argument("--price-per-hour", metavar="X", help="a number, or GPUs of model_config/prices.yaml: 4 x H200")
    parser.add_argument("--stop-pod-when-done", dest="stop_pod", action="store_true", help="stop this RunPod pod at the end")


if __name__ == "__main__":
    run_command(main)
