"""Generates music with a trained model: ``python -m music_training.musicgen.generate "a house track" --duration 10``

Clips are drawn together, each from its own seed: the same prompt, seed and sampling give the same bits, whatever else is
generated with them (for one device and one number of compute threads). What is longer than the model's training examples
is drawn in windows, each of which continues the end of the one before.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from .. import files, profiles, runs, stages
from ..errors import UserError, run_command
from ..library import audio as audio_files
from . import clips
from .models import is_weights_folder
from .prompts import Prompt, Sampling

if TYPE_CHECKING:
    import torch
    from audiocraft.models import MusicGen

    from .decoding import Row

FORMATS = ("wav", "flac")


def takes_text(model: MusicGen) -> bool:
    """Whether a model was trained with descriptions."""
    return "description" in model.lm.condition_provider.conditioners


def generate(model: MusicGen, prompt: Prompt, sampling: Sampling) -> torch.Tensor:
    """Generate one clip ``[C, T]`` at the model's sample rate, in [-1, 1] unless the codec overshoots."""
    return generate_all(model, [prompt], sampling)[0]


def generate_all(model: MusicGen, prompts: Sequence[Prompt], sampling: Sampling, label: str = "") -> list[torch.Tensor]:
    """Generate a clip ``[C, T]`` for each prompt, ``sampling.rows`` at a time; with a ``label`` a progress bar is shown.

    Raises UserError for a text that the model was not trained with and for audio that leaves nothing to generate.
    """
    import torch

    from ..progress import Progress
    from .decoding import Row, encode_text

    frames = int(sampling.duration * model.frame_rate)
    if frames < 1:
        raise UserError(f"duration {sampling.duration:g} s: shorter than one frame of the codec ({1 / model.frame_rate:g} s)")
    rows = []
    for prompt in prompts:
        if prompt.text and not takes_text(model):
            raise UserError(f"prompt {prompt.text!r}: this model was trained without text; leave the text empty")
        with torch.inference_mode():
            tokens, text = _beginning(model, prompt), encode_text(model.lm, prompt.text)
        if tokens.shape[1] >= frames:
            seconds = tokens.shape[1] / model.frame_rate
            raise UserError(f"{prompt.audio}: {seconds:g} s to continue leave nothing to generate of a duration of {sampling.duration:g} s")
        rows.append(Row(tokens, text, torch.Generator().manual_seed(prompt.seed)))
    alike: dict[tuple, list[Row]] = {}
    for row in rows:
        alike.setdefault((row.tokens.shape[1], row.text and row.text.shape), []).append(row)
    parts = [some[start : start + sampling.rows] for some in alike.values() for start in range(0, len(some), sampling.rows)]
    drawn = 0.0

    def count(clips_done: float) -> None:
        nonlocal drawn
        drawn += clips_done
        if shown:
            shown.to(round(drawn, 2))

    with Progress(len(rows), label, "clips") if label else nullcontext() as shown:
        for part in parts:
            _fill(model, part, frames, sampling, count)
    with torch.no_grad():  # clip by clip: the bits of a convolution depend on the batch, and its speed does not
        return [model.compression_model.decode(row.tokens[None].to(model.device), None)[0].cpu() for row in rows]


def _beginning(model: MusicGen, prompt: Prompt) -> torch.Tensor:
    """The tokens ``[K, T]`` of what a prompt continues; T is 0 where it continues nothing."""
    import torch

    if not prompt.audio:
        return torch.zeros(model.lm.num_codebooks, 0, dtype=torch.long)
    samples, _ = audio_files.read(files.absolute(prompt.audio), model.sample_rate, channels=True)
    if prompt.audio_seconds is not None:
        samples = samples[:, : int(prompt.audio_seconds * model.sample_rate)]
    if samples.shape[1] < model.sample_rate / model.frame_rate:
        raise UserError(f"{prompt.audio}: nothing to continue ({samples.shape[1] / model.sample_rate:g} s)")
    if samples.shape[0] != model.audio_channels:
        samples = samples.mean(0, keepdims=True).repeat(model.audio_channels, axis=0)
    codes, scale = model.compression_model.encode(torch.from_numpy(samples)[None].to(model.device))
    if scale is not None:
        raise UserError(f"{prompt.audio}: this codec normalises levels, and cannot be continued from")
    return codes[0, : model.lm.num_codebooks].cpu()


def _fill(model: MusicGen, part: list[Row], frames: int, sampling: Sampling, count: Callable[[float], None]) -> None:
    """Draw the tokens of clips that begin alike, up to ``frames``, window by window; ``count`` hears of parts of clips."""
    from .decoding import chooser, extend

    first, window = part[0].tokens.shape[1], int(model.max_duration * model.frame_rate)
    carried = max(1, int(sampling.overlap * window))
    choose = chooser(sampling.temperature, sampling.top_k, sampling.top_p)
    with model.autocast:
        while (done := part[0].tokens.shape[1]) < frames:
            context = done if frames <= window else min(done, carried)
            until = min(window, context + frames - done)
            share = len(part) * (until - context) / (frames - first)
            extend(model.lm, part, sampling.rows, context, until, choose, sampling.guidance, lambda x, share=share: count(x * share))


