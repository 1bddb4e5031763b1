"""Where should rank go? ``python benchmarks/lora_rank_modes.py [--steps 300] [--seeds 2]``

The small base of notebook 07 in profile mini (taken from the outputs, or trained first) adapted to five stems with each
rank mode: as many adapter parameters, the same steps, and for each seed the same examples. nSDR (dB) on whole tracks of
artists that neither heard; mean over the seeds. "rank 1" is the widened output layers with next to no adapter. The library
is composed (synthetic). About a minute a mode and seed on one quiet core; goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from music_training import files, profiles, runs
from music_training.library.sources import studio
from music_training.lora_demucs import notebook
from music_training.lora_demucs.config import LoraDemucsSettings

PATTERNS = {
    "encoder.0.*": 12,
    "encoder.1.*": 8,
    "encoder.2.*": 4,
    "encoder.3.*": 4,
    "decoder.0.*": 4,
    "decoder.1.*": 4,
    "decoder.2.*": 8,
    "decoder.3.*": 12,
}
MODES = {
    "uniform": {"lora_rank_mode": "uniform"},
    "heuristic": {"lora_rank_mode": "heuristic"},
    "growth": {"lora_rank_mode": "growth"},
    "gradient": {"lora_rank_mode": "gradient", "min_rank": 1},
    "layer_ranks": {"lora_rank_mode": "uniform", "layer_ranks": PATTERNS},
    "rank 1": {"lora_rank_mode": "uniform", "lora_rank": 1},
}


def changed(settings: LoraDemucsSettings, budget: int | None, seed: int, steps: int | None, ranks: dict) -> LoraDemucsSettings:
    """The settings with other ranks and another seed."""
    content = settings.model_dump(mode="json")
    content["htdemucs"] |= {**ranks, "budget": budget}
    content["training"] |= {"random_seed": seed, "validation": {"interval": 1_000_000}}
    content["training"]["max_steps"] = steps or content["training"]["max_steps"]
    return LoraDemucsSettings.model_validate(content)


def adapt(settings: LoraDemucsSettings, tracks: tuple[list, list, list], name: str) -> dict:
    """Train an adapter in the run ``name``; its parameters and nSDR, and those of the base and of the split of its drums."""
    from music_training.lora_demucs import base, ranks, train
    from music_training.lora_demucs.system import LoraDemucsSystem
    from music_training.trainer import command

    known = runs.folder() / name / "evaluation" / "benchmark.json"
    if found := files.read_json(known):
        return found
    made = []

    def make(given: LoraDemucsSettings) -> LoraDemucsSystem:
        made.append(LoraDemucsSystem(given, *tracks[:2], base.build(given)))
        return made[0]

    outcome = command.train(make, settings, system="lorademucs", run_name=name)
    train.write_best(made[0], settings, outcome.run)
    crossover = train.best_crossover(train.open_adapted(outcome.run), tracks[0][:2])
    summary = train.evaluate(outcome.run, tracks[2], crossover=crossover)["summary"]
    found = {"parameters": ranks.cost(made[0].layers, made[0].allocated)} | {name: row["nsdr"] for name, row in summary.items()}
    files.write_json(known, found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, help="of each adaptation (default: as in mini)")
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    from music_training.lora_demucs import base, ranks
    from music_training.lora_demucs import tracks as library
    from music_training.lora_demucs.system import LoraDemucsSystem

    composed = profiles.settings(studio.StudioSettings, "02_compose_library", "mini")
    studio.compose_library(composed, profiles.dataset("mini"), profiles.scope("mini"))
    settings = notebook.with_base(profiles.settings(notebook.NotebookSettings, "07_lora_demucs", "mini"), scope=profiles.scope("mini"))
    separator = base.build(settings)
    heard = (separator.samplerate, separator.audio_channels)
    tracks = (*library.load(settings, *heard), library.judged(settings, *heard))
    example = LoraDemucsSystem(changed(settings, None, 1, 1, MODES["layer_ranks"]), *tracks[:2], separator)
    budget = ranks.cost(example.layers, example.allocated)

    sources = settings.dset.sources
    print(f"| ranks | adapter parameters | {' | '.join(sources)} | mean |\n|{' --- |' * (len(sources) + 3)}")
    printed = set()
    for mode, given in MODES.items():
        limit = None if mode in ("layer_ranks", "rank 1") else budget
        wanted = [changed(settings, limit, seed, arguments.steps, given) for seed in range(1, arguments.seeds + 1)]
        name = f"ranks_{settings.base}_{mode.replace(' ', '')}_{wanted[0].training.max_steps}"
        rows = [adapt(one, tracks, f"{name}_{number}") for number, one in enumerate(wanted, start=1)]
        for system in ("unadapted", "split", "adapted"):
            if system in printed:
                continue
            values = {source: statistics.fmean(row[system][source] for row in rows) for source in sources if source in rows[0][system]}
            cells = [f"{values[source]:.2f}" if source in values else "" for source in sources]
            total = f"{statistics.fmean(values.values()):.2f}" if len(values) == len(sources) else ""
            label, count = (mode, f"{rows[0]['parameters']:,}") if system == "adapted" else (system, "")
            print(f"| {label} | {count} | {' | '.join(cells)} | {total} |", flush=True)
            if system != "adapted":
                printed.add(system)


if __name__ == "__main__":
    main()
