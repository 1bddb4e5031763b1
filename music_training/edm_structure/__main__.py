"""The command of EDM structure: ``edm train data/annotations --audio-dir ~/music``, ``edm evaluate``, ``edm predict``.

Also ``python -m music_training.edm_structure ...``; several processes:
``torchrun --nproc_per_node N -m music_training.edm_structure train ...``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ..errors import UserError, run_command
from ..trainer import command
from .config import TASKS, EdmSettings

TRAINING = ("train", "cross-validate", "find-batch-size")
FLAGS = {  # option: (dotted setting, type, help)
    "--epochs": ("training.epochs", int, "epochs of training (default 50)"),
    "--batch-size": ("training.batch_size", int, "crops to a batch (default 4)"),
    "--lr": ("training.optimizer.lr", float, "learning rate (default 1e-4)"),
    "--workers": ("training.performance.num_workers", int, "loading processes (default 4)"),
    "--eval-every": ("training.validation.epochs", int, "validate every so many epochs (default 1)"),
    "--train-split": ("train_split", float, "share of the artists that is trained on (default 0.8)"),
    "--duration": ("duration", float, "length of a crop in seconds (default 30)"),
    "--backbone": ("backbone", str, "mert-95m, mert-330m, cnn or auto (default: mert-95m with a GPU, else cnn)"),
    "--backbone-model": ("backbone_model", str, "hub name or local folder of the backbone"),
    "--audio-dir": ("audio_dir", str, "folder searched for the audio, in place of the annotations' own paths"),
    "--dataset": ("dataset", str, "a library under outputs/library, in place of a folder of annotations"),
    **{f"--{task}-weight": (f"{task}_weight", float, f"weight of the {task} loss") for task in TASKS},
}


def main(arguments: list[str] | None = None) -> int | None:
    """Parse a command line and do what it says; returns the exit code."""
    parser = argparse.ArgumentParser(prog="edm", description="Structure of electronic dance music: boundaries, energy, beats, labels.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("train", "train on annotated tracks"),
        ("cross-validate", "train and evaluate k models, each on artists that it did not see"),
        ("find-batch-size", "the largest batch that fits the GPU's memory"),
    ):
        _add_training(commands.add_parser(name, help=text))
    evaluate = commands.add_parser("evaluate", help="score a run with mir_eval on held-out or given annotated tracks")
    evaluate.add_argument("run", help="run folder, its name, or a checkpoint")
    evaluate.add_argument("annotations", nargs="?", help="folder of annotations (default: the run's own held-out tracks)")
    evaluate.add_argument("--audio-dir", help="folder searched for the audio")
    evaluate.add_argument("--dataset", help="a library under outputs/library: all its annotated tracks")
    predict = commands.add_parser("predict", help="structure of audio files: JSON, annotation YAML, JAMS")
    predict.add_argument("files", nargs="+", type=Path, metavar="FILES", help="audio files")
    predict.add_argument("--checkpoint", required=True, metavar="RUN_OR_FILE", help="run folder, its name, or a checkpoint")
    predict.add_argument("--out-dir", required=True, type=Path, help="where the results go")
    predict.add_argument("-v", "--visualize", action="store_true", help="also a plot of each file")
    predict.add_argument("-s", "--sonify", action="store_true", help="also the audio with clicks on beats and boundaries")
    predict.add_argument("--skip-existing", action="store_true", help="leave files alone whose JSON is there")
    predict.add_argument("--no-snap", action="store_true", help="do not move boundaries to downbeats")
    predict.add_argument("--device", default="cpu", help="cpu or cuda")
    export = commands.add_parser("export", help="ONNX file that takes 24 kHz samples, mel front end included")
    export.add_argument("run", help="run folder, its name, or a checkpoint")
    export.add_argument("target", type=Path, help="the .onnx file")
    words = sys.argv[1:] if arguments is None else arguments
    parsed = command.parse(parser, words, bool(words) and words[0] in TRAINING)
    return {
        "train": _train, "cross-validate": _cross_validate, "find-batch-size": _find_batch_size,
        "evaluate": _evaluate, "predict": _predict, "export": _export,
    }[parsed.command](parsed)  # fmt: skip


def _add_training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("annotations", nargs="?", help="folder of annotations (YAML, JAMS)")
    command.add_options(parser)
    for option, (_, kind, text) in FLAGS.items():
        parser.add_argument(option, type=kind, help=text)
    parser.add_argument("--freeze-backbone", action="store_true", help="train the heads only, on cached embeddings")
    for task in TASKS:
        parser.add_argument(f"--{task}", action=argparse.BooleanOptionalAction, default=None, help=f"the {task} head")
    parser.epilog = "Further words key=value are settings, with dots: training.ema=0.999 cnn.channels=48."


def _settings(parsed: argparse.Namespace) -> EdmSettings:
    overrides = list(parsed.overrides)
    if parsed.annotations:
        overrides.append(f"annotations={_quoted(parsed.annotations)}")
    for option, (key, _, _) in FLAGS.items():
        value = getattr(parsed, option[2:].replace("-", "_"))
        if value is not None:
            overrides.append(f"{key}={_quoted(value) if isinstance(value, str) else value}")
    overrides += [f"{task}={str(getattr(parsed, task)).lower()}" for task in TASKS if getattr(parsed, task) is not None]
    if parsed.freeze_backbone:
        overrides.append("freeze_backbone=true")
    return command.read_settings(EdmSettings, parsed, overrides)


def _quoted(text: str) -> str:
    return json.dumps(text)


def _train(parsed: argparse.Namespace) -> None:
    settings = _settings(parsed)
    from .train import train

    command.train_as_told(train, settings, parsed)


def _cross_validate(parsed: argparse.Namespace) -> None:
    settings = _settings(parsed)
    from .train import cross_validate

    _show(cross_validate(settings, parsed.run_name)["summary"])


def _find_batch_size(parsed: argparse.Namespace) -> None:
    settings = _settings(parsed)
    from . import tracks
    from .system import system_of

    found = tracks.load(settings)
    print(command.find_batch_size(lambda given: system_of(given, found), settings))


def _evaluate(parsed: argparse.Namespace) -> None:
    from .. import runs
    from . import tracks
    from .train import EVALUATION, evaluate

    run = runs.find(parsed.run)
    chosen = None
    if parsed.annotations or parsed.dataset:
        source = EdmSettings(annotations=parsed.annotations, audio_dir=parsed.audio_dir, dataset=parsed.dataset)
        chosen = tracks.load(source)
    elif parsed.audio_dir:
        raise UserError("--audio-dir goes with a folder of annotations")
    _show(evaluate(run, tracks=chosen)["summary"])
    print(f"written to {run / EVALUATION}")


def _predict(parsed: argparse.Namespace) -> None:
    from .train import predict

    given = {"plot": parsed.visualize, "sonify": parsed.sonify, "skip_existing": parsed.skip_existing}
    written = predict(parsed.checkpoint, parsed.files, parsed.out_dir, snap=not parsed.no_snap, device=parsed.device, **given)
    print("\n".join(map(str, written)))


def _export(parsed: argparse.Namespace) -> None:
    from .export import to_onnx

    difference = to_onnx(parsed.run, parsed.target)
    print(f"{parsed.target}: largest difference from PyTorch {difference:.2g}")


def _show(summary: dict) -> None:
    for name, values in summary.items():
        print(f"{name:20s} {values['mean']:.3f}  [{values['low']:.3f}, {values['high']:.3f}]  {values['tracks']} tracks")


def entry() -> None:
    """The console command ``edm``."""
    run_command(main)


if __name__ == "__main__":
    sys.exit(entry())
