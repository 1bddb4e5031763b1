"""The part of every system's command that trains: ``train --config FILE key.sub=value ...`` and ``find-batch-size``.

A system's settings are a :class:`~music_training.config.Settings` with a ``training`` section; ``make_system(settings)``
builds its :class:`~music_training.trainer.system.System`. No torch is imported before work begins.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from .. import config, runs
from ..errors import UserError
from . import processes

S = TypeVar("S", bound=config.Settings)
OVERRIDE = re.compile(r"[a-z][\w.]*=")  # argparse cannot take them between options


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that training has in every system."""
    parser.add_argument("--config", type=Path, help="YAML file of settings; what it leaves out keeps its default")
    parser.add_argument(
        "--run-name", help="name of the run folder (default: run_<date>_<time>_<system>_<description>); one that was killed goes on"
    )
    parser.add_argument("--description", default="default", help="last part of the run's name")
    parser.add_argument("--resume", metavar="RUN", help="go on with this run exactly where it stopped, with its own settings")
    parser.add_argument("--init-from", metavar="RUN", help="start a new run from this run's (or checkpoint's) weights")
    parser.add_argument("--profiling", action="store_true", help="trace some steps into the run's logs")


def parse(parser: argparse.ArgumentParser, words: list[str], takes_settings: bool) -> argparse.Namespace:
    """The command line ``words``, whose ``key=value`` become ``overrides`` where the command takes settings."""
    overrides = [word for word in words if OVERRIDE.match(word)] if takes_settings else []
    parsed = parser.parse_args([word for word in words if word not in overrides])
    parsed.overrides = overrides
    return parsed


def read_settings(cls: type[S], arguments: argparse.Namespace, overrides: Iterable[str]) -> S:
    """The settings of a command line: ``--config`` and overrides, or those of the run that ``--resume`` names."""
    overrides = [*overrides, *(["training.profiling=true"] if arguments.profiling else [])]
    given = config.load(cls, arguments.config or {}, overrides, name="" if arguments.config else "command line")
    arguments.resume = arguments.resume or given.training.checkpoint.resume
    if not arguments.resume:
        return given
    if arguments.init_from or arguments.run_name:
        raise UserError("--resume goes on with one run; it takes neither --init-from nor --run-name")
    run = runs.find(arguments.resume)
    saved = config.load(cls, run / "config.yaml")
    if overrides or arguments.config:
        without = {"training": {"checkpoint": {"resume"}}}
        if given.model_dump(exclude=without) != saved.model_dump(exclude=without):
            raise UserError(
                f"--resume {run.name}: a resumed run keeps its own settings; to change them begin anew with --init-from {run.name}"
            )
    return saved


def train_as_told(train: Callable[..., Any], settings: config.Settings, arguments: argparse.Namespace) -> None:
    """Call ``train`` of a system with the options of a command line, and say in one line how it ended."""
    names = ("description", "run_name", "resume", "init_from")
    outcome = train(settings, **{name: getattr(arguments, name) for name in names})
    best = "" if outcome.best is None else f", best {settings.training.checkpoint.metric} {outcome.best:.4g}"
    print(f"{outcome.run}: {outcome.step} steps, {outcome.reason}{best}")


def train(
    make_system: Callable[[S], Any],
    settings: S,
    *,
    system: str,
    description: str = "default",
    run_name: str | None = None,
    resume: str | Path | None = None,
    init_from: str | Path | None = None,
    callbacks: Iterable[Any] = (),
    run: Path | None = None,
):
    """Train a system into a new run folder, or go on in the one that ``resume`` names; returns the trainer's Outcome.

    ``init_from`` takes the weights of a run, checkpoint or file and begins with a new schedule. ``run`` is a folder made
    by :func:`music_training.runs.create` before (a stage's unfinished one, say): it is continued where it has a checkpoint.
    So is an unfinished run of the name ``run_name`` that was begun with these settings: the same command, given again by a
    person, a supervisor or torchrun, goes on.
    """

    def open_run() -> Path:
        if resume:
            return runs.find(resume)
        folder = run or _unfinished(run_name, settings) or runs.create(system, description, run_name)
        config.save(settings, folder / "config.yaml")
        if init_from:
            runs.write_metadata(folder, init_from=str(init_from))
        return folder

    folder = processes.first_alone(open_run)
    from . import checkpoints
    from .loop import Trainer

    made = make_system(settings)
    if init_from and not resume:
        source = Path(init_from).expanduser()
        checkpoint = checkpoints.find(source if source.exists() else runs.find(init_from))
        fresh = checkpoints.load_weights(made.model, checkpoint, averaged=True, partial=True)
        print(f"weights from {checkpoint}" + (f"; {len(fresh)} tensors start anew" if fresh else ""), flush=True)
    return Trainer(made, settings.training, folder, callbacks, label=folder.name).fit(resume=True)


def _unfinished(run_name: str | None, settings: config.Settings) -> Path | None:
    """The run of that name, where it was begun with the same settings and has not come to its end."""
    folder = runs.folder() / run_name if run_name else None
    if folder is None or runs.read_metadata(folder).get("status") in (None, "finished"):
        return None
    saved = folder / "config.yaml"
    return folder if not saved.is_file() or config.load(type(settings), saved) == settings else None


def find_batch_size(make_system: Callable[[S], Any], settings: S, limit: int = 4096) -> int:
    """The largest batch size, up to ``limit`` and the number of examples, of which an update fits the GPU's memory."""
    import torch

    if not torch.cuda.is_available():
        raise UserError("find-batch-size measures a GPU's memory, and there is none here")
    from .loop import Trainer

    made = make_system(settings)

    def fits(size: int) -> bool:
        changed = settings.training.model_copy(update={"batch_size": size})
        trainer = Trainer(made, changed, runs.folder())
        try:
            trainer._plan = trainer.batches.plan(0)
            for _ in range(2):  # the optimizer's state comes with the first update
                trainer._update(next(trainer.batches.updates(0, 0))[1])
            return True
        except torch.cuda.OutOfMemoryError:
            return False
        finally:
            trainer.optimizer.zero_grad()
            del trainer
            torch.cuda.empty_cache()

    return largest(fits, min(limit, len(made)))


def largest(fits: Callable[[int], bool], limit: int) -> int:
    """The largest number in 1 ... limit that fits, where all smaller ones do; UserError where not even 1 does."""
    low, high = 0, 1
    while high <= limit and fits(high):
        low, high = high, high * 2
    high = min(high, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    if low == 0:
        raise UserError("not even one example fits the memory; make the model or the examples smaller")
    return low
