"""Trains the language model on longer and longer clips: ``python training_checks/curriculum_train.py --auto [--dry-run]``

A curriculum is a folder of stages (``curriculum_configs/*.yaml``), taken in the order of their length. Every stage is a
run of its own that begins with weights, their average and the optimizer of the one before; its schedule warms up anew.
Its clips come from the same tracks, on the same sides of the split. What is finished is not trained again, and what was
killed goes on where it was.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from music_training import config, files, profiles, runs, stages
from music_training.config import Settings
from music_training.errors import UserError, run_command
from music_training.library import lengths
from music_training.musicgen import training
from music_training.musicgen.training import LanguageModelSettings

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

CONFIGS = Path(__file__).resolve().parent / "curriculum_configs"
NOTEBOOK = "05b_curriculum"


class StageConfig(Settings):
    """One stage: the length of its clips (s), its batch, epochs, re-warming, and a rate other than the profile's."""

    purpose: str = ""
    segment_seconds: float = Field(gt=0)
    batch_size: int = Field(ge=1)
    epochs: int = Field(ge=1)
    warmup_steps: int | None = Field(None, ge=0)  # None: as the profile says
    learning_rate: float | None = Field(None, gt=0)  # None: as the profile says


class CurriculumSettings(Settings):
    """Which curriculum (a folder of ``curriculum_configs``, or any other; empty: the standard one), and how.

    ``hold_tokens``: every stage's step sees the audio that the first one's does; what a stage's own batch size cannot
    hold is computed in parts. ``updates_per_epoch``: None as the profile says. ``hydra``: overrides for every stage.
    """

    curriculum: str = ""
    hold_tokens: bool = False
    updates_per_epoch: int | None = Field(None, ge=1)
    hydra: list[str] = []


def resolve(
    profile: str, overrides: list[str] | None = None, model: list[str] | None = None, **given: Any
) -> tuple[CurriculumSettings, LanguageModelSettings]:
    """The settings of a curriculum and of the language model that a profile trains; ``model`` overrides the latter.

    Small models (``lm_mini``, ``lm_tiny``) take the small curriculum where none is named.
    """
    base = profiles.settings(LanguageModelSettings, "05_train_musicgen", profile, model)
    if not given.get("curriculum") and base.model.rpartition("_")[2] in ("mini", "tiny"):
        given["curriculum"] = "mini"
    return profiles.settings(CurriculumSettings, NOTEBOOK, profile, overrides, **given), base


@dataclass(frozen=True)
class Stage:
    """A stage with its place: ``batch`` examples a step, computed in ``parts``."""

    name: str
    number: int
    config: StageConfig
    batch: int
    parts: int

    @property
    def seconds_per_step(self) -> float:
        """Audio that a step sees (s)."""
        return self.batch * self.config.segment_seconds


def read(settings: CurriculumSettings) -> list[Stage]:
    """The stages of a curriculum, the shortest clips first; UserError for a folder without any."""
    folder = CONFIGS / settings.curriculum
    if settings.curriculum and not folder.is_dir():
        folder = Path(settings.curriculum).expanduser()
    paths = sorted(folder.glob("*.yaml"))
    if not paths:
        known = sorted(path.name for path in CONFIGS.iterdir() if path.is_dir())
        raise UserError(f"curriculum {settings.curriculum!r}: no stages (*.yaml) in {folder}{config.suggest(settings.curriculum, known)}")
    found = sorted(((path.stem, config.load(StageConfig, path)) for path in paths), key=lambda item: item[1].segment_seconds)
    first = found[0][1].batch_size * found[0][1].segment_seconds
    made = []
    for number, (name, stage) in enumerate(found, start=1):
        batch, parts = stage.batch_size, 1
        if settings.hold_tokens:
            wanted = first / stage.segment_seconds
            parts = max(1, math.ceil(wanted / stage.batch_size))
            batch = parts * max(1, round(wanted / parts))
        made.append(Stage(name, number, stage, batch, parts))
    return made


