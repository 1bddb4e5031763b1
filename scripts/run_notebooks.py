#!/usr/bin/env python
"""Run the notebooks of a profile in order, headless, and skip those that are up to date.

python scripts/run_notebooks.py --profile mini
python scripts/run_notebooks.py --audio-dir ~/music --from 03 -p 04.epochs=20
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from music_training import files, notebooks, prices, profiles, supervision
from music_training.errors import UserError, run_command

PATIENCE = 60.0  # seconds that a notebook gets for its checkpoint after SIGTERM


@dataclass
class Outcome:
    """How a notebook ended: ``state`` is "ran", "up to date", "FAILED" or "not run"; ``seconds`` of wall time."""

    name: str
    state: str = "not run"
    seconds: float = 0.0


def main() -> int:
    arguments = parse_arguments()
    if arguments.list:
        return show_profiles(arguments.profile)
    folder = Path(arguments.notebooks_dir).resolve()
    audio_dir = check_audio_dir(arguments.audio_dir)
    names = list(profiles.read(arguments.profile).notebooks)
    chosen = notebooks.select(names, [word for text in arguments.only for word in text.split(",")], arguments.first, arguments.last)
    found = [notebooks.read(name, folder) for name in chosen]
    parameters = given_parameters(found, arguments, audio_dir)
    scope = profiles.scope(arguments.profile, audio_dir)
    price = prices.per_hour(arguments.price_per_hour)
    if arguments.dry_run:
        return show_plan(found, parameters, arguments, scope)
    if SUPERVISED not in os.environ and (arguments.retry or arguments.max_hours or arguments.max_cost or arguments.stop_pod):
        return run_supervised(arguments)
    with files.lock(files.outputs_root() / ".stages" / "pipeline.lock", "the pipeline"):
        return run_all(found, parameters, arguments, scope, price)


SUPERVISED = "MUSIC_SUPERVISED"  # set for the runs that a supervising one starts


def run_supervised(arguments: argparse.Namespace) -> int:
    """Start this same command, without the options for it, as often as needed."""
    os.environ[SUPERVISED] = "1"
    options = argparse.ArgumentParser(allow_abbrev=False)
    add_supervision(options)
    _, rest = options.parse_known_args()
    rest += ["--price-per-hour", arguments.price_per_hour] if arguments.price_per_hour else []
    names = ("max_hours", "max_cost", "price_per_hour", "stop_pod")
    settings = supervision.Supervision(retries=arguments.retry, **{name: getattr(arguments, name) for name in names})
    return supervision.supervise([sys.executable, str(Path(__file__).resolve()), *rest], settings)


def add_supervision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--retry", type=int, default=0, metavar="N", help="start again after a failure, N times without progress")
    supervision.add_options(parser)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--profile", default="mini", help="a file of model_config/profiles (default: mini)")
    parser.add_argument("--audio-dir", metavar="DIR", help="train on your own audio: a folder, read recursively")
    parser.add_argument("--only", action="append", default=[], metavar="NOTEBOOK", help="only these: names or numbers, comma or repeated")
    parser.add_argument("--from", dest="first", metavar="NOTEBOOK", help="start with this one")
    parser.add_argument("--to", dest="last", metavar="NOTEBOOK", help="end with this one")
    parser.add_argument("--force", action="store_true", help="run the chosen notebooks and all their stages even if up to date")
    parser.add_argument("-p", dest="parameters", action="append", default=[], metavar="NAME=VALUE", help="a parameter, or 04.NAME=VALUE")
    add_supervision(parser)
    parser.add_argument("--dry-run", action="store_true", help="say what would run and why, and stop")
    parser.add_argument("--list", action="store_true", help="list the profiles and the notebooks of this one, and stop")
    parser.add_argument("--notebooks-dir", default=notebooks.FOLDER, metavar="DIR", help="where the notebooks lie (default: notebooks/)")
    return parser.parse_args()


def check_audio_dir(text: str | None) -> str | None:
    """The absolute path of a person's own audio; UserError where there is none."""
    if not text:
        return None
    folder = Path(text).expanduser().resolve()
    if not folder.is_dir():
        raise UserError(f"--audio-dir {text}: no such folder")
    if not any(files_below for _, _, files_below in os.walk(folder)):
        raise UserError(f"--audio-dir {text}: the folder is empty")
    return str(folder)


def given_parameters(found: list[notebooks.Notebook], arguments: argparse.Namespace, audio_dir: str | None) -> dict[str, dict[str, Any]]:
    """What each notebook is given: the profile's name, the person's folder, and the ``-p`` values."""
    given = notebooks.parse_parameters(arguments.parameters, found)
    if audio_dir and not any("audio_dir" in notebook.parameters for notebook in found):
        raise UserError(f"--audio-dir: none of {', '.join(notebook.name for notebook in found)} takes one")
    common = {"profile": arguments.profile, **({"audio_dir": audio_dir} if audio_dir else {})}
    return {
        notebook.name: {**{name: value for name, value in common.items() if name in notebook.parameters}, **given[notebook.name]}
        for notebook in found
    }


