"""The command of LoRA Demucs: ``python -m music_training.lora_demucs {train,verify,evaluate,separate,export,...}``.

Several processes: ``torchrun --nproc_per_node N -m music_training.lora_demucs train ...``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ..errors import run_command
from ..trainer import command
from .config import LoraDemucsSettings

TRAINING = ("train", "ranks", "find-batch-size")


def main(arguments: list[str] | None = None) -> int | None:
    """Parse a command line and do what it says; returns the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    parsed = command.parse(_parser(), words, bool(words) and words[0] in TRAINING)
    return {
        "train": _train, "ranks": _ranks, "find-batch-size": _find_batch_size, "verify": _verify, "evaluate": _evaluate,
        "separate": _separate, "export": _export, "quantize": _quantize,
    }[parsed.command](parsed)  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lora_demucs", description="LoRA adapters for HT-Demucs: a genre, or new stems.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("train", "train an adapter (or, with method=full, all weights) on tracks with stems"),
        ("ranks", "the table of layers, ranks and parameters that these settings give; trains nothing"),
        ("find-batch-size", "the largest batch that fits the GPU's memory"),
    ):
        added = commands.add_parser(name, help=text)
        command.add_options(added)
        added.epilog = (
            "Further words key=value are settings, with dots: base=htdemucs dset.wav=FOLDER htdemucs.lora_rank=8 "
            'dset.sources="[other, kick, vocals, bass, hihat]" preset=fine_tuning optim.lr=5e-5 batch_size=32.'
        )
    verify = commands.add_parser("verify", help="check tracks with stems before training; exit 1 where one fails")
    verify.add_argument("folder", type=Path, help="train|valid/<track>/<stem>.wav, or one track's folder")
    verify.add_argument("--sources", help="stems that every track is to have, comma separated (default: those of most tracks)")
    verify.add_argument("--fix", action="store_true", help="write missing or wrong mixtures from the stems, pad short stems")
    verify.add_argument("--report", type=Path, help="also an HTML page")
    verify.add_argument("--workers", type=int, default=0, help="processes (default: all cores)")
    evaluate = commands.add_parser("evaluate", help="score a run on held-out tracks, against the base model and cheap baselines")
    evaluate.add_argument("run", help="run folder or its name")
    evaluate.add_argument("--tracks", type=Path, help="folder <track>/<stem>.wav (default: the run's own held-out tracks)")
    separate = commands.add_parser("separate", help="separate audio files of any length")
    separate.add_argument("files", nargs="+", type=Path, metavar="FILES", help="audio files")
    separate.add_argument("--adapter", required=True, metavar="RUN_OR_FOLDER", help="adapter's folder, or the run that trained it")
    separate.add_argument("--out-dir", type=Path, default=Path("separated"), help="where <file>/<stem>.wav go (default: separated)")
    separate.add_argument("--two-stems", metavar="STEM", help="only this stem and the rest, no_<stem>")
    separate.add_argument("--skip-existing", action="store_true", help="leave files alone whose folder is there")
    separate.add_argument("--device", default="cpu", help="cpu or cuda")
    for added in (evaluate, separate):
        added.add_argument("--shifts", type=int, default=1, help="average over so many shifted grids of windows (default 1)")
        added.add_argument("--overlap", type=float, default=0.25, help="share by which windows overlap (default 0.25)")
        added.add_argument("--base", help="base model in place of the one that the adapter names")
    export = commands.add_parser("export", help="merged model that demucs itself loads")
    export.add_argument("adapter", help="adapter's folder, or the run that trained it")
    export.add_argument("folder", type=Path, help="where the model goes")
    export.add_argument("--name", help="name of the model (default: the run's)")
    export.add_argument("--include-lora", action="store_true", help="put the adapter beside it")
    export.add_argument("--onnx", action="store_true", help="also the network as ONNX, between the Fourier transforms")
    quantize = commands.add_parser("quantize", help="merged model with int8 weights")
    quantize.add_argument("adapter", help="adapter's folder, or the run that trained it")
    quantize.add_argument("target", type=Path, help="the .safetensors file")
    quantize.add_argument("--no-optimize-scales", action="store_true", help="scale each channel by its largest weight")
    for added in (export, quantize):
        added.add_argument("--base", help="base model in place of the one that the adapter names")
    return parser


def _settings(parsed: argparse.Namespace) -> LoraDemucsSettings:
    return command.read_settings(LoraDemucsSettings, parsed, parsed.overrides)


def _train(parsed: argparse.Namespace) -> None:
    settings = _settings(parsed)
    from .train import train

    command.train_as_told(train, settings, parsed)


def _ranks(parsed: argparse.Namespace) -> None:
    settings = _settings(parsed)
    from .train import rank_table

    print(rank_table(settings).to_string(index=False))


def _find_batch_size(parsed: argparse.Namespace) -> None:
    settings = _settings(parsed)
    from .system import system_of

    print(command.find_batch_size(system_of, settings))


def _verify(parsed: argparse.Namespace) -> int:
    from . import verify

    sources = tuple(parsed.sources.split(",")) if parsed.sources else None
    found = verify.verify(parsed.folder, sources, fix=parsed.fix, workers=parsed.workers)
    print(found.text())
    if parsed.report:
        found.write_page(parsed.report)
        print(f"report: {parsed.report}")
    return 0 if found.passed else 1


def _evaluate(parsed: argparse.Namespace) -> None:
    from .. import runs
    from . import train

    run = runs.find(parsed.run)
    options = {"overlap": parsed.overlap, "shifts": parsed.shifts, "base_name": parsed.base}
    chosen = train.given_tracks(run, parsed.tracks, parsed.base) if parsed.tracks else None
    result = train.evaluate(run, chosen, **options)
    print(train.score_table(result).to_string())
    print(f"written to {run / train.EVALUATION}")


def _separate(parsed: argparse.Namespace) -> None:
    from .train import separate

    options = {"two_stems": parsed.two_stems, "overlap": parsed.overlap, "shifts": parsed.shifts, "skip_existing": parsed.skip_existing}
    written = separate(parsed.adapter, parsed.files, parsed.out_dir, device=parsed.device, base_name=parsed.base, **options)
    print("\n".join(map(str, written)))


def _export(parsed: argparse.Namespace) -> None:
    from .export import export

    print("\n".join(export(parsed.adapter, parsed.folder, parsed.name, parsed.include_lora, parsed.onnx, parsed.base)))


def _quantize(parsed: argparse.Namespace) -> None:
    from .export import quantize_adapter

    print(json.dumps(quantize_adapter(parsed.adapter, parsed.target, not parsed.no_optimize_scales, parsed.base)))


def entry() -> None:
    """The command as a process."""
    run_command(main)


if __name__ == "__main__":
    sys.exit(entry())