def write(path: Path, audio: torch.Tensor, sample_rate: int) -> Path:
    """Write a clip ``[C, T]`` as WAV or FLAC (by the suffix), atomically; peaks over full scale are scaled down.

    What is not a number becomes silence: no file can hold it.
    """
    import soundfile

    audio = audio.nan_to_num(posinf=0.0, neginf=0.0)
    audio = audio / audio.abs().max().clamp(min=1.0)
    with files.atomic(path) as temporary:
        soundfile.write(temporary, audio.T.numpy(), sample_rate, format=path.suffix[1:].upper(), subtype="PCM_16")
    return path


@dataclass(frozen=True)
class Candidate:
    """One of several clips for the same text: what it was drawn from, its audio ``[C, T]`` and what was measured."""

    prompt: Prompt
    audio: torch.Tensor
    figures: clips.Figures


def candidates(model: MusicGen, prompt: Prompt, count: int, sampling: Sampling, label: str = "") -> list[Candidate]:
    """Generate ``count`` clips from seeds ``prompt.seed``, ``prompt.seed + 1``, ...; the best first, by their checks."""
    prompts = [replace(prompt, seed=prompt.seed + index) for index in range(count)]
    drawn = generate_all(model, prompts, sampling, label)
    figures = [clips.measure(clip, model.sample_rate) for clip in drawn]
    return [Candidate(prompts[index], drawn[index], figures[index]) for index in clips.best_first(figures)]


def weights_of(reference: str, epoch: int | None = None) -> Path:
    """The weights folder of a language model: given itself, or of a run (its best weights, or those of an epoch)."""
    folder = files.absolute(reference)
    if is_weights_folder(folder):
        return folder
    checkpoints = runs.find(reference) / runs.CHECKPOINTS
    chosen = checkpoints / ("best" if epoch is None else f"epoch_{epoch}")
    if not chosen.is_dir():
        kept = sorted((path.name for path in checkpoints.glob("epoch_*")), key=lambda name: int(name.partition("_")[2]))
        raise UserError(f"{reference}: no weights {chosen.name}; there are {', '.join(kept) or 'none yet'}")
    return chosen


def main() -> int:
    args = _arguments()
    sampling = Sampling(args.duration, args.temperature, args.top_k, args.top_p, args.guidance, rows=args.batch)
    for name, value, least in (("--candidates", args.candidates, 1), ("--keep", args.keep, 1), ("--threads", args.threads, 1)):
        if value is not None and value < least:
            raise UserError(f"{name} {value}: at least {least}")
    scope = profiles.scope(args.profile, args.audio_dir)
    weights = weights_of(args.model or stages.latest("train_musicgen", scope, "05_train_musicgen")["model"], args.epoch)
    import torch

    from .models import load_musicgen

    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here")
    torch.set_num_threads(args.threads)
    model = load_musicgen(weights, args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    passed, report = 0, []
    for text in args.text or [""]:
        name = text or (Path(args.audio).stem if args.audio else "unconditional")
        prompt = Prompt(name, text, args.seed, str(Path(args.audio).expanduser().resolve()) if args.audio else "", args.prompt_seconds)
        for rank, one in enumerate(candidates(model, prompt, args.candidates, sampling, "" if args.json else name)[: args.keep], start=1):
            path = write(args.out / f"{one.prompt.stem}.{args.format}", one.audio, model.sample_rate)
            faults = one.figures.faults()
            passed += not faults
            report.append({"file": str(path), "text": text, "seed": one.prompt.seed, "rank": rank, "faults": faults, **one.figures.shown()})
            if not args.json:
                print(f"{rank}. {path}  {one.figures.rms_db:.1f} dB  {', '.join(faults) or 'passes the checks'}")
    if args.json:
        print(json.dumps(report, indent=2))
    return 0 if passed else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", nargs="*", help="descriptions; none: unconditional")
    parser.add_argument("--model", help="a run, or a weights folder (default: the last one trained for the profile)")
    parser.add_argument("--epoch", type=int, help="the weights of this epoch of the run (default: the best ones)")
    parser.add_argument("--profile", default="mini")
    parser.add_argument("--audio-dir", default="", help="the folder that the pipeline was run on, if it was")
    parser.add_argument("--continue", dest="audio", metavar="FILE", help="audio to continue; the clip begins with it")
    parser.add_argument("--prompt-seconds", type=float, help="only the first seconds of it")
    parser.add_argument("--duration", type=float, default=10.0, help="seconds, with what is continued (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first candidate; the others count on (default: %(default)s)")
    parser.add_argument("--candidates", type=int, default=1, help="how many clips to draw for each text, ranked by their checks")
    parser.add_argument("--keep", type=int, help="write only so many of the best candidates")
    parser.add_argument("--temperature", type=float, default=Sampling.temperature)
    parser.add_argument("--top-k", type=int, default=Sampling.top_k)
    parser.add_argument("--top-p", type=float, default=Sampling.top_p)
    parser.add_argument("--guidance", type=float, default=Sampling.guidance, help="how strongly the text counts (default: %(default)s)")
    parser.add_argument(
        "--batch", type=int, default=Sampling.rows, help="clips computed together; another number gives other bits (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=1, help="compute threads on a CPU; another number gives other bits")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--out", type=Path, default=None, help="folder (default: outputs/samples/generated)")
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0])
    parser.add_argument("--json", action="store_true", help="print the figures of every clip as JSON")
    parser.error = _complain
    args = parser.parse_args()
    args.out = args.out or files.outputs_root() / "samples" / "generated"
    return args


def _complain(message: str) -> None:
    raise UserError(f"{message} (see --help)")


if __name__ == "__main__":
    run_command(main)