def show_profiles(profile: str) -> int:
    for name in profiles.names():
        print(f"{name:16} {profiles.read(name).description}")
    print(f"\nnotebooks of {profile}:")
    for name in profiles.read(profile).notebooks:
        print(f"  {name}")
    return 0


def show_plan(found: list[notebooks.Notebook], parameters: Mapping[str, dict[str, Any]], arguments: argparse.Namespace, scope: str) -> int:
    from music_training.library import forecast
    from music_training.library.sources.command import forecast_of

    changing = ""
    for notebook in found:
        reason = "--force" if arguments.force else notebooks.why_run(notebook, scope, arguments.profile, parameters[notebook.name])
        if reason:
            print(f"{notebook.name:24} would run: {reason}")
            changing = changing or notebook.name
            costs = forecast_of(notebook.name, arguments.profile, parameters[notebook.name])
            print("".join(f"    {line}\n" for line in forecast.lines(costs)), end="")
        else:
            print(f"{notebook.name:24} up to date{f', unless {changing} changes its inputs' if changing else ''}")
    return 0


def run_all(
    found: list[notebooks.Notebook],
    parameters: Mapping[str, dict[str, Any]],
    arguments: argparse.Namespace,
    scope: str,
    price: prices.Price,
) -> int:
    """Run what is not up to date; stop at the first failure; print the summary. Returns the exit code."""
    outcomes = [Outcome(notebook.name) for notebook in found]
    start = time.monotonic()
    before_changed = False
    for outcome, notebook in zip(outcomes, found, strict=True):
        given = parameters[notebook.name]
        reason = "--force" if arguments.force else notebooks.why_run(notebook, scope, arguments.profile, given)
        if not reason and before_changed and not notebooks.has_stages(scope, notebook.name):
            reason = "an earlier notebook ran"
        if not reason:
            outcome.state = "up to date"
            print(f"{notebook.name}: up to date", flush=True)
            continue
        print(f"{notebook.name}: running ({reason})", flush=True)
        begin = time.monotonic()
        fault = run_one(notebook, given, arguments, scope)
        outcome.seconds = time.monotonic() - begin
        outcome.state = "FAILED" if fault else "ran"
        before_changed = True
        if fault:
            break
    show_summary(outcomes, time.monotonic() - start, price)
    if failed := [outcome.name for outcome in outcomes if outcome.state == "FAILED"]:
        print(f"error: {failed[0]}: {fault}", file=sys.stderr)
        return 1
    page = files.outputs_root() / "samples" / "index.html"
    if page.is_file():
        print(f"listen: {page}")
    return 0


def run_one(notebook: notebooks.Notebook, given: dict[str, Any], arguments: argparse.Namespace, scope: str) -> str:
    """Run one notebook in a kernel of its own; returns what went wrong, in a few lines, or nothing."""
    from headless import execute

    profile = arguments.profile
    executed = notebooks.executed_path(profile, notebook.name)
    log = files.outputs_root() / "logs" / "notebooks" / profile / f"{notebook.name}-{time.strftime('%Y%m%d_%H%M%S')}.log"
    if executed.parent.is_dir():
        files.sweep(executed.parent)
    with tempfile.TemporaryDirectory(prefix="music-training-") as temporary:
        listing = Path(temporary) / "stages.txt"
        environment = {
            "OMP_NUM_THREADS": "1",  # kernels that share cores with their own worker processes only lose by more
            **os.environ,
            "MUSIC_HEADLESS": "1",
            "MUSIC_STAGE_LIST": str(listing),
            "MUSIC_OUTPUTS": str(files.outputs_root()),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(files.REPOSITORY), os.environ.get("PYTHONPATH")])),
            **({"MUSIC_FORCE": "1"} if arguments.force else {}),
        }
        begin = time.monotonic()
        fault = execute(notebook.path, executed, given, environment, log)
        if not fault:
            notebooks.save_stamp(notebook, scope, profile, given, listing, time.monotonic() - begin)
        return fault


def show_summary(outcomes: list[Outcome], total: float, price: prices.Price) -> None:
    def line(name: str, state: str, seconds: float) -> str:
        cost = f"{price.of(seconds):12.4f}" if price.hourly else ""
        return f"{name:24}{state:12}{seconds:8.1f} s{cost}"

    print(f"\n{'notebook':24}{'state':12}{'time':>10}{'cost'.rjust(12) if price.hourly else ''}")
    for outcome in outcomes:
        print(line(outcome.name, outcome.state, outcome.seconds))
    print(line("total", "", total))
    if price.hourly:
        print(f"cost in {price.currency}, at {price.hourly:g} an hour ({price.what})")
    sys.stdout.flush()


def stop(number: int, _: object) -> None:
    """Leave at a SIGTERM as at a Ctrl-C, through every ``finally``; a notebook that is training may write its checkpoint first."""
    headless = sys.modules.get("headless")
    if number == signal.SIGTERM and headless and headless.ask_to_stop():
        signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        return
    raise SystemExit(128 + signal.SIGTERM)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    run_command(main)
