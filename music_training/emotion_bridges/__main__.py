"""The command of the emotion bridges: ``python -m music_training.emotion_bridges train_spectocloud --config FILE``.

Also as console commands ``train_spectocloud``, ``train_midi_generator`` and ``export_models``; several processes:
``torchrun --nproc_per_node N -m music_training.emotion_bridges train_midi_generator --config FILE``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from .. import config
from ..errors import UserError, run_command
from ..trainer import command
from .train import KINDS

CONFIGS = {name: f"model_config/emotion_bridges/{name}_training_config.yaml" for name in KINDS}


def main(arguments: list[str] | None = None) -> int | None:
    """Parse a command line and do what it says; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["train"]:  # the shared command: the configuration says which of the two models
        words = [f"train_{_model_of(words)}", *(word for word in words[1:] if word not in KINDS)]
    parser = argparse.ArgumentParser(prog="emotion_bridges", description="Audio and emotion to point clouds; emotion to MIDI.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in KINDS:
        training = commands.add_parser(f"train_{name}", help=f"train the {name.replace('_', ' ')}")
        command.add_options(training)
        training.epilog = f"Further words key=value are settings, with dots. Defaults: {CONFIGS[name]}."
    evaluating = commands.add_parser("evaluate", help="score a run on its held-out artists, with baselines")
    evaluating.add_argument("run", help="run folder or its name")
    evaluating.add_argument("--repeats", type=int, default=4, help="scores generated for each point of the grid (default 4)")
    evaluating.add_argument("--guidance", type=float, default=1.5, help="how strongly the emotion is stressed (default 1.5)")
    _add_generate(commands.add_parser("generate", help="MIDI files from an emotion and musical context"))
    predict = commands.add_parser("cloud", help="clouds of audio files: .npy, and a page to look at them")
    predict.add_argument("run", help="run folder of Spectocloud, or its name")
    predict.add_argument("files", nargs="+", type=Path, help="audio files")
    predict.add_argument("--emotion", help="a word, or valence,arousal,intensity (default: what folder and name tell)")
    predict.add_argument("--out-dir", type=Path, required=True, help="where the clouds and index.html go")
    exporting = commands.add_parser("export_models", help="ONNX and, where coremltools is installed, Core ML")
    exporting.add_argument("--all", action="store_true", help="the newest run of each model")
    exporting.add_argument("--newest", nargs="+", choices=list(KINDS), default=[], metavar="MODEL", help="the newest run of these models")
    exporting.add_argument("--spectocloud", metavar="CKPT", help="run, checkpoint or weights of Spectocloud")
    exporting.add_argument("--midi-generator", metavar="CKPT", help="run, checkpoint or weights of the MIDI generator")
    exporting.add_argument("--out-dir", type=Path, help="default: outputs/exports")
    tokens = commands.add_parser("round_trip", help="what MIDI files lose on their way through the tokens, as a table")
    tokens.add_argument("files", nargs="+", type=Path, help="MIDI files")
    budget = commands.add_parser("budget", help="what a training will take and cost, from measured steps")
    budget.add_argument("--config", type=Path, help="configuration of either model")
    budget.add_argument("--model", choices=list(KINDS), help="which model (default: as the configuration says)")
    budget.add_argument("--price-per-hour", type=float, default=0.75, help="of the machine (default 0.75)")
    budget.add_argument("--epochs", type=int, help="in place of the configuration's")
    budget.add_argument("--steps", type=int, default=6, help="updates to measure (default 6)")
    budget.add_argument("--examples", type=int, help="examples of the real data set (default: those found)")
    takes = words[:1] and (words[0].startswith("train_") or words[0] == "budget")
    parsed = command.parse(parser, words, takes)
    jobs = {
        "evaluate": _evaluate,
        "generate": _generate,
        "cloud": _cloud,
        "export_models": _export,
        "budget": _budget,
        "round_trip": _round_trip,
    }
    return jobs.get(parsed.command, _train)(parsed)


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="run folder of the MIDI generator, or its name")
    parser.add_argument("--emotion", required=True, help="a word (grief, slightly happy), or valence,arousal,intensity")
    parser.add_argument("--out", type=Path, required=True, help="the .mid file; with --count a number is added")
    parser.add_argument("--key", default="", help="C major, F# minor ... (default: C, the mode left to the emotion)")
    parser.add_argument("--tempo", type=float, help="beats per minute (default: left to the emotion)")
    parser.add_argument("--prompt", type=Path, help="a MIDI file whose first bars are gone on from")
    parser.add_argument("--prompt-bars", type=int, default=1, help="how many of them (default 1)")
    parser.add_argument("--bars", type=int, default=8, help="bars to generate, the prompt's included (default 8)")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--guidance", type=float, default=1.5, help="above 1 stresses the emotion (default 1.5)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1, help="how many")
    parser.add_argument("--wav", action="store_true", help="its sound beside it, in the instruments of the studio library")
    parser.add_argument("--soundfont", type=Path, metavar="FILE", help="the sound by fluidsynth with this sound font (means --wav)")


