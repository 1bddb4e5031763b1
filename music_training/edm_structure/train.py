"""Training, evaluation, prediction and cross-validation of EDM structure as the notebook and the commands call them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from .. import files, runs, stages
from ..errors import UserError
from ..progress import progress
from ..trainer import stage
from .config import EdmSettings

EVALUATION = "evaluation"


def run_system(settings: EdmSettings) -> str:
    """The system part of a run's name: its backbone."""
    from .model import resolve_backbone

    return resolve_backbone(settings.backbone).replace("-", "")


def train(settings: EdmSettings, *, callbacks: Iterable = (), **options):
    """Train into a run folder; ``options`` are those of :func:`music_training.trainer.command.train`."""
    from ..trainer import command
    from . import tracks
    from .system import system_of

    found = tracks.load(settings)
    return command.train(lambda given: system_of(given, found), settings, system=run_system(settings), callbacks=callbacks, **options)


def train_stage(settings: EdmSettings, *, scope: str, description: str = "default", callbacks: Iterable = ()) -> stages.StageResult:
    """Train once: the stage ``edm_structure``, whose result names the ``run``; a killed one goes on in its run folder."""
    from ..library import catalogue

    inputs = [catalogue.path_of(settings.dataset)] if settings.dataset else [Path(settings.annotations or ".").expanduser()]

    return stage.train_once(
        "edm_structure", settings, lambda run: train(settings, run=run, callbacks=callbacks), stage.best_weights,
        scope=scope, system=run_system(settings), inputs=inputs, description=description,
    )  # fmt: skip


def evaluate(run: Path, settings: EdmSettings | None = None, tracks: Sequence | None = None, checkpoint: Path | None = None) -> dict:
    """Scores of a run on its held-out tracks, or on given ``tracks``: writes ``evaluation/{tracks.csv,summary.json}`` in the run.

    Returns ``{"rows": [...], "summary": {metric: {mean, low, high, tracks}}}``.
    """
    from . import evaluation, inference, metrics
    from . import tracks as sources
    from .data import split

    predictor = inference.load(checkpoint or run)
    chosen = tracks if tracks is not None else split(sources.load(settings or predictor.settings), settings or predictor.settings)[1]
    rows = []
    for track in progress(chosen, "evaluating", unit="tracks"):
        structure = inference.predict(predictor, track.audio)
        rows.append({"track": track.id, "artist": track.artist, **evaluation.score(track, structure)})
    summary = metrics.summarise(rows)
    write_evaluation(rows, summary, run / EVALUATION)
    return {"rows": rows, "summary": summary}


def evaluate_stage(run: Path, *, scope: str) -> dict:
    """:func:`evaluate` on the run's held-out tracks, done once: the stage ``edm_evaluation``."""

    def make(draft: stages.Draft) -> stages.Made:
        result = evaluate(run)
        return stages.Made([run / EVALUATION / "tracks.csv", run / EVALUATION / "summary.json"], result)

    return stages.run("edm_evaluation", make, scope=scope, params={"run": run.name}, inputs=stage.best_weights(run)).result


def write_evaluation(rows: list[dict], summary: dict, folder: Path) -> None:
    """Write a CSV with a row per track and a JSON summary."""
    text = io.StringIO()
    names = list({name: None for row in rows for name in row})
    writer = csv.DictWriter(text, names)
    writer.writeheader()
    writer.writerows({name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()} for row in rows)
    files.write_text(folder / "tracks.csv", text.getvalue())
    files.write_json(folder / "summary.json", summary)


def predict(
    run: Path, paths: Iterable[Path | str], out_dir: Path, *, plot: bool = False, sonify: bool = False, skip_existing: bool = False,
    snap: bool = True, device: str = "cpu",
) -> list[Path]:  # fmt: skip
    """Predict files into ``out_dir`` (JSON, YAML, JAMS; by choice a plot and audio with clicks); returns the JSON files."""
    from dataclasses import replace

    from ..library import audio
    from . import inference, writers

    paths = stage.given_files(paths, "predictions")
    predictor = inference.load(run, device)
    predictor.decoding = replace(predictor.decoding, snap=snap)
    written = []
    for path in progress(paths, "predicting", unit="files"):
        target = out_dir / f"{path.stem}.json"
        written.append(target)
        if skip_existing and target.is_file():
            continue
        structure = inference.predict(predictor, path)
        if plot:
            samples, rate = audio.read(path, 8000)
            with files.atomic(out_dir / f"{path.stem}.png") as temporary:
                writers.plot(structure, samples, rate).savefig(temporary, format="png", dpi=110)
        if sonify:
            writers.sonify(structure, path, out_dir / f"{path.stem}.sonified.wav")
        writers.write(structure, path, out_dir)
    return written


def cross_validate(settings: EdmSettings, name: str | None = None) -> dict:
    """Train and evaluate ``folds`` models, each on the artists that it did not see; a summary over all tracks.

    The runs are ``<name>_fold0`` ...; those that are finished are not trained again.
    """
    from . import metrics

    name = name or f"{run_system(settings)}_{settings.folds}fold"
    rows = []
    for fold in range(settings.folds):
        chosen = settings.model_copy(update={"fold": fold})
        run = runs.folder() / f"{name}_fold{fold}"
        if not run.is_dir():
            runs.create(run_system(settings), f"fold{fold}", run.name)
        train(chosen, run=run)
        rows += [{"fold": fold, **row} for row in evaluate(run)["rows"]]
    scores = [{key: value for key, value in row.items() if key != "fold"} for row in rows]
    summary = metrics.summarise(scores)
    write_evaluation(rows, summary, runs.folder() / f"{name}_fold0" / "cross_validation")
    return {"rows": rows, "summary": summary}


def demonstration_track(settings: EdmSettings, audio_dir: str = ""):
    """A track to show a prediction on: the first file of a person's own folder, else a held-out track."""
    from . import tracks
    from .data import split

    if not audio_dir:
        return split(tracks.load(settings), settings)[1][0]
    found = sorted(tracks.audio_files(Path(audio_dir).expanduser()))
    if not found:
        raise UserError(f"{audio_dir}: no audio file in this folder")
    return unknown_track(found[0])


def unknown_track(path: Path):
    """A track of which only the audio is known."""
    import numpy

    from .data import AnnotatedTrack

    none = numpy.zeros(0)
    return AnnotatedTrack(path.stem, path, "", 0.0, none, [], none, none)