def scope_of(scope: str, settings: CurriculumSettings) -> str:
    """Where the stamps of a curriculum's trainings lie: apart from those of the notebook 05."""
    return f"{scope}/curriculum-{Path(settings.curriculum).name or 'standard'}"


def settings_of(stage: Stage, base: LanguageModelSettings, settings: CurriculumSettings, codec: str, begin: str) -> LanguageModelSettings:
    """What a stage trains with; ``begin``: the run, state or weights it starts from, empty for the first stage."""
    asked = stage.config
    hydra = [*base.hydra, *settings.hydra]
    if stage.parts > 1:
        hydra.append(f"optim.accumulate={stage.parts}")
    if begin:
        hydra.append(f"continue_from={begin}")
    changes = {
        "segment_seconds": asked.segment_seconds,
        "batch_size": stage.batch,
        "epochs": asked.epochs,
        "updates_per_epoch": settings.updates_per_epoch or base.updates_per_epoch,
        "warmup_steps": base.warmup_steps if asked.warmup_steps is None else asked.warmup_steps,
        "learning_rate": asked.learning_rate or base.learning_rate,
        "description": stage.name,
        "run_name": None,
        "codec": codec,
        "hydra": hydra,
    }
    return base.model_copy(update=changes)


def train_stage(
    stage: Stage, base: LanguageModelSettings, settings: CurriculumSettings, dataset: str, scope: str, begin: str = "", guard: str = ""
) -> stages.StageResult:
    """Train one stage on clips that are long enough; the result is that of ``training.train_language_model``.

    Raises UserError where the material is too short.
    """
    codec = base.codec or stages.latest("train_codec", scope, "04_train_codec")["codec"]
    material = lengths.provide(dataset, scope, stage.config.segment_seconds)
    print(f"stage {stage.number}, {stage.name}: {stage.batch} x {stage.config.segment_seconds:g} s a step from {material}", flush=True)
    asked = settings_of(stage, base, settings, codec, begin)
    return training.train_language_model(
        asked, material, f"{scope_of(scope, settings)}/{stage.name}", **({"guard": guard} if guard else {})
    )


def finished(stage: Stage, settings: CurriculumSettings, scope: str) -> dict[str, Any] | None:
    """The result of a stage that was trained to its end; None where it was not."""
    try:
        return stages.latest("train_musicgen", f"{scope_of(scope, settings)}/{stage.name}", NOTEBOOK)
    except UserError:
        return None


def train(base: LanguageModelSettings, settings: CurriculumSettings, dataset: str, scope: str, guard: str = "") -> list[dict[str, Any]]:
    """Train all stages in order, each from the run before it; the results by stage. Finished ones are not trained again.

    That the material of every stage is long enough is seen to before the first step. Raises UserError otherwise.
    """
    plan = read(settings)
    for stage in plan:
        if not lengths.serves(dataset, stage.config.segment_seconds):
            lengths.sources(dataset, stage.config.segment_seconds)
    results: list[dict[str, Any]] = []
    for stage in plan:
        done = train_stage(stage, base, settings, dataset, scope, results[-1]["run"] if results else "", guard)
        results.append({"stage": stage.name, **done.result})
    return results


def table(settings: CurriculumSettings, dataset: str = "", scope: str = "") -> pandas.DataFrame:
    """The stages with what a step sees, what they train on and how they stand."""
    import pandas

    rows = []
    for stage in read(settings):
        done = finished(stage, settings, scope) if scope else None
        row = {
            "stage": stage.name,
            "clips": f"{stage.config.segment_seconds:g} s",
            "batch": f"{stage.batch}" + (f" in {stage.parts} parts" if stage.parts > 1 else ""),
            "s/step": stage.seconds_per_step,
            "epochs": stage.config.epochs,
            "purpose": stage.config.purpose,
        }
        if dataset:
            row["material"] = _material(dataset, stage.config.segment_seconds)
        if scope:
            row["run"] = done["run"] if done else "to do"
        rows.append(row)
    return pandas.DataFrame(rows).set_index("stage")