def emotion_of(text: str) -> list[float]:
    """An emotion from a word, a phrase or numbers with commas."""
    from . import emotions, lexicon

    if re.fullmatch(r"[-+.\d\s,e]+", text):
        try:
            return emotions.checked([float(part) for part in text.split(",")], f"--emotion {text}")
        except ValueError as error:
            raise error if isinstance(error, UserError) else UserError(f"--emotion {text}: numbers with commas, as 0.5,-0.2,0.6") from None
    return lexicon.vector(text)


def _model_of(words: list[str]) -> str:
    named = [word for word in words[1:] if word in KINDS]
    paths = [after for option, after in zip(words, words[1:], strict=False) if option == "--config"]
    found = named[:1] or [config.read_yaml(Path(path)).get("model") for path in paths]
    if not found or found[0] not in KINDS:
        raise UserError(f"train: say which model ({', '.join(KINDS)}), or `model: ...` in the --config file")
    return found[0]


def _train(parsed: argparse.Namespace) -> None:
    from .train import train

    settings = command.read_settings(KINDS[parsed.command.removeprefix("train_")], parsed, parsed.overrides)
    command.train_as_told(train, settings, parsed)


def _evaluate(parsed: argparse.Namespace) -> None:
    from .. import runs
    from .train import EVALUATION, evaluate

    run = runs.find(parsed.run)
    print(json.dumps(evaluate(run, repeats=parsed.repeats, guidance=parsed.guidance), indent=2))
    print(f"written to {run / EVALUATION}")


def _generate(parsed: argparse.Namespace) -> None:
    from . import sounds
    from .midi_generator import sampling
    from .train import load

    emotion = emotion_of(parsed.emotion)
    model, settings = load(parsed.run, "midi_generator")
    names = ("temperature", "top_k", "top_p", "guidance", "seed", "bars")
    drawn = sampling.Sampling(**{name: getattr(parsed, name) for name in names}, max_tokens=settings.context)
    made = sampling.longer(
        model, settings, [emotion] * parsed.count, drawn, tempo=parsed.tempo, key=parsed.key,
        prompt=parsed.prompt, prompt_bars=parsed.prompt_bars,
    )  # fmt: skip
    for number, score in enumerate(made, start=1):
        target = parsed.out if parsed.count == 1 else parsed.out.with_stem(f"{parsed.out.stem}_{number}")
        target.parent.mkdir(parents=True, exist_ok=True)
        score.dump_midi(str(target))
        print(f"{target}: {score.note_num()} notes")
        if parsed.soundfont:
            print(sounds.fluidsynth(score, target.with_suffix(".wav"), parsed.soundfont))
        elif parsed.wav:
            print(sounds.studio(score, target.with_suffix(".wav"), emotion))


def _cloud(parsed: argparse.Namespace) -> None:
    from .spectocloud import viewer

    emotion = emotion_of(parsed.emotion) if parsed.emotion else None
    page = viewer.of_files(parsed.run, parsed.files, emotion, parsed.out_dir)
    print(page)


def _export(parsed: argparse.Namespace) -> None:
    from . import export

    if not (parsed.all or parsed.newest or parsed.spectocloud or parsed.midi_generator):
        raise UserError("say what to export: --all, --spectocloud CKPT or --midi-generator CKPT")
    chosen = {"spectocloud": parsed.spectocloud, "midi_generator": parsed.midi_generator}
    chosen = {name: given or (export.newest(name) if parsed.all or name in parsed.newest else None) for name, given in chosen.items()}
    for line in export.export_all({name: given for name, given in chosen.items() if given}, parsed.out_dir):
        print(line)


def _round_trip(parsed: argparse.Namespace) -> None:
    from .midi_generator import roundtrip

    print(roundtrip.table(parsed.files))


def _budget(parsed: argparse.Namespace) -> None:
    from . import budget

    kind = parsed.model or _model_of(["", *(["--config", str(parsed.config)] if parsed.config else [])])
    settings = config.load(KINDS[kind], parsed.config or {}, parsed.overrides)
    print(budget.estimate(settings, parsed.price_per_hour, parsed.epochs, parsed.steps, parsed.examples))


def entry() -> None:
    """``python -m music_training.emotion_bridges``."""
    run_command(main)


def train_spectocloud() -> None:
    """The console command ``train_spectocloud``."""
    run_command(lambda: main(["train_spectocloud", *sys.argv[1:]]))


def train_midi_generator() -> None:
    """The console command ``train_midi_generator``."""
    run_command(lambda: main(["train_midi_generator", *sys.argv[1:]]))


def export_models() -> None:
    """The console command ``export_models``."""
    run_command(lambda: main(["export_models", *sys.argv[1:]]))


if __name__ == "__main__":
    sys.exit(entry())
