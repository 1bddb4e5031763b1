"""What a training will take: time, memory and money, from a few real steps of its real configuration.

The steps run in a process of their own, in a run folder that is removed again. On CUDA :func:`largest_batch` finds by
bisection the batch that still fits.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from music_training import files, machine, prices, runs
from music_training.errors import UserError, run_command
from music_training.musicgen.training import LanguageModelSettings, TrainSettings
from training_checks.report import Report

STEPS = 3  # that are timed, after one that warms up
STATE_COPIES = 5  # of the weights in a training state: the model, Adam's two, the average, the best


class OutOfMemory(Exception):
    """A batch that does not fit the memory."""


@dataclass(frozen=True)
class Measured:
    """What a few steps showed: seconds of a step and of a validation, peak memory in bytes, parameters, examples a step."""

    step_seconds: float
    valid_seconds: float
    memory: int
    parameters: int
    batch_size: int
    device: str


def measure(overrides: list[str], steps: int = STEPS) -> Measured:
    """Take ``steps`` real steps of the configuration that Hydra overrides say. Raises OutOfMemory, and UserError for what cannot train."""
    with tempfile.TemporaryDirectory() as folder:
        name = f"forecast-{Path(folder).name}.{os.getpid()}"
        out = Path(folder) / "measured.json"
        command = [sys.executable, "-m", "training_checks.forecast", str(out), name, str(steps), *overrides]
        paths = [str(files.REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "ignore"}
        ended = subprocess.run(command, capture_output=True, text=True, env=environment)
        shutil.rmtree(runs.folder() / name, ignore_errors=True)
        found = files.read_json(out)
    if found is None:
        last = next((line for line in reversed((ended.stdout + ended.stderr).splitlines()) if line.strip()), "no output")
        if ended.returncode in (-9, 137):
            raise OutOfMemory(f"the process was killed, most likely for memory ({machine.memory_limit() / 2**30:.0f} GiB may be used)")
        raise UserError(f"the forecast's steps failed: {last.removeprefix('error: ')}")
    if "out_of_memory" in found:
        raise OutOfMemory(found["out_of_memory"])
    return Measured(**found)


def largest_batch(fits: Callable[[int], bool], most: int = 4096, multiple: int = 1) -> int:
    """The largest multiple of ``multiple`` up to ``most`` for which ``fits`` holds, by doubling and bisection; 0: none."""
    low, high = 0, 1
    while high * multiple <= most and fits(high * multiple):
        low, high = high, 2 * high
    high = min(high, most // multiple + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle * multiple):
            low = middle
        else:
            high = middle
    return low * multiple


def find_batch_size(overrides: list[str], processes: int = 1, most: int = 4096) -> int:
    """The largest batch (over all processes) whose steps fit this machine's memory."""

    def fits(size: int) -> bool:
        try:
            measure([*overrides, f"dataset.batch_size={size}"], steps=1)
        except OutOfMemory:
            return False
        return True

    return largest_batch(fits, most // processes) * processes


def check(
    settings: dict[str, TrainSettings],
    dataset: str,
    scope: str,
    report: Report | None = None,
    *,
    price: str | float | None = None,
    hours: float | None = None,
    budget: float | None = None,
    find_batch: bool = False,
) -> Report:
    """Forecast trainings by notebook: a row for each in ``report.rows``, findings against the budgets (hours, money).

    A language model is forecast only where its codec is there. Raises UserError for an unknown price.
    """
    from training_checks.preflight import overrides_of

    report = report or Report(f"forecast on {dataset}")
    per_hour = prices.per_hour(price)
    total = 0.0
    for name, item in settings.items():
        if getattr(item, "pretrained", ""):
            report.add("ok", f"{name} forecast", "a published codec: nothing to train")
            continue
        overrides, known = overrides_of(item, dataset, scope)
        if isinstance(item, LanguageModelSettings) and not known:
            report.add("note", f"{name} forecast", "its codec is not trained yet", "run 04_train_codec, then ask again")
            continue
        own = item.batch_size // item.processes or 1
        try:
            measured = measure([*overrides, f"dataset.batch_size={own}"])
        except OutOfMemory as error:
            fits = f"; {find_batch_size(overrides, item.processes)} fit" if find_batch else ""
            todo = "a smaller batch_size" + ("" if find_batch else " (--find-batch finds it)")
            report.add("fault", f"{name} memory", f"a batch of {item.batch_size} does not fit: {error}{fits}", todo)
            continue
        total += _add_row(report, name, item, measured, per_hour)
        if find_batch:
            most = find_batch_size(overrides, item.processes)
            report.add(
                "ok" if most >= item.batch_size else "fault", f"{name} batch", f"up to {most} examples fit; {item.batch_size} are asked for"
            )
    report.figures |= {"forecast_seconds": total, "forecast_cost": per_hour.of(total)}
    _judge(report, total, per_hour, hours, budget)
    return report


def _add_row(report: Report, name: str, item: TrainSettings, measured: Measured, per_hour: prices.Price) -> float:
    seconds = item.epochs * (item.updates_per_epoch * measured.step_seconds + measured.valid_seconds)
    weights = 4 * measured.parameters
    disk = STATE_COPIES * weights + (item.epochs // item.keep_weights_every + 1) * weights
    report.rows.append(
        {
            "notebook": name,
            "steps": item.epochs * item.updates_per_epoch,
            "steps/s": round(1 / measured.step_seconds, 3),
            "hours": round(seconds / 3600, 3),
            "memory GB": round(measured.memory / 1e9, 2),
            "disk GB": round(disk / 1e9, 2),
            "parameters": measured.parameters,
            "cost": prices.text(per_hour.of(seconds), per_hour.currency),
        }
    )
    row = report.rows[-1]
    cost = f"{row['cost']} ({per_hour.what})" if per_hour.hourly is not None else row["cost"]
    message = f"{row['steps']} steps at {row['steps/s']:g} a second are {row['hours']:g} h, {cost}; {row['memory GB']:g} GB of memory"
    report.add("ok", f"{name} forecast", message)
    limit = _memory(measured.device)
    if limit and measured.memory > 0.95 * limit:
        report.add("warning", f"{name} memory", f"{measured.memory / 1e9:.1f} of {limit / 1e9:.1f} GB are used", "a smaller batch_size")
    free = machine.disk()[0]
    if disk > free:
        message = f"its checkpoints take about {disk / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
        report.add("fault", f"{name} disk", message, "a larger keep_weights_every, or a larger volume (MUSIC_OUTPUTS)")
    return seconds


def _memory(device: str) -> int:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_properties(0).total_memory
    return machine.memory_limit()


def _judge(report: Report, seconds: float, per_hour: prices.Price, hours: float | None, budget: float | None) -> None:
    if hours is not None and seconds > 3600 * hours:
        report.add("fault", "time", f"{seconds / 3600:.2f} h are needed, {hours:g} h are allowed", "fewer epochs, or more GPUs")
    if budget is None or not seconds:
        return
    cost = per_hour.of(seconds)
    if cost is None:
        report.add("warning", "money", f"no price is known for {per_hour.what}", "--price, or a line in model_config/prices.yaml")
    elif cost > budget:
        amounts = f"{prices.text(cost, per_hour.currency)} are needed, {prices.text(budget, per_hour.currency)} are allowed"
        report.add("fault", "money", amounts, "fewer epochs, a cheaper GPU, or a smaller model")


# The measuring process


def _measure(out: Path, name: str, steps: int, overrides: list[str]) -> None:
    import torch

    from music_training.musicgen import train

    few = ["optim.epochs=1", f"optim.updates_per_epoch={steps + 1}", "logging.every=1", f"run={name}"]
    try:
        train.main([*overrides, *few])
    except torch.OutOfMemoryError as error:
        files.write_json(out, {"out_of_memory": str(error).splitlines()[0]})
        return
    rows = runs.read_metrics(runs.folder() / name)
    train_rows = [row for row in rows if row["stage"] == "train"]
    valid = next((row["seconds"] for row in rows if row["stage"] == "valid"), 0.0)
    cuda = torch.cuda.is_available()
    import resource

    weights = runs.folder() / name / "ckpt" / "best" / "model.safetensors"
    cfg = train.compose(overrides)
    files.write_json(
        out,
        {
            "step_seconds": statistics.median(row["seconds"] for row in train_rows[1:]),
            "valid_seconds": valid,
            "memory": torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "parameters": _parameters(weights),
            "batch_size": cfg.dataset.batch_size,
            "device": "cuda" if cuda and cfg.device != "cpu" else "cpu",
        },
    )


def _parameters(weights: Path) -> int:
    """How many numbers a safetensors file holds, from its header."""
    with open(weights, "rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    total = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            count = 1
            for size in tensor["shape"]:
                count *= size
            total += count
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description="Takes a few real steps and writes down what they took; preflight.py --forecast calls it.")
    parser.add_argument("out", type=Path, help="the JSON file to write")
    parser.add_argument("run", help="the name of the run folder, which the caller removes")
    parser.add_argument("steps", type=int, help="how many steps to time")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides, as scripts/train_audiocraft.py takes them")
    args = parser.parse_args()
    _measure(args.out, args.run, args.steps, args.overrides)


if __name__ == "__main__":
    run_command(main)
