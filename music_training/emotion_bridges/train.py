"""Training and evaluation of both bridges as the notebook and the commands call them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .. import config, files, runs, stages
from ..errors import UserError
from ..trainer import stage
from .config import BridgeSettings, MidiSettings, SpectocloudSettings

KINDS = {"spectocloud": SpectocloudSettings, "midi_generator": MidiSettings}
EVALUATION = "evaluation.json"


def system_of(settings: BridgeSettings, scope: str = "emotion_bridges"):
    """The trainer's system of the settings' model with its data read."""
    from . import studio

    train, held = studio.entries(settings, scope)
    if isinstance(settings, SpectocloudSettings):
        from .spectocloud.data import Clips
        from .spectocloud.system import CloudSystem

        return CloudSystem(settings, Clips(train, settings), Clips(held, settings))
    from .midi_generator import data
    from .midi_generator.system import MidiSystem

    return MidiSystem(settings, data.load(train, settings), data.load(held, settings))


def train(settings: BridgeSettings, *, scope: str = "emotion_bridges", callbacks: Iterable = (), **options):
    """Train into a run folder; ``options`` are those of :func:`music_training.trainer.command.train`."""
    from ..trainer import command

    make = lambda given: system_of(given, scope)  # noqa: E731
    return command.train(make, settings, system=settings.model.replace("_", ""), callbacks=callbacks, **options)


def train_stage(settings: BridgeSettings, *, scope: str, description: str = "default", callbacks: Iterable = ()) -> stages.StageResult:
    """Train once: the stage of the model's name, whose result names the ``run``; a killed one goes on in its run folder."""
    from ..library import catalogue

    data = settings.data
    inputs = [files.absolute(path) for path in (data.train_manifest, data.val_manifest) if path]
    inputs += [catalogue.path_of(data.dataset)] if data.dataset else []

    return stage.train_once(
        settings.model, settings, lambda run: train(settings, scope=scope, run=run, callbacks=callbacks), stage.best_weights,
        scope=scope, system=settings.model.replace("_", ""), inputs=inputs, description=description,
    )  # fmt: skip


def settings_of(run_or_checkpoint: Path | str) -> tuple[BridgeSettings, Path]:
    """The settings of a run (its folder, its name, a checkpoint in it) and the checkpoint meant."""
    from ..trainer import checkpoints

    given = Path(run_or_checkpoint).expanduser()
    checkpoint = checkpoints.find(given if given.exists() else runs.find(run_or_checkpoint))
    for folder in (checkpoint.parent.parent, checkpoint):
        if (folder / "config.yaml").is_file():
            content = config.read_yaml(folder / "config.yaml")
            if content.get("model") not in KINDS:
                raise UserError(f"{folder / 'config.yaml'}: not a run of the emotion bridges (model: {content.get('model')})")
            return config.load(KINDS[content["model"]], folder / "config.yaml"), checkpoint
    raise UserError(f"{checkpoint}: there is no config.yaml beside it; give the run's folder")


def load(run_or_checkpoint: Path | str, kind: str = ""):
    """The model of a run in evaluation mode and its settings; ``kind`` says which model it has to be."""
    from ..trainer import checkpoints

    settings, checkpoint = settings_of(run_or_checkpoint)
    if kind and settings.model != kind:
        raise UserError(f"{run_or_checkpoint}: a run of {settings.model}, not of {kind}")
    if isinstance(settings, SpectocloudSettings):
        from .spectocloud.model import Spectocloud as Model
    else:
        from .midi_generator.model import MidiTransformer as Model
    model = Model(settings)
    checkpoints.load_weights(model, checkpoint, averaged=True)
    return model.eval(), settings


def evaluate(
    run: Path, *, scope: str = "emotion_bridges", repeats: int = 4, guidance: float = 1.5, settings: BridgeSettings | None = None
) -> dict:
    """Scores of a run on its held-out artists beside their baselines; written to ``evaluation.json`` in the run.

    Spectocloud: Chamfer distance, F-score and colour error of model, floor and mean cloud. MIDI generator: perplexity of
    the model, a unigram and a bigram model, and whether its music follows the emotion on a grid, ``repeats`` times.
    """
    import torch

    model, saved = load(run)
    system = system_of(saved, scope)
    if isinstance(saved, SpectocloudSettings):
        from .spectocloud import evaluation

        found = evaluation.evaluate(model, system.held_clips, evaluation.mean_cloud(system.train.all()))
        found = {"clouds": found, "clips": len(system.held_clips)}
    else:
        from .midi_generator import baselines, following, sampling
        from .midi_generator.system import summary

        scores = summary([system.evaluate(model, torch.device("cpu"), system.batches(64))])
        perplexity = {"model": scores["val_perplexity"], **baselines.perplexities(system.train.tokens, system.held.tokens)}
        estimator = following.fit(*following.reference(saved))
        other = following.reference(saved, artists=12, seed=following.ESTIMATOR_SEED + 1)
        asked = following.grid(repeats)
        drawn = sampling.Sampling(bars=saved.bars, guidance=guidance, max_tokens=saved.context)
        made = sampling.scores(model, asked.tolist(), drawn, multi=saved.drums or not saved.merge)
        found = {
            "perplexity": perplexity, "accuracy": float(scores["val_accuracy"]), "excerpts": len(system.held),
            "follows": following.correlations(asked, estimator(made)),
            "estimator on composed scores": following.correlations(other[1], estimator(other[0])),
            "measures": following.measure_table(asked, made), "generated": len(made), "guidance": guidance,
        }  # fmt: skip
    files.write_json(Path(run) / EVALUATION, found)
    return found


def evaluate_stage(run: Path, *, scope: str, repeats: int = 4) -> dict:
    """:func:`evaluate`, done once: the stage ``<model>_evaluation``."""

    def make(draft: stages.Draft) -> stages.Made:
        return stages.Made([run / EVALUATION], evaluate(run, scope=scope, repeats=repeats))

    name = f"{settings_of(run)[0].model}_evaluation"
    return stages.run(name, make, scope=scope, params={"run": run.name, "repeats": repeats}, inputs=stage.best_weights(run)).result
