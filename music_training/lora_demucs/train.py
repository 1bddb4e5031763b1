"""Training, evaluation and separation as the notebook and the commands call them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .. import config, files, runs, stages
from ..errors import UserError
from ..progress import progress
from ..trainer import stage
from .config import LoraDemucsSettings

EVALUATION = "evaluation"
ADAPTER = "adapter"


def run_system(settings: LoraDemucsSettings) -> str:
    """The system part of a run's name."""
    return "demucs" if settings.method == "full" else "lorademucs"


def train(settings: LoraDemucsSettings, *, callbacks: Iterable = (), **options):
    """Train into a run folder; ``options`` are those of :func:`music_training.trainer.command.train`.

    The best checkpoint is then written as ``adapter/`` (method lora) or ``model.safetensors`` (full).
    """
    from ..trainer import command
    from . import memory
    from .reallocation import RankAdaptation
    from .system import system_of

    made = []

    def make(given: LoraDemucsSettings):
        made.append(system_of(given))
        return made[0]

    own = list(callbacks)
    wanted = settings.htdemucs
    if wanted.enable_profiling or wanted.profile_memory:
        own.append(memory.MemoryProfile())
    if wanted.lora_rank_adaptation and settings.method == "lora":
        own.append(RankAdaptation(wanted))
    outcome = command.train(make, settings, system=run_system(settings), callbacks=own, **options)
    from ..trainer import processes

    processes.first_alone(lambda: str(write_best(made[0], settings, outcome.run)))
    return outcome


def write_best(system, settings: LoraDemucsSettings, run: Path) -> Path:
    """Write what the best checkpoint of a run holds in the form that separation and export take."""
    from ..trainer import checkpoints
    from . import base

    checkpoints.load_weights(system.model, checkpoints.find(run), averaged=True)
    about = {"synthetic": _is_synthetic(settings), "run": run.name}
    if system.adapters is None:
        return base.write(system.model.separator, run / base.MODEL, about={name: str(value) for name, value in about.items()})
    from dataclasses import replace

    return system.adapters.save(run / ADAPTER, info=replace(system.adapters.known["default"], made_from=about))


def _is_synthetic(settings: LoraDemucsSettings) -> bool:
    from ..library import catalogue

    return bool(settings.dataset) and catalogue.is_synthetic(settings.dataset)


def train_stage(name: str, settings: LoraDemucsSettings, *, scope: str, description: str = "default", callbacks: Iterable = ()):
    """Train once: the stage ``name``, whose result names the ``run``; a killed one goes on in its run folder."""
    from ..library import catalogue

    inputs = [catalogue.path_of(settings.dataset)] if settings.dataset else [Path(settings.dset.wav or ".").expanduser()]
    local = runs.folder() / settings.base / "model.safetensors"
    if local.is_file():
        inputs.append(local)

    written = "model.safetensors" if settings.method == "full" else ADAPTER
    return stage.train_once(
        name, settings, lambda run: train(settings, run=run, callbacks=callbacks), lambda run: [run / written],
        scope=scope, system=run_system(settings), inputs=inputs, description=description,
    )  # fmt: skip


def base_settings(settings: LoraDemucsSettings, given: dict[str, Any]) -> LoraDemucsSettings:
    """Settings of the small base model that the mini profile trains itself, on the same artists of the same data set."""
    content = {"dataset": settings.dataset, "base": "scratch", "method": "full"}
    content |= {"train_split": settings.train_split, "test_split": settings.test_split, **given}
    seed = {"random_seed": settings.training.random_seed}  # which artists are held out follows from it
    content["training"] = {**content.get("training", {}), **seed}
    return config.load(LoraDemucsSettings, content, name="small_base")


def open_adapted(adapter: str | Path, base_name: str | None = None, device: str = "cpu"):
    """The adapted model of an adapter's folder or a run: ``(adapters, active model)``; a run of method full has none.

    ``base_name`` replaces the base model that the adapter names.
    """
    from . import adapters, base

    folder = find_adapter(adapter)
    info, _ = adapters.read(folder)
    model = base.load(base_name or info.base)
    made = adapters.Adapters(model, base_name or info.base)
    made.load(folder)
    made.model.to(device).eval()
    return made


