"""The same prompts and seeds for every checkpoint of a run, side by side: ``python -m training_checks.fixed_seed_sampler``

Writes ``outputs/samples/<run>/epoch_<n>/<prompt>.wav`` with a card for each epoch and gathers all cards into
``outputs/samples/index.html``. What exists for the same weights, prompts and sampling is not generated again.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import asdict
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from music_training import config, files, profiles, runs, stages
from music_training.errors import UserError, run_command
from music_training.library import catalogue
from music_training.musicgen.generate import Prompt, Sampling, generate, write
from music_training.progress import progress
from training_checks.listening_page import Card, Clip, write_card, write_index
from training_checks.listening_page.cards import read_card, read_cards

PROMPTS = files.REPOSITORY / "model_config" / "prompts.yaml"


class SamplerSettings(config.Settings):
    """What to generate for each kept checkpoint: ``epochs`` (None: all), prompts of ``prompts_file``, and how."""

    epochs: list[int] | None = None
    prompts_file: str = str(PROMPTS.relative_to(files.REPOSITORY))
    prompts: int | None = None
    duration: float = 5.0
    temperature: float = 1.0
    top_k: int = 250
    guidance: float = 3.0
    threads: int = 1

    def sampling(self) -> Sampling:
        """The part that says how tokens are drawn."""
        return Sampling(duration=self.duration, temperature=self.temperature, top_k=self.top_k, guidance=self.guidance)


def samples_root() -> Path:
    """Where all samples lie: ``outputs/samples``."""
    return files.outputs_root() / "samples"


def read_prompts(path: Path, count: int | None = None) -> list[Prompt]:
    """Read prompts (a YAML list of name, text, seed); UserError for a file that holds none."""
    content = config.parse_yaml(path.read_text(encoding="utf-8"), str(path)) if path.is_file() else None
    if not isinstance(content, list) or not content:
        raise UserError(f"{path}: expected a YAML list of prompts, each with name, text and seed")
    try:
        return [Prompt(**prompt) for prompt in content][:count]
    except TypeError as error:
        raise UserError(f"{path}: a prompt has name, text and seed ({error})") from None


def checkpoints(run: Path) -> dict[int, Path]:
    """The kept weights of a run by epoch."""
    found = {int(path.name.removeprefix("epoch_")): path for path in (run / runs.CHECKPOINTS).glob("epoch_*") if path.is_dir()}
    return dict(sorted(found.items()))


def sample(run: Path, settings: SamplerSettings, synthetic: bool = False) -> list[Card]:
    """Generate the clips of every asked epoch of a run, skipping what exists; returns a card for each epoch."""
    kept = checkpoints(run)
    if not kept:
        raise UserError(f"{run}: no kept checkpoints (ckpt/epoch_*); train with 05_train_musicgen first")
    asked = settings.epochs or list(kept)
    missing = [epoch for epoch in asked if epoch not in kept]
    if missing:
        raise UserError(f"{run.name}: no checkpoint of epoch {missing[0]}; there are {', '.join(map(str, kept))}")
    prompts = read_prompts(files.REPOSITORY / settings.prompts_file, settings.prompts)
    return [
        _sample_epoch(run, epoch, kept[epoch], prompts, settings, synthetic) for epoch in progress(asked, "checkpoints", unit="checkpoint")
    ]


def sample_trained(settings: SamplerSettings, dataset: str, scope: str, force: bool = False) -> stages.StageResult:
    """Sample the language model that 05_train_musicgen trained last in ``scope``, as a stage; then write the page."""
    trained = stages.latest("train_musicgen", scope, "05_train_musicgen")
    run = runs.folder() / trained["run"]

    def make(_draft: stages.Draft) -> stages.Made:
        sample(run, settings, catalogue.is_synthetic(dataset))
        folders = [samples_root() / run.name / f"epoch_{epoch}" for epoch in settings.epochs or checkpoints(run)]
        clips = [path for folder in folders for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
        return stages.Made(clips, {"run": run.name})

    weights = [path / "model.safetensors" for path in checkpoints(run).values()]
    inputs = [*weights, files.REPOSITORY / settings.prompts_file]
    done = stages.run("sample", make, scope=scope, params=settings.model_dump(exclude={"threads"}), inputs=inputs, force=force)
    write_index(samples_root())
    return done


def table(run: str):
    """The clips of a run as a pandas table: a row a clip, with its epoch, text and levels."""
    import pandas

    cards = [card for folder, card in read_cards(samples_root() / run) if card.epoch is not None]
    return pandas.DataFrame(
        [{"clip": clip.name, "epoch": card.epoch, "text": clip.text, **clip.figures} for card in cards for clip in card.clips]
    )


def players(run: str) -> None:
    """Players in a notebook for the first clip of a run, epoch by epoch."""
    from IPython.display import Audio, display

    for folder, card in read_cards(samples_root() / run):
        if card.epoch is not None:
            display(f"epoch {card.epoch}: {card.clips[0].name}", Audio(str(folder / card.clips[0].path)))


def _sample_epoch(run: Path, epoch: int, weights: Path, prompts: list[Prompt], settings: SamplerSettings, synthetic: bool) -> Card:
    import torch

    from music_training.musicgen.models import load_musicgen

    folder = samples_root() / run.name / f"epoch_{epoch}"
    made_from = {
        "weights": files.digest(weights / "model.safetensors"),
        "prompts": [asdict(prompt) for prompt in prompts],
        "sampling": asdict(settings.sampling()),
    }
    card = read_card(folder)
    if card and card.made_from == made_from and all((folder / clip.path).is_file() for clip in card.clips):
        return card
    torch.set_num_threads(settings.threads)
    model = load_musicgen(weights, "cuda" if torch.cuda.is_available() else "cpu")
    takes_text = "description" in model.lm.condition_provider.conditioners
    clips = []
    for prompt in prompts:
        if not takes_text:
            prompt = Prompt(f"unconditional {prompt.seed}", "", prompt.seed)
        audio = generate(model, prompt, settings.sampling())
        path = write(folder / f"{prompt.stem}.wav", audio, model.sample_rate)
        figures = {"RMS dB": 20 * math.log10(max(float(audio.square().mean().sqrt()), 1e-6)), "peak": float(audio.abs().max())}
        clips.append(Clip(prompt.name, path.name, text=prompt.text, figures=figures))
    about = f"{settings.duration:g} s each, temperature {settings.temperature:g}, top-k {settings.top_k}"
    card = Card("MusicGen", run.name, "Generated clips", about, epoch, synthetic, tuple(clips), made_from=made_from)
    write_card(folder, card)
    return card


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", help="run folder or name (default: the last one trained for the profile)")
    parser.add_argument("--profile", default="mini")
    parser.add_argument("--audio-dir", default="")
    parser.add_argument("--epoch", type=int, action="append", help="only this epoch (may be repeated)")
    parser.add_argument("--list-epochs", action="store_true", help="list the kept checkpoints and stop")
    parser.add_argument("--generate-index", action="store_true", help="only write the page from the clips there are")
    parser.add_argument("overrides", nargs="*", help="settings as key=value, for example duration=10")
    args = parser.parse_args()
    if args.generate_index:
        print(write_index(samples_root()))
        return 0
    scope = profiles.scope(args.profile, args.audio_dir)
    run = runs.find(args.run or stages.latest("train_musicgen", scope, "05_train_musicgen")["run"])
    if args.list_epochs:
        print("\n".join(f"epoch {epoch}  {path}" for epoch, path in checkpoints(run).items()))
        return 0
    settings = profiles.settings(SamplerSettings, "10_listen", args.profile, args.overrides, epochs=args.epoch)
    sample(run, settings)
    print(write_index(samples_root()))
    return 0


if __name__ == "__main__":
    run_command(main)
