"""The same prompts and seeds for every checkpoint, of one run or several: ``python -m training_checks.fixed_seed_sampler``

Writes ``outputs/samples/<run>/epoch_<n>/<prompt>.wav`` with a card for each epoch and gathers all cards into
``outputs/samples/index.html``. A clip that exists for the same weights, prompt and sampling is not generated again: its
bits do not depend on what is generated with it. Level, silence, clipping and repetition of every clip are measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pydantic import Field

from music_training import config, files, profiles, runs, stages
from music_training.errors import UserError, run_command
from music_training.library import catalogue
from music_training.musicgen import clips as clip_checks
from music_training.musicgen.generate import generate_all, write
from music_training.musicgen.models import load_musicgen, read_config, weights_file
from music_training.musicgen.prompts import Prompt, Sampling, read_prompts
from training_checks.codec_quality_check import held_out
from training_checks.listening_page import Card, Clip, write_card, write_index
from training_checks.listening_page.cards import CARD, read_card, read_cards

if TYPE_CHECKING:
    from omegaconf import DictConfig

PROMPTS = files.REPOSITORY / "model_config" / "prompts.yaml"


class SamplerSettings(config.Settings):
    """What to generate for each kept checkpoint: ``epochs`` (None: all), prompts of ``prompts_file``, and how.

    ``runs`` None: the language model trained last. ``continuations`` held-out clips of its data set are continued, too,
    after their first ``continue_seconds`` (at most half of ``duration``). ``batch`` clips are computed together.
    """

    runs: list[str] | None = None
    epochs: list[int] | None = None
    prompts_file: str = str(PROMPTS.relative_to(files.REPOSITORY))
    prompts: int | None = None
    continuations: int = Field(0, ge=0)
    continue_seconds: float = Field(2.0, gt=0)
    duration: float = Sampling.duration
    temperature: float = Sampling.temperature
    top_k: int = Sampling.top_k
    top_p: float = Sampling.top_p
    guidance: float = Sampling.guidance
    batch: int = Sampling.rows
    threads: int = 1

    def sampling(self) -> Sampling:
        """The part that says how tokens are drawn."""
        return Sampling(self.duration, self.temperature, self.top_k, self.top_p, self.guidance, rows=self.batch)

    def asked(self) -> list[Prompt]:
        """The prompts; a relative path of theirs starts where their file lies."""
        path = files.REPOSITORY / Path(self.prompts_file).expanduser()
        prompts = read_prompts(path, self.prompts)
        return [replace(prompt, audio=str(path.parent / prompt.audio)) if prompt.audio else prompt for prompt in prompts]


def samples_root() -> Path:
    """Where all samples lie: ``outputs/samples``."""
    return files.outputs_root() / "samples"


def checkpoints(run: Path) -> dict[int, Path]:
    """The kept weights of a run by epoch."""
    found = {int(path.name.removeprefix("epoch_")): path for path in (run / runs.CHECKPOINTS).glob("epoch_*") if path.is_dir()}
    return dict(sorted(found.items()))


def sample(run: Path, settings: SamplerSettings) -> list[Card]:
    """Generate the clips of every asked epoch of a run, skipping what exists; returns a card for each epoch."""
    kept = checkpoints(run)
    if not kept:
        raise UserError(f"{run}: no kept checkpoints (ckpt/epoch_*); train with 05_train_musicgen first")
    asked = settings.epochs or list(kept)
    missing = [epoch for epoch in asked if epoch not in kept]
    if missing:
        raise UserError(f"{run.name}: no checkpoint of epoch {missing[0]}; there are {', '.join(map(str, kept))}")
    prompts = settings.asked()
    return [_sample_epoch(run, epoch, kept[epoch], prompts, settings) for epoch in asked]


def sample_trained(settings: SamplerSettings, scope: str, force: bool = False) -> stages.StageResult:
    """Sample the asked runs (None: what 05_train_musicgen trained last in ``scope``), as a stage; then write the page."""
    names = settings.runs or [stages.latest("train_musicgen", scope, "05_train_musicgen")["run"]]
    asked = [runs.find(name) for name in names]

    def make(_draft: stages.Draft) -> stages.Made:
        written = []
        for run in asked:
            for card in sample(run, settings):
                folder = samples_root() / run.name / f"epoch_{card.epoch}"
                written += [folder / CARD, *(folder / clip.path for clip in card.clips)]
        return stages.Made(written, {"run": asked[0].name, "runs": [run.name for run in asked]})

    weights = [weights_file(path) for run in asked for path in checkpoints(run).values()]
    inputs = [*weights, files.REPOSITORY / settings.prompts_file]
    params = {**settings.model_dump(exclude={"threads"}), "runs": [run.name for run in asked]}
    done = stages.run("sample", make, scope=scope, params=params, inputs=inputs, force=force)
    write_index(samples_root())
    return done


def table(*names: str):
    """The clips of runs as a pandas table: a row a clip, with its run, epoch, text, figures and what is wrong with it."""
    import pandas

    rows = [
        {"clip": clip.name, "run": name, "epoch": card.epoch, **clip.figures, "faults": ", ".join(_known(card, clip).get("faults", []))}
        for name in names
        for _, card in read_cards(samples_root() / name)
        if card.epoch is not None
        for clip in card.clips
    ]
    return pandas.DataFrame(rows).drop(columns=["run"] if len(names) == 1 else [])


def players(*names: str) -> None:
    """Players in a notebook for the first clip of each run, epoch by epoch."""
    from IPython.display import Audio, display

    for name in names:
        for folder, card in read_cards(samples_root() / name):
            if card.epoch is not None:
                display(f"{name}, epoch {card.epoch}: {card.clips[0].name}", Audio(str(folder / card.clips[0].path)))


def _sample_epoch(run: Path, epoch: int, weights: Path, prompts: list[Prompt], settings: SamplerSettings) -> Card:
    """The card of an epoch; only clips that are missing, or were made from something else, are generated."""
    folder = samples_root() / run.name / f"epoch_{epoch}"
    trained_as = read_config(weights)
    asked = [prompt if trained_as.conditioners else _without_text(prompt) for prompt in prompts]
    asked += _continuations(trained_as, settings)
    sampling, old = settings.sampling(), read_card(folder)
    common = [files.digest(weights_file(weights)), asdict(sampling)]
    keys = {prompt.stem: _digest([*common, _identity(prompt)]) for prompt in asked}
    known = {Path(clip.path).stem: clip for clip in old.clips} if old else {}
    kept = {
        stem: known[stem]
        for stem, key in keys.items()
        if stem in known and _known(old, known[stem]).get("key") == key and (folder / known[stem].path).is_file()
    }
    made = dict(kept)
    missing = [prompt for prompt in asked if prompt.stem not in kept]
    faults = {stem: _known(old, clip)["faults"] for stem, clip in kept.items()}
    if missing:
        import torch

        torch.set_num_threads(settings.threads)
        model = load_musicgen(weights, "cuda" if torch.cuda.is_available() else "cpu")
        for prompt, audio in zip(missing, generate_all(model, missing, sampling, f"{run.name}, epoch {epoch}"), strict=True):
            path = write(folder / f"{prompt.stem}.wav", audio, model.sample_rate)
            figures = clip_checks.measure(audio, model.sample_rate)
            made[prompt.stem] = Clip(prompt.name, path.name, text=prompt.text, figures=figures.shown())
            faults[prompt.stem] = figures.faults()
    in_order = tuple(made[prompt.stem] for prompt in asked)
    about = f"{settings.duration:g} s each, temperature {settings.temperature:g}, top-k {settings.top_k}"
    metrics = {
        **{name: statistics.fmean(values) for name in ("RMS dB", "repetition") if (values := _values(in_order, name))},
        "clips with faults": float(sum(bool(found) for found in faults.values())),
    }
    made_from = {stem: {"key": key, "faults": faults[stem]} for stem, key in keys.items()}
    card = Card(
        "MusicGen", run.name, "Generated clips", about, epoch, _synthetic(trained_as), in_order, metrics=metrics, made_from=made_from
    )
    if card != old:
        write_card(folder, card)
    for clip in known.values():  # of prompts that are not asked any more
        if Path(clip.path).stem not in keys:
            (folder / clip.path).unlink(missing_ok=True)
    return card


def _without_text(prompt: Prompt) -> Prompt:
    """What a model that was trained without text is asked instead."""
    return replace(prompt, name=prompt.name if prompt.audio else f"unconditional {prompt.seed}", text="")


def _continuations(trained_as: DictConfig, settings: SamplerSettings) -> list[Prompt]:
    """Clips of the data set that training never touched, spread evenly, as prompts."""
    if not settings.continuations:
        return []
    lines = held_out(Path(trained_as.datasource.train).parent.name).read_text(encoding="utf-8").splitlines()
    count = min(settings.continuations, len(lines))
    paths = [json.loads(lines[index * len(lines) // count])["path"] for index in range(count)]
    seconds = min(settings.continue_seconds, settings.duration / 2)
    return [Prompt(f"continue {Path(path).stem}", "", index, path, seconds) for index, path in enumerate(paths)]


def _identity(prompt: Prompt) -> list:
    """What a prompt says, wherever the audio that it continues lies."""
    return [asdict(replace(prompt, audio="")), files.digest(files.absolute(prompt.audio)) if prompt.audio else ""]


def _values(clips: tuple[Clip, ...], name: str) -> list[float]:
    return [clip.figures[name] for clip in clips if name in clip.figures]


def _synthetic(trained_as: DictConfig) -> bool:
    """Whether the data set that a configuration names was composed by this project."""
    dataset = Path(trained_as.datasource.train).parent.name
    return catalogue.path_of(dataset).is_file() and catalogue.is_synthetic(dataset)


def _known(card: Card, clip: Clip) -> dict:
    """What a clip of a card was made from, and what was found wrong with it."""
    return card.made_from.get(Path(clip.path).stem) or {}


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", action="append", help="run folder or name, repeated for several (default: the last one trained)")
    parser.add_argument("--profile", default="mini")
    parser.add_argument("--audio-dir", default="")
    parser.add_argument("--epoch", type=int, action="append", help="only this epoch (may be repeated)")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="a YAML list of name, text, seed, audio and audio_seconds")
    parser.add_argument("--list-epochs", action="store_true", help="list the kept checkpoints and stop")
    parser.add_argument("--generate-index", action="store_true", help="only write the page from the clips there are")
    parser.add_argument("overrides", nargs="*", help="settings as key=value, for example duration=10")
    args = parser.parse_args()
    if args.generate_index:
        print(write_index(samples_root()))
        return 0
    scope = profiles.scope(args.profile, args.audio_dir)
    asked = [runs.find(name) for name in args.run or [stages.latest("train_musicgen", scope, "05_train_musicgen")["run"]]]
    if args.list_epochs:
        print("\n".join(f"{run.name}  epoch {epoch}  {path}" for run in asked for epoch, path in checkpoints(run).items()))
        return 0
    given = {"epochs": args.epoch, "prompts_file": args.prompts and str(args.prompts.resolve())}
    settings = profiles.settings(SamplerSettings, "10_listen", args.profile, args.overrides, **given)
    cards = [card for run in asked for card in sample(run, settings)]
    for card in cards:
        wrong = [f"{clip.name}: {', '.join(found)}" for clip in card.clips if (found := _known(card, clip)["faults"])]
        print(f"{card.run}  epoch {card.epoch}  {len(card.clips)} clips  {'; '.join(wrong) or 'all pass their checks'}")
    print(write_index(samples_root()))
    return 0


if __name__ == "__main__":
    run_command(main)