def find_adapter(name: str | Path) -> Path:
    """An adapter's folder by its path, or that of a run by the run's path or name."""
    path = Path(name).expanduser()
    for candidate in (path, path / ADAPTER, runs.folder() / str(name) / ADAPTER):
        if (candidate / "adapter.json").is_file():
            return candidate
    raise UserError(f"adapter {str(name)!r}: neither an adapter's folder nor a run that has one")


def evaluate(
    run: Path, tracks: Sequence | None = None, *, overlap: float = 0.25, shifts: int = 1, crossover: float | None = None,
    base_name: str | None = None,
) -> dict:  # fmt: skip
    """Scores of a run on its held-out tracks or given ones, beside the base model, silence and a split of its drums.

    Writes ``evaluation/{tracks.csv,summary.json}`` in the run. ``summary`` is ``{system: {metric: {source: mean}}}`` for
    ``adapted``, ``unadapted`` (the base model with new stems started from their parents, untrained), ``silence`` (0 dB)
    and ``split``: kick and hi-hat as the base model's drums below and above a crossover, the best one on training tracks.
    """
    from dataclasses import replace

    from . import metrics, separation
    from . import tracks as sources_of_tracks

    made = open_adapted(run, base_name)
    model, info = made.model, made.known["default"]
    settings = config.load(LoraDemucsSettings, run / "config.yaml")
    training = []
    if tracks is None:
        training, _ = sources_of_tracks.load(settings, model.samplerate, model.audio_channels)
        tracks = sources_of_tracks.judged(settings, model.samplerate, model.audio_channels)
    made.add("unadapted", replace(info, ranks=info.ranks))
    options = {"overlap": overlap, "shifts": shifts}
    splits = "drums" in made.base_sources and {"kick", "hihat"} <= set(info.sources)
    if splits and crossover is None:
        crossover = best_crossover(made, training[:2] or tracks[:1])
    rows = []
    for track in progress(tracks, "evaluating", unit="tracks"):
        true = track.read(sources=info.sources)
        mixture = true.sum(0)
        for name in ("adapted", "unadapted"):
            made.activate("default" if name == "adapted" else name)
            found = separation.separate(model.eval(), mixture, **options)
            rows += [{"system": name, "track": track.id, **row} for row in metrics.score(true, found, info.sources, model.samplerate)]
        if splits:
            drums = sum(found[place] for place, source in enumerate(info.sources) if source == "kick")  # starts as the base's drums
            low, high = metrics.split_bands(drums, model.samplerate, crossover)
            pair = [info.sources.index("kick"), info.sources.index("hihat")]
            scored = metrics.score(true[pair], [low, high], ("kick", "hihat"), model.samplerate)
            rows += [{"system": "split", "track": track.id, **row} for row in scored]
    made.activate("default")
    summary = {name: {} for name in ("adapted", "unadapted", "split") if any(row["system"] == name for row in rows)}
    for name in summary:
        own = [row for row in rows if row["system"] == name]
        summary[name] = {metric: metrics.means(own, metric) for metric in metrics.METRICS}
    silent = [f"{row['track']}/{row['source']}" for row in rows if row["silent"] and row["system"] == "adapted"]
    result = {"summary": summary, "crossover_hz": crossover, "silent": silent, "rows": rows}
    write_evaluation(result, run / EVALUATION)
    return result


