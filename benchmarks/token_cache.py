"""What is the token cache worth? ``python benchmarks/token_cache.py --profile mini [--rounds 5] [--updates 10]``.

Two language models of the profile train in one process, one from the token cache, one on audio that is encoded on the
way; they take turns of a few updates (reading included), so that a busy machine slows both alike. CPU seconds are counted where
there is no GPU, so that other work does not count. Needs the outputs of 03 and 04 of the profile. Its two runs are removed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from music_training import files, profiles, runs, stages
from music_training.errors import run_command
from music_training.musicgen import tokens, train, training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="mini")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=10)
    arguments = parser.parse_args()
    dataset, scope = profiles.dataset(arguments.profile), profiles.scope(arguments.profile)
    codec = stages.latest("train_codec", scope, "04_train_codec")["codec"]
    settings = profiles.settings(training.LanguageModelSettings, "05_train_musicgen", arguments.profile, ["workers=0"])
    start = time.process_time()
    made = tokens.encode(dataset, codec, scope)
    encoding = time.process_time() - start
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    clock = time.monotonic if device == "cuda" else time.process_time
    os.chdir(files.outputs_root())
    asked = [*settings.overrides(dataset), f"compression_model_checkpoint={codec}", f"device={device}", "autocast=false"]
    kinds = {"from the token cache": [f"token_cache={made.result['tokens']}"], "encoded on the way": []}
    solvers, times = {}, {name: [] for name in kinds}
    for number, (name, more) in enumerate(kinds.items()):
        solvers[name] = solver_of([*asked, *more], f"benchmark_{os.getpid()}_{number}")
    try:
        for turn in range(arguments.rounds + 1):
            for name, (solver, batches) in solvers.items():
                begun = clock()
                for _ in range(arguments.updates):
                    solver.seed("update")
                    solver.update(next(batches))
                if turn:  # the first one warms up
                    times[name].append((clock() - begun) / arguments.updates)
    finally:
        for number in range(len(kinds)):
            shutil.rmtree(runs.folder() / f"benchmark_{os.getpid()}_{number}", ignore_errors=True)
    unit = "seconds" if device == "cuda" else "CPU seconds"
    print(f"\n{arguments.rounds} turns of {arguments.updates} updates, {unit} an update: median (least, most)")
    for name, values in times.items():
        print(f"  {name:<22}{statistics.median(values):8.4f} ({min(values):.4f}, {max(values):.4f})")
    cached, plain = (statistics.median(values) for values in times.values())
    print(f"  updates per second: {plain / cached:.2f} times as many from the cache")
    if not made.skipped:
        print(f"  encoding {made.result['seconds']:.0f} s of audio once: {encoding:.1f} CPU s, imports included")


def solver_of(overrides: list[str], run: str):
    """A solver that has not begun, and its batches."""
    (runs.folder() / run).mkdir(parents=True)
    main = train.dora_main()
    cfg = train.compose([*overrides, f"run={run}"])
    import torch

    from music_training.musicgen.solvers import SOLVERS

    torch.set_num_threads(cfg.num_threads)
    train.pick(cfg)
    from audiocraft.modules.transformer import set_efficient_attention_backend

    set_efficient_attention_backend(cfg.efficient_attention_backend)
    torch.manual_seed(cfg.seed)
    experiment = main.get_xp([*overrides, f"run={run}"])
    with experiment.enter():
        solver = SOLVERS[cfg.solver](cfg)
    solver.model.train()
    return solver, solver.batches(0)


if __name__ == "__main__":
    run_command(main)