def _material(dataset: str, seconds: float) -> str:
    try:
        if lengths.serves(dataset, seconds):
            return f"{dataset}, as it is"
        return f"{len(lengths.sources(dataset, seconds))} tracks, to be cut"
    except UserError as error:
        return f"none: {error}"


# Looking at it


def losses(results: list[dict[str, Any]]) -> pandas.DataFrame:
    """Logged cross-entropies of the stages (``ce``) over the hours of audio seen since the first step of the first.

    ``begin`` is where on that axis the stage of a row begins.
    """
    import pandas
    from omegaconf import OmegaConf

    rows, before = [], 0.0
    for result in results:
        cfg = OmegaConf.load(runs.folder() / result["run"] / "config.yaml")
        per_step = cfg.dataset.batch_size * cfg.dataset.segment_duration / 3600
        logged = [row for row in runs.read_metrics(runs.folder() / result["run"]) if row.get("ce") is not None]
        rows += [
            {
                "stage": result["stage"],
                "part": row["stage"],
                "step": row["step"],
                "hours": before + row["step"] * per_step,
                "ce": row["ce"],
                "begin": before,
            }
            for row in logged
        ]
        before += cfg.optim.epochs * cfg.optim.updates_per_epoch * per_step
    return pandas.DataFrame(rows)


def draw(results: list[dict[str, Any]]) -> Figure:
    """Cross-entropy over the tokens seen, with the boundaries of the stages."""
    from matplotlib import pyplot

    content = losses(results)
    rate = tokens_per_second(results[0]["codec"])
    figure, axes = pyplot.subplots(figsize=(9, 3.5), layout="constrained")
    for number, result in enumerate(results):
        rows = content[content.stage == result["stage"]]
        for part, style in (("train", "-"), ("valid", "o")):
            chosen = rows[rows.part == part]
            axes.plot(chosen.hours * 3600 * rate / 1e6, chosen.ce, style, color=f"C{number}", ms=4, label=f"{result['stage']} {part}")
        if number:
            axes.axvline(rows.begin.iloc[0] * 3600 * rate / 1e6, color="#888888", ls="--", lw=1)
    axes.set(xlabel="tokens seen (millions)", ylabel="cross-entropy (nats)", title="Loss over tokens; dashed: a stage begins")
    axes.legend(fontsize=8, ncol=len(results))
    pyplot.close(figure)  # the caller shows it, once
    return figure


def tokens_per_second(codec: str) -> float:
    """Codes that a codec makes of a second of audio, over all its codebooks."""
    from music_training.musicgen.models import load_codec

    model = load_codec(codec)
    return model.frame_rate * model.num_codebooks


def quality(results: list[dict[str, Any]], settings: CurriculumSettings, dataset: str, scope: str, clips: int = 16) -> pandas.DataFrame:
    """Cross-entropy (nats per token) on held-out music at each length, for the model of each stage: a row a stage.

    All are measured on the same clips, those of the longest stage, cut to each length.
    """
    import pandas

    from music_training.library import manifests
    from music_training.musicgen import evaluation
    from music_training.musicgen.models import load_codec, load_language_model

    plan = read(settings)
    longest = lengths.provide(dataset, scope, plan[-1].config.segment_seconds)
    valid = manifests.egs_of(longest) / "valid" / "data.jsonl"

    def make(_: stages.Draft) -> stages.Made:
        codec = load_codec(results[0]["codec"])
        tokens, descriptions = evaluation.encode_manifest(codec, valid, clips)
        rows = {}
        for result in results:
            model = load_language_model(result["model"])
            rows[result["stage"]] = {
                f"{stage.config.segment_seconds:g} s": evaluation.model_cross_entropy(
                    model, *evaluation.windows(tokens, descriptions, int(stage.config.segment_seconds * codec.frame_rate))
                )
                for stage in plan
            }
        return stages.Made([], rows)

    params = {"runs": [result["run"] for result in results], "clips": clips}
    inputs = [valid, *(files.absolute(result["model"]) / "model.safetensors" for result in results)]
    done = stages.run("curriculum_quality", make, scope=scope_of(scope, settings), params=params, inputs=inputs)
    return pandas.DataFrame(done.result).T