def best_crossover(made, tracks: Sequence) -> float:
    """The crossover (Hz) of :func:`evaluate`'s split with the best nSDR of kick and hi-hat together on training tracks."""
    import numpy

    from . import metrics, separation

    made.activate(None)
    names, pairs = list(made.model.sources), []
    for track in tracks:
        frames = min(track.frames, 30 * made.model.samplerate)
        mixture = track.read(0, frames).sum(0)
        pairs.append((separation.separate(made.model, mixture)[names.index("drums")], track.read(0, frames, ("kick", "hihat"))))

    def gain(crossover: float) -> float:
        values = []
        for drums, (kick, hihat) in pairs:
            low, high = metrics.split_bands(drums, made.model.samplerate, crossover)
            values += [metrics.nsdr(kick, low), metrics.nsdr(hihat, high)]
        return float(numpy.nanmean(values))

    limit = 0.45 * made.model.samplerate
    return max([hertz for hertz in (1000, 1500, 2000, 3000, 4000, 5000, 6000, 7000, 8000, 10000, 12000) if hertz < limit], key=gain)


def evaluate_stage(run: Path, *, scope: str, **options) -> dict:
    """:func:`evaluate` on the run's held-out tracks, done once: the stage ``lora_demucs_evaluation``."""

    def make(draft: stages.Draft) -> stages.Made:
        result = evaluate(run, **options)
        result["rows"] = [{key: None if value != value else value for key, value in row.items()} for row in result["rows"]]
        return stages.Made([run / EVALUATION / "tracks.csv", run / EVALUATION / "summary.json"], result)

    params = {"run": run.name, **options}
    return stages.run("lora_demucs_evaluation", make, scope=scope, params=params, inputs=[run / ADAPTER]).result


def write_evaluation(result: dict, folder: Path) -> None:
    """Write a CSV with a row per system, track and source, and a JSON summary."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(result["rows"][0]))
    writer.writeheader()
    for row in result["rows"]:
        writer.writerow({name: _written(value) for name, value in row.items()})
    files.write_text(folder / "tracks.csv", text.getvalue())
    files.write_json(folder / "summary.json", {name: value for name, value in result.items() if name != "rows"})


def _written(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else round(value, 3)
    return value


def separate(
    adapter: str | Path, paths: Iterable[Path | str], out_dir: Path, *, two_stems: str | None = None, overlap: float = 0.25,
    shifts: int = 1, skip_existing: bool = False, device: str = "cpu", base_name: str | None = None,
) -> list[Path]:  # fmt: skip
    """Separate files into ``out_dir/<file>/<stem>.wav``; returns the files of all stems."""
    from . import separation

    paths = stage.given_files(paths, "stems")
    model = open_adapted(adapter, base_name, device).merged_model()
    written = []
    for path in progress(paths, "separating", unit="files"):
        folder = out_dir / path.stem
        if skip_existing and folder.is_dir():
            written += sorted(folder.glob("*.wav"))
            continue
        written += separation.separate_file(model, path, folder, two_stems=two_stems, overlap=overlap, shifts=shifts)
    return written


def rank_table(settings: LoraDemucsSettings):
    """The layers of the model with their ranks, parameters and shares, and a last row with the sums."""
    import pandas

    from . import ranks
    from .system import system_of

    system = system_of(settings)
    rows = ranks.table(system.layers, system.allocated)
    whole = sum(value.numel() for value in system.adapters.merged_model().parameters())
    spent = ranks.cost(system.layers, system.allocated)
    total = {"layer": "all", "kind": "", "rank": "", "parameters": spent, "share %": round(100 * spent / whole, 2)}
    return pandas.DataFrame([*rows, total])


def given_tracks(run: Path, folder: Path, base_name: str | None = None) -> list:
    """Tracks of a folder ``<track>/<stem>.wav`` for the sources and the rate of a run."""
    from . import tracks

    made = open_adapted(run, base_name)
    return tracks.of_folder(folder, made.model.sources, made.model.samplerate, made.model.audio_channels)


def score_table(result: dict):
    """nSDR, chunked SDR and SI-SDR (dB) of each source: adapted, unadapted, the split, and silence."""
    import pandas

    rows = {}
    for metric in ("nsdr", "sdr_chunks", "si_sdr"):
        for name, values in result["summary"].items():
            rows[(metric, name)] = values[metric]
    rows[("nsdr", "silence")] = dict.fromkeys(result["summary"]["adapted"]["nsdr"], 0.0)
    return pandas.DataFrame(rows).T.sort_index(level=0, sort_remaining=False).round(2)
