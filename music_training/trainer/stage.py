"""What the commands and notebooks of all systems do alike: training as a stage, and the files they are given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from .. import config, runs, stages
from ..errors import UserError


def train_once(
    name: str, settings: config.Settings, train: Callable[[Path], Any], written: Callable[[Path], Iterable[Path]], *,
    scope: str, system: str, inputs: Sequence[Path], description: str = "default",
) -> stages.StageResult:  # fmt: skip
    """Train once: the stage ``name``, whose result names the ``run``; a killed one goes on in its run folder.

    ``train(run)`` trains into a folder and returns the trainer's outcome; ``written(run)`` are the files it then holds
    that others need.
    """

    def make(draft: stages.Draft) -> stages.Made:
        known = draft.memory.get("run")
        run = runs.folder() / known if known and (runs.folder() / known).is_dir() else None
        if run is None:
            run = runs.create(system, description)
            draft.remember(run=run.name)
        outcome = train(run)
        return stages.Made([*written(run), run / "config.yaml"], {"run": run.name, "best": outcome.best, "steps": outcome.step})

    return stages.run(name, make, scope=scope, params=settings.model_dump(mode="json"), inputs=list(inputs))


def best_weights(run: Path) -> list[Path]:
    """The weights of a run's best checkpoint."""
    return sorted((run / runs.CHECKPOINTS / "best").glob("*.safetensors"))


def given_files(paths: Iterable[Path | str], made: str) -> list[Path]:
    """Files that a person names, of which each makes something of its own name; UserError for a missing one and two of one name.

    ``made`` is what is made of them, in the plural.
    """
    paths = [Path(path) for path in paths]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise UserError("no such file: " + ", ".join(missing))
    names = [path.stem for path in paths]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"two files are called {twice[0]}: their {made} would overwrite each other; give each a folder of its own")
    return paths