# The command


def main() -> int | None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--auto", action="store_true", help="all stages in order, from the first that is not finished")
    what.add_argument("--stage", metavar="NAME", help="this stage only")
    what.add_argument("--list", action="store_true", help="the stages and how they stand")
    parser.add_argument(
        "--continue-from", default="", metavar="RUN", help="a run, a training state or a weights folder (default: the stage before)"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    parser.add_argument("--profile", default="mini", help="whose data, codec and model are meant (default: %(default)s)")
    parser.add_argument("--audio-dir", default="", help="the folder that the pipeline was run on, if it was")
    parser.add_argument("--curriculum", default="", metavar="NAME", help="mini, or a folder of stages (default: 10, 20 and 30 s)")
    parser.add_argument("--hold-tokens", action="store_true", help="the same amount of audio a step in every stage")
    parser.add_argument("-p", dest="overrides", action="append", default=[], metavar="key=value", help="a setting of the language model")
    args = parser.parse_args()
    settings = CurriculumSettings(curriculum=args.curriculum, hold_tokens=args.hold_tokens)
    _, base = resolve(args.profile, model=args.overrides)
    dataset, scope = profiles.dataset(args.profile, args.audio_dir), profiles.scope(args.profile, args.audio_dir)
    plan = read(settings)
    if args.list:
        print(table(settings, scope=scope).to_string())
        return None
    if args.stage:
        return _one(args, plan, base, settings, dataset, scope)
    if args.continue_from:
        raise UserError("--continue-from goes with --stage; --auto goes on from the stages before")
    if args.dry_run:
        _tell(plan, settings, dataset, scope)
        return None
    for result in train(base, settings, dataset, scope):
        print(f"{result['stage']}: {result['run']}")


def _one(
    args: argparse.Namespace, plan: list[Stage], base: LanguageModelSettings, settings: CurriculumSettings, dataset: str, scope: str
) -> None:
    stage = next((stage for stage in plan if stage.name == args.stage), None)
    if stage is None:
        raise UserError(f"--stage {args.stage}: unknown{config.suggest(args.stage, [stage.name for stage in plan])}")
    begin = args.continue_from
    if stage.number > 1 and not begin:
        before = finished(plan[stage.number - 2], settings, scope)
        if before is None:
            earlier = plan[stage.number - 2].name
            raise UserError(
                f"--stage {stage.name}: the stage before it, {earlier}, is not finished; train it first, or give --continue-from RUN"
            )
        begin = before["run"]
    if args.dry_run:
        _tell([stage], settings, dataset, scope, begin)
        return
    print(f"{stage.name}: {train_stage(stage, base, settings, dataset, scope, begin).result['run']}")


def _tell(plan: list[Stage], settings: CurriculumSettings, dataset: str, scope: str, begin: str = "") -> None:
    """What would be done, stage by stage."""
    for stage in plan:
        done = finished(stage, settings, scope)
        start = begin or (f"from {plan[stage.number - 2].name}" if stage.number > 1 and len(plan) > 1 else "from nothing")
        state = f"finished ({done['run']})" if done else f"to train, {start}; clips: {_material(dataset, stage.config.segment_seconds)}"
        print(f"{stage.name}: {stage.batch} x {stage.config.segment_seconds:g} s, {stage.config.epochs} epochs: {state}")


if __name__ == "__main__":
    run_command(main)
