"""What would spoil a training, before it is paid for: ``python training_checks/preflight.py --profile mini [--forecast]``

Looks at the machine, the data, the resolved configurations of codec and language model and, with ``--forecast``, at
what three real steps take. A finding says what is wrong, its figure and the way out. Severity depends on the profile:
that there is no GPU is no fault in ``mini``. ``--fix`` mends what can be mended without loss.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from music_training import files, profiles, runs, stages
from music_training.errors import UserError, run_command
from music_training.musicgen.training import CodecSettings, LanguageModelSettings, TrainSettings
from training_checks import preflight_config as configs
from training_checks import preflight_data as data
from training_checks import preflight_machine as machine
from training_checks.report import Finding, Report

if TYPE_CHECKING:
    from omegaconf import DictConfig

SMALL = ("mini", "tiny")  # models that a CPU trains
CODEC, LANGUAGE_MODEL = "04_train_codec", "05_train_musicgen"


def is_serious(settings: TrainSettings) -> bool:
    """Whether a model is meant that only a GPU trains."""
    return settings.model.rpartition("_")[2] not in SMALL and not getattr(settings, "pretrained", "")


def check_training(settings: TrainSettings, dataset: str, scope: str = "", sample: int = 60, fix: bool = False) -> Report:
    """Data and configuration of one training, as notebooks 04 and 05 ask for it before they begin.

    ``sample`` clips of each split are decoded (0: all). Raises ConfigError for settings that cannot be resolved.
    """
    report = Report(f"preflight: {settings.model} on {dataset}")
    splits, described = _look_at_data(report, settings, dataset, sample, fix)
    cfg = _compose(settings, dataset, scope)
    found = _look_at_config(cfg, settings, splits, described)
    report.findings += found or [Finding("ok", settings.model, f"{configs.total_steps(cfg)} steps of {cfg.dataset.batch_size} examples")]
    report.findings += machine.shared_memory(configs.loaders(cfg) * settings.processes)
    return report


def check_machine(settings: list[TrainSettings]) -> Report:
    """The machine against trainings: packages, programs, GPU, disk, and where the outputs lie."""
    serious = any(is_serious(item) for item in settings)
    processes = max((item.processes for item in settings), default=1)
    report = Report("preflight: the machine")
    for subject, found in {
        "packages": [*machine.versions(), *machine.packages()],
        "programs": machine.programs(),
        "GPU": machine.gpu(serious, processes),
        "disk": machine.disk(int((50 if serious else 1) * 1e9), 10000 if serious else 1000),
        "outputs": [*machine.place(serious), *machine.leftovers()],
    }.items():
        report.findings += found or [Finding("ok", subject, "as needed")]
    return report


def check(profile: str = "mini", audio_dir: str = "", overrides: list[str] | None = None, sample: int = 60, fix: bool = False) -> Report:
    """The whole preflight of a profile: the machine, then codec and language model; data that is not there yet is passed over.

    ``overrides`` are ``04.key=value`` and ``05.key=value`` texts, as the pipeline takes them.
    """
    dataset, scope = profiles.dataset(profile, audio_dir), profiles.scope(profile, audio_dir)
    settings = settings_of(profile, overrides)
    report = check_machine(list(settings.values()))
    report.title = f"preflight: profile {profile} on {dataset}"
    made = any((files.outputs_root() / "egs" / dataset).glob("*/data.jsonl"))
    if audio_dir and not made:
        _look_at_sources(report, audio_dir, sample)
    for item in settings.values():
        if made:
            part = check_training(item, dataset, scope, sample, fix)
            known = {str(finding) for finding in report.findings}
            report.findings += [finding for finding in part.findings if str(finding) not in known]
        else:
            cfg = _compose(item, dataset, scope)
            found = _look_at_config(cfg, item, [], None)
            report.findings += found or [
                Finding("ok", item.model, f"{configs.total_steps(cfg)} steps of {cfg.dataset.batch_size} examples")
            ]
    listening = profiles.read(profile).notebooks.get("10_listen") or {}
    if LANGUAGE_MODEL in settings:
        cfg = _compose(settings[LANGUAGE_MODEL], dataset, scope)
        report.findings += configs.generation(cfg, listening.get("duration"), listening.get("top_k"))
    if fix:
        report.findings += machine.leftovers(fix=True)
    return report


def settings_of(profile: str, overrides: list[str] | None = None) -> dict[str, TrainSettings]:
    """The trainings of a profile, by notebook."""
    wrong = next((text for text in overrides or [] if not text.startswith(("04.", "05."))), None)
    if wrong:
        raise UserError(f"{wrong}: write it as 04.key=value (the codec) or 05.key=value (the language model)")
    chosen = profiles.read(profile).notebooks
    return {
        name: profiles.settings(cls, name, profile, [text[3:] for text in overrides or [] if text.startswith(name[:2])])
        for name, cls in ((CODEC, CodecSettings), (LANGUAGE_MODEL, LanguageModelSettings))
        if name in chosen
    }


def _look_at_data(report: Report, settings: TrainSettings, dataset: str, sample: int, fix: bool) -> tuple[list[data.Split], float | None]:
    splits, found = data.read_splits(dataset)
    limits = data.Limits(segment_seconds=settings.segment_seconds)
    speaks = isinstance(settings, LanguageModelSettings)
    faults = data.listen(data.chosen(splits, sample), limits)
    whole = sum(len(split.rows) for split in splits)
    if len(data.chosen(splits, sample)) < whole:  # of the rest only whether it is there
        rest = data.listen(data.chosen(splits, 0), limits, sound=False)
        faults.by_kind |= rest.by_kind
    for split in splits:
        found += data.lengths(split, limits)
    if fix:
        found += data.drop_bad(splits, faults)
        faults.by_kind = {kind: items for kind, items in faults.by_kind.items() if kind not in ("missing", "undecodable", "not finite")}
    found += data.audio_findings(faults, "audio", whole)
    found += data.sidecars(splits, speaks, sample, fix)
    found += data.leakage(dataset) if splits else []
    report.findings += found or [Finding("ok", "data", f"{whole} clips, {faults.looked_at} of them decoded")]
    report.figures |= {"clips": {split.name: len(split.rows) for split in splits}, "decoded": faults.looked_at}
    captions = [
        (files.read_json(files.absolute(path).with_suffix(".json")) or {}).get("description") for path, _ in data.chosen(splits, sample)
    ]
    return splits, sum(map(bool, captions)) / len(captions) if captions else None


def _look_at_sources(report: Report, audio_dir: str, sample: int) -> None:
    """A person's own folder before it is segmented: rate and channels may be any."""
    from music_training.library.sources import folder

    paths = list(folder.find(Path(audio_dir).expanduser().resolve()))
    if not paths:
        raise UserError(f"{audio_dir}: no audio files in it")
    count = min(sample, len(paths)) if sample else len(paths)
    faults = data.listen([(str(paths[number * len(paths) // count]), 0.0) for number in range(count)], data.Limits(), raw=True)
    found = []
    for finding in data.audio_findings(faults, "source", len(paths)):  # 03_segment_audio rejects these by itself and says so
        left_out = finding.severity in ("warning", "fault")
        found.append(Finding("note", finding.subject, finding.message, "03_segment_audio leaves it out" if left_out else finding.todo))
    report.findings += found or [Finding("ok", "sources", f"{len(paths)} files, {faults.looked_at} of them decoded")]


def _look_at_config(cfg: DictConfig, settings: TrainSettings, splits: list[data.Split], described: float | None) -> list[Finding]:
    if getattr(settings, "pretrained", ""):
        return []
    clips = next((len(split.rows) for split in splits if split.name == "train"), None)
    found = [*configs.precision(cfg), *configs.schedule(cfg), *configs.checkpoints(cfg)]
    found += configs.data_against_batch(cfg, clips, settings.processes)
    if settings.run_name and (runs.folder() / settings.run_name).is_dir():
        found += configs.finished(runs.folder() / settings.run_name, cfg)
    if cfg.solver == "compression":
        return found + configs.codebooks(cfg, settings.processes)
    return (
        found + configs.conditioning(cfg, described) + configs.codec_against_model(cfg, configs.codec_of(cfg.compression_model_checkpoint))
    )


def overrides_of(settings: TrainSettings, dataset: str, scope: str = "") -> tuple[list[str], bool]:
    """The Hydra overrides of a training, and whether what it builds on is known.

    A language model takes the codec it names, else the one trained last in ``scope``; without one yet, the tree's own.
    """
    overrides = settings.overrides(dataset)
    if not isinstance(settings, LanguageModelSettings):
        return overrides, True
    codec = settings.codec
    if codec is None and scope:
        try:
            codec = stages.latest("train_codec", scope, CODEC)["codec"]
        except UserError:  # not trained yet
            return overrides, False
    if codec is None:
        return overrides, False
    reference = codec if files.absolute(codec).exists() else f"//pretrained/{codec.removeprefix('//pretrained/')}"
    return [*overrides, f"compression_model_checkpoint={reference}"], True


def _compose(settings: TrainSettings, dataset: str, scope: str) -> DictConfig:
    from music_training.musicgen.train import compose

    return compose(overrides_of(settings, dataset, scope)[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="mini", help="what is to be trained (default: %(default)s)")
    parser.add_argument("--audio-dir", default="", help="the folder that the pipeline is run on, if one is")
    parser.add_argument("-p", dest="overrides", action="append", default=[], metavar="04.key=value", help="a setting of notebook 04 or 05")
    parser.add_argument("--sample", type=int, default=60, help="clips of each split to decode; 0: all (default: %(default)s)")
    parser.add_argument("--fix", action="store_true", help="mend what can be mended without loss")
    parser.add_argument("--explain", type=Path, metavar="LOG", help="only say what a known error in a log means")
    parser.add_argument("--forecast", action="store_true", help="take 3 real steps of each training: time, memory, money")
    parser.add_argument("--price", help="of an hour: a number, or a GPU of model_config/prices.yaml such as 4xH200")
    parser.add_argument("--hours", type=float, help="the budget in hours")
    parser.add_argument("--budget", type=float, help="the budget in money")
    parser.add_argument("--find-batch", action="store_true", help="with --forecast: the largest batch that fits, by bisection (GPU)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.explain:
        return explain(args.explain).print(args.json)
    report = check(args.profile, args.audio_dir, args.overrides, args.sample, args.fix)
    if args.forecast:
        from training_checks import forecast

        dataset, scope = profiles.dataset(args.profile, args.audio_dir), profiles.scope(args.profile, args.audio_dir)
        ask = {"price": args.price, "hours": args.hours, "budget": args.budget, "find_batch": args.find_batch}
        forecast.check(settings_of(args.profile, args.overrides), dataset, scope, report, **ask)
    return report.print(args.json)


def explain(log: Path) -> Report:
    """What a known error in a log means, and what to do."""
    report = Report(f"known errors in {log}")
    known = machine.explain(log.read_text(encoding="utf-8", errors="replace"))
    if known:
        report.add("fault", known[1], known[0], known[2])
    else:
        report.add("ok", "log", "no error that is known here")
    return report


if __name__ == "__main__":
    run_command(main)
