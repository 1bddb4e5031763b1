"""Does what this project adds to AudioCraft pay? ``python benchmarks/ours_vs_stock.py [--seeds 3] [--minutes 2]``

On the mini profile's composed library (synthetic), models of the same size get the same wall time (``--minutes``, for
each training; what the token cache takes is in it): AudioCraft as it comes (no revival of codes, no start without the
quantiser, its learning rates and schedules, every example encoded again), the same codec without discriminators, and
this project's mini profile (with ``token_shifts=4``). The codecs are measured by mel distance and SDR on held-out
artists, the language models (on the tokens of one codec, ours of the first seed) by cross-entropy there. AudioCraft has
two recipes for those: AdamW at 1e-4, and D-Adaptation.

A pilot of 8 steps of each, in turns, says how many steps fit; they and what is done are kept in
``outputs/benchmarks/ours_vs_stock.json``, and the same command goes on where it was stopped. On a quiet machine it
takes 6 x seeds x (minutes + 1/2) and some 10 minutes more: 55 minutes as given.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from music_training import files, profiles, runs
from music_training.musicgen import tokens
from music_training.musicgen.training import SCRIPT, CodecSettings, LanguageModelSettings
from training_checks.codec_quality_check import check, held_out

PILOT = 8
# What the published recipes of AudioCraft 1.3 set; its warm-up of 4,000 steps is cut to a tenth of the steps there are.
STOCK_CODEC = [
    "living_codebooks=false",
    "quantize_after=0",
    "optim.lr=3e-4",
    "optim.max_norm=0",
    "optim.ema.decay=0.99",
    "rvq.decay=0.99",
    "rvq.threshold_ema_dead_code=2",
    "rvq.kmeans_iters=50",
    "losses.l1=0.1",
    "losses.l2=0",
    "losses.msspec=2",
    "msspec.range_start=6",
    "schedule.lr_scheduler=null",
]
DISCRIMINATORS = ["adversarial.adversaries=[msstftd]"]
STOCK_MODEL = ["optim.optimizer=adamw", "optim.lr=1e-4", "token_cache=null", "transformer_lm.bias_proj=false"]
D_ADAPTATION = ["optim.optimizer=dadam", "optim.lr=1"]  # its published recipe for the small model


def train(overrides: list[str], run: str) -> float:
    """Train in a process of its own, from where it was; the seconds that it took in this call."""
    start = time.monotonic()
    command = [sys.executable, str(SCRIPT), *overrides, "checkpoint.every_minutes=0.5", f"run={run}"]
    log = files.outputs_root() / "benchmarks" / f"{run}.log"
    with open(log, "a") as stream:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        ended = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)
    if ended.returncode:
        sys.exit(f"{run} ended with {ended.returncode}; see {log}")
    return time.monotonic() - start


def pilot(overrides: list[str], run: str) -> float:
    """Train a few steps, with the quantiser from the first on; the median time of all but the first two (s)."""
    whole = ["quantize_after=0"] if "solver=compression" in overrides else []
    train([*overrides, *whole, "optim.epochs=1", f"optim.updates_per_epoch={PILOT}", "logging.every=1"], run)
    rows = [row["seconds"] for row in runs.read_metrics(runs.folder() / run) if row["stage"] == "train"]
    return statistics.median(rows[2:])


class Notes:
    """What is done, in a file."""

    def __init__(self, path: Path):
        self.path, self.content = path, files.read_json(path) or {}

    def get(self, key: str, make, *values):
        """The value of ``key``, made by ``make(*values)`` and kept where it is not known yet."""
        if key not in self.content:
            self.content[key] = make(*values)
            files.write_json(self.path, self.content)
        return self.content[key]


def prepare(dataset: str) -> None:
    """Compose and segment the library where it is not there."""
    if not (files.outputs_root() / "egs" / dataset / "train" / "data.jsonl").is_file():
        subprocess.run([sys.executable, str(SCRIPT.parent / "run_notebooks.py"), "--profile", "mini", "--only", "02,03"], check=True)


def compare(notes: Notes, kind: str, ways: dict[str, list[str]], seeds: int, seconds: float, extra: dict[str, float], measure) -> None:
    """Train every way with every seed for ``seconds`` and print what ``measure(run)`` gives."""
    for way, overrides in ways.items():
        name = f"bench_{kind}_{way}".replace(" ", "_").replace(",", "")
        notes.get(f"{name} s/step", pilot, overrides, f"{name}_pilot")
    rows: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    steps_of = {}
    for seed in range(seeds):
        for way, overrides in ways.items():
            name = f"bench_{kind}_{way}".replace(" ", "_").replace(",", "")
            steps = max(20, int((seconds - extra.get(way, 0.0)) / notes.content[f"{name} s/step"]))
            steps_of[way] = steps
            run = f"{name}_{seed}"
            asked = [*overrides, f"seed={seed}", "optim.epochs=2", f"optim.updates_per_epoch={steps // 2}", "logging.every=10"]
            if kind == "lm" and way != "ours":
                asked.append(f"schedule.cosine.warmup={steps // 10}")
            spent = notes.get(f"{run} seconds", train, asked, run)
            rows[way].append({**notes.get(f"{run} figures", measure, run), "minutes": spent / 60})
    names = list(rows[next(iter(ways))][0])
    print(f"\n{kind}, {seeds} seeds: mean (range)")
    print(f"{'':<34}{'steps':>7}" + "".join(f"{name:>26}" for name in names))
    for way, found in rows.items():
        columns = [[row[name] for row in found] for name in names]
        shown = [f"{statistics.fmean(values):.3f} ({min(values):.3f} .. {max(values):.3f})" for values in columns]
        print(f"{way:<34}{steps_of[way]:>7}" + "".join(f"{text:>26}" for text in shown), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=2.0)
    arguments = parser.parse_args()
    dataset = profiles.dataset("mini")
    (files.outputs_root() / "benchmarks").mkdir(parents=True, exist_ok=True)
    notes = Notes(files.outputs_root() / "benchmarks" / f"ours_vs_stock_{arguments.minutes:g}.json")
    prepare(dataset)
    manifest = held_out(dataset)

    codec = profiles.settings(CodecSettings, "04_train_codec", "mini", workers=0).overrides(dataset)
    ways = {"AudioCraft": [*codec, *STOCK_CODEC, *DISCRIMINATORS], "AudioCraft, no discriminators": [*codec, *STOCK_CODEC], "ours": codec}

    def of_codec(run: str) -> dict[str, float]:
        figures = check(runs.folder() / run / "ckpt" / "best", manifest, 10).figures
        return {"mel distance": figures["mel"], "SDR, dB": figures["sdr"]}

    compare(notes, "codec", ways, arguments.seeds, 60 * arguments.minutes, {}, of_codec)

    speaks = files.relative(runs.folder() / "bench_codec_ours_0" / "ckpt" / "best")

    def encode() -> list:
        start = time.monotonic()
        cache = tokens.encode(dataset, speaks, "benchmark", tokens.TokenSettings(shifts=settings.token_shifts)).result["tokens"]
        return [cache, time.monotonic() - start]

    settings = profiles.settings(LanguageModelSettings, "05_train_musicgen", "mini", workers=0, token_shifts=4)
    cache, encoding = notes.get("token cache", encode)
    model = settings.overrides(dataset)
    model.append(f"compression_model_checkpoint={speaks}")
    ways = {
        "AudioCraft": [*model, *STOCK_MODEL],
        "AudioCraft, D-Adaptation": [*model, *STOCK_MODEL, *D_ADAPTATION],
        "ours": [*model, f"token_cache={cache}"],
    }

    def of_model(run: str) -> dict[str, float]:
        from music_training.musicgen import evaluation
        from music_training.musicgen.models import load_codec, load_language_model

        trained = load_language_model(runs.folder() / run / "ckpt" / "best")
        codec = load_codec(speaks)
        frames = int(trained.cfg.dataset.segment_duration * codec.frame_rate)
        clips, texts = evaluation.windows(*evaluation.encode_manifest(codec, manifest, 32), frames)
        return {"cross-entropy, nats": evaluation.model_cross_entropy(trained, clips, texts)}

    compare(notes, "lm", ways, arguments.seeds, 60 * arguments.minutes, {"ours": encoding}, of_model)


if __name__ == "__main__":
    main()
