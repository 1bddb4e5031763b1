"""Checks tracks with stems before anything is trained on them: ``python -m music_training.lora_demucs verify DIR``.

Each finding names the track, the stem and the figure. ``fail`` spoils training and fails the track; ``warn`` is worth a
look; ``note`` is for information. Stems are compared with what the mixture leaves when the others are taken away.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy
import soundfile

from .. import files, parallel, stages
from ..errors import UserError
from ..library import audio
from ..progress import progress
from . import findings
from .findings import Finding, decibels, power

MIXTURES = ("mixture", "mix")
PARTS = {"drums": {"kick", "hihat"}}  # a stem that is the sum of others does not count twice
RESIDUAL_FAIL, RESIDUAL_WARN = -40.0, -60.0  # dB below the mixture
SIZES = {  # songs and minutes: training, validation
    "professional": ((200, 1200), (40, 240)),
    "optimal": ((50, 300), (15, 90)),
    "minimum": ((20, 120), (5, 30)),
}


@dataclass
class TrackReport:
    """What was found in a track; ``figures`` per stem: seconds, peak, RMS in dB."""

    track: str
    split: str
    seconds: float = 0.0
    loudness: float | None = None
    findings: list[Finding] = field(default_factory=list)
    figures: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether nothing in the track fails."""
        return all(finding.level != "fail" for finding in self.findings)


@dataclass
class Report:
    """All tracks, and what holds for the set."""

    tracks: list[TrackReport]
    findings: list[Finding]

    @property
    def passed(self) -> bool:
        """Whether every track passed."""
        return all(track.passed for track in self.tracks) and all(finding.level != "fail" for finding in self.findings)

    def text(self) -> str:
        """One line per finding and a verdict per track."""
        lines = []
        for track in self.tracks:
            name = f"{track.split}/{track.track}" if track.split else track.track
            lines += [f"{name}: {item.level}: {f'{item.stem}: ' if item.stem else ''}{item.text}" for item in track.findings]
            lines.append(f"{name}: {'ok' if track.passed else 'FAILED'} ({len(track.figures)} files, {track.seconds:.1f} s)")
        lines += [f"set: {item.level}: {item.text}" for item in self.findings]
        failed = sum(not track.passed for track in self.tracks)
        return "\n".join([*lines, f"{len(self.tracks)} tracks, {failed} failed"])

    def write_page(self, path: Path) -> Path:
        """Write an HTML page with the verdicts, findings and figures."""
        rows = []
        for track in self.tracks:
            found = "".join(
                f"<li class={item.level}>{html.escape(f'{item.stem}: ' if item.stem else '')}{html.escape(item.text)}</li>"
                for item in track.findings
            )
            stems = "<br>".join(
                f"{html.escape(name)}: {item['seconds']:.2f} s, peak {item['peak']:.3f}, {item['rms']:.1f} dB"
                for name, item in track.figures.items()
            )
            verdict = "ok" if track.passed else "failed"
            name = html.escape(f"{track.split}/{track.track}" if track.split else track.track)
            rows.append(f"<tr><th scope=row>{name}</th><td class={verdict}>{verdict}</td><td><ul>{found}</ul></td><td>{stems}</td></tr>")
        general = "".join(f"<li class={item.level}>{html.escape(item.text)}</li>" for item in self.findings)
        style = (
            "body{font-family:sans-serif;max-width:70rem;margin:1rem auto;padding:0 1rem}"
            "td,th{vertical-align:top;text-align:left;padding:.4rem;border-top:1px solid #ccc}"
            ".fail,.failed{color:#a00}.warn{color:#850}.ok{color:#060}ul{margin:0;padding-left:1rem}"
        )
        table = "<tr><th>track</th><th>verdict</th><th>findings</th><th>files</th></tr>" + "".join(rows)
        page = (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Stems</title><style>{style}</style>'
            f"<h1>Stems: {len(self.tracks)} tracks</h1><ul>{general}</ul><table>{table}</table></html>\n"
        )
        return files.write_text(path, page)


@dataclass(frozen=True)
class Job:
    """A track to look at: files by stem, the mixture if there is one."""

    track: str
    split: str
    stems: dict[str, str]
    mixture: str | None


def verify(folder: Path, sources: Sequence[str] | None = None, *, fix: bool = False, workers: int = 0) -> Report:
    """Check ``train|valid/<track>/<stem>``, ``<track>/<stem>`` or one track's folder (stems also in a folder ``stems``)."""
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    splits = [name for name in ("train", "valid", "test") if (folder / name).is_dir()]
    jobs = []
    for split in splits or [""]:
        root = folder / split
        candidates = [path for path in sorted(root.iterdir()) if path.is_dir() and path.name != "stems" and not path.name.startswith(".")]
        made = [job for path in candidates if (job := _job(path, split)).stems]
        jobs += made or ([_job(root, split)] if _job(root, split).stems else [])
    if not jobs:
        raise UserError(f"{folder}: no track with stems in it; it is to hold train|valid/<track>/<stem>.wav")
    return verify_jobs(jobs, sources or common_stems(jobs), fix=fix, workers=workers)


def verify_jobs(jobs: Sequence[Job], sources: Sequence[str], *, fix: bool = False, workers: int = 0) -> Report:
    """Check tracks, in several processes."""
    workers = min(workers or parallel.cores(), len(jobs))
    done = parallel.map_processes(partial(check, sources=tuple(sources), fix=fix), jobs, workers)
    reports = list(progress(done, "verifying", total=len(jobs), unit="tracks"))
    return Report(reports, _of_the_set(reports))


def verify_stage(settings, *, scope: str) -> dict:
    """Check the data set or folder of ``settings``, once: the stage ``verify_stems``; returns the reports as JSON values."""
    from ..library import catalogue

    jobs, inputs = [], []
    if settings.dataset:
        rows = [row for row in catalogue.read(catalogue.path_of(settings.dataset)) if row.stems]
        stems = [{name: str(files.absolute(path)) for name, path in row.stems.items()} for row in rows]
        jobs = [Job(row.id, "", found, str(files.absolute(row.path))) for row, found in zip(rows, stems, strict=True)]
        inputs = [catalogue.path_of(settings.dataset)]
    folder = Path(settings.dset.wav or ".").expanduser()

    def make(draft: stages.Draft) -> stages.Made:
        sources = settings.dset.sources
        found = verify_jobs(jobs, sources) if jobs else verify(folder, sources)
        name = settings.dataset or folder.name
        page = found.write_page(files.outputs_root() / "samples" / f"stems_{name}.html")
        return stages.Made(
            [page], {"page": files.relative(page), "tracks": [{**asdict(item), "passed": item.passed} for item in found.tracks]}
        )

    params = {"dataset": settings.dataset, "folder": settings.dset.wav, "sources": list(settings.dset.sources)}
    return stages.run("verify_stems", make, scope=scope, params=params, inputs=inputs or [folder]).result


def table(result: dict):
    """The verdicts of :func:`verify_stage`: a row per track."""
    import pandas

    rows = [
        {
            "track": item["track"],
            "verdict": "ok" if item["passed"] else "failed",
            "seconds": round(item["seconds"], 1),
            "LUFS": None if item["loudness"] is None else round(item["loudness"], 1),
            "findings": "; ".join(f"{one['stem']} {one['text']}".strip() for one in item["findings"] if one["level"] != "note"),
        }
        for item in result["tracks"]
    ]  # fmt: skip
    return pandas.DataFrame(rows).set_index("track")


def common_stems(jobs: Sequence[Job]) -> tuple[str, ...]:
    """The stems that more than half of the tracks have."""
    names = [name for job in jobs for name in job.stems]
    return tuple(name for name in dict.fromkeys(names) if 2 * names.count(name) > len(jobs))


def _job(folder: Path, split: str) -> Job:
    found = {path.stem: str(path) for path in sorted(folder.iterdir()) if path.suffix.lower() in audio.SUFFIXES and path.is_file()}
    inner = folder / "stems"
    stems = {name: path for name, path in found.items() if name not in MIXTURES}
    if inner.is_dir():
        stems |= {path.stem: str(path) for path in sorted(inner.iterdir()) if path.suffix.lower() in audio.SUFFIXES}
    return Job(folder.name, split, stems, next((found[name] for name in MIXTURES if name in found), None))


def check(job: Job, sources: Sequence[str], fix: bool = False) -> TrackReport:
    """Look at one track; every file is decoded once."""
    report = TrackReport(job.track, job.split)
    found = report.findings
    for name in sources:
        if name not in job.stems and not (name in PARTS and PARTS[name] <= set(job.stems)):
            found.append(Finding("fail", "missing", name, "there is no such stem"))
    paths = {**job.stems, **({"mixture": job.mixture} if job.mixture else {})}
    heard, rates = {}, {}
    for name, path in paths.items():
        found += _of_file(Path(path), name)
        try:
            samples, rates[name] = audio.read(path, channels=True)
        except UserError as error:
            found.append(Finding("fail", "format", name, str(error)))
            continue
        peak = max(float(samples.max(initial=0.0)), -float(samples.min(initial=0.0)))
        report.figures[name] = {"seconds": samples.shape[1] / rates[name], "peak": peak, "rms": decibels(power(samples))}
        faults = findings.in_samples(samples, name, peak)
        found += faults
        if not any(fault.kind == "format" for fault in faults):
            heard[name] = samples
    if not heard:
        return report
    rate, channels = _most(rates[name] for name in heard), _most(len(samples) for samples in heard.values())
    found += _of_the_track(report, heard, rates, rate, channels)
    same = {name: samples for name, samples in heard.items() if rates[name] == rate and len(samples) == channels}
    found += _even(same, paths, rate, fix)
    mixture = same.pop("mixture", None)
    for whole, parts in PARTS.items():
        if parts <= set(same):
            same.pop(whole, None)
    complete = len(same) == len([name for name in job.stems if not (name in PARTS and PARTS[name] <= set(job.stems))])
    if complete:
        found += _of_mixture(mixture, same, rate, job, fix)
    if same:
        found += findings.bleed(same, rate)
        report.loudness = _loudness(mixture if mixture is not None else sum(same.values()), rate)
    order = {"fail": 0, "warn": 1, "note": 2}
    found.sort(key=lambda item: order[item.level])
    return report


def _most(values: Iterable[int]) -> int:
    values = list(values)
    return max(dict.fromkeys(values), key=values.count)


def _of_file(path: Path, name: str) -> list[Finding]:
    try:
        about = soundfile.info(str(path))
    except soundfile.LibsndfileError:
        return []
    if about.format not in ("WAV", "WAVEX", "FLAC", "AIFF"):
        return [Finding("warn", "format", name, f"{about.format}, {about.subtype}: lossy coding moves and smears; WAV is recommended")]
    return [Finding("warn", "depth", name, "8 bit; 16 or 24 are recommended", 8)] if about.subtype in ("PCM_U8", "PCM_S8") else []


def _of_the_track(report: TrackReport, heard: dict[str, numpy.ndarray], rates: dict[str, int], rate: int, channels: int) -> list[Finding]:
    """Rates and channels that differ, and what is recommended of rate and length."""
    found = []
    for name, samples in heard.items():
        if rates[name] != rate:
            found.append(Finding("fail", "rate", name, f"{rates[name]} Hz, the others {rate} Hz", rates[name]))
        if len(samples) != channels:
            found.append(Finding("fail", "channels", name, f"{len(samples)} channel(s), the others {channels}", len(samples)))
    if rate not in (44100, 48000):
        found.append(Finding("note", "rate", "", f"{rate} Hz; 44100 or 48000 is recommended", rate))
    report.seconds = seconds = max(samples.shape[1] / rates[name] for name, samples in heard.items())
    if not 180 <= seconds <= 420:
        found.append(Finding("note", "length", "", f"{seconds:.0f} s long; whole tracks of 3 to 7 minutes are recommended", seconds))
    return found


def _even(same: dict[str, numpy.ndarray], paths: dict[str, str], rate: int, fix: bool) -> list[Finding]:
    """Files that are shorter than the longest; they are padded in ``same``, and on the disk with ``fix``."""
    found, longest = [], max((samples.shape[1] for samples in same.values()), default=0)
    for name, samples in same.items():
        if missing := longest - samples.shape[1]:
            fixed = fix and name != "mixture" and _pad(Path(paths[name]), missing)
            level = "note" if fixed else "fail" if missing > 0.01 * rate else "warn"
            text = f"{missing / rate:.3f} s ({missing} samples) shorter than the longest" + ("; padded with silence" if fixed else "")
            found.append(Finding(level, "length", name, text, missing))
            same[name] = numpy.pad(samples, ((0, 0), (0, missing)))
    return found


def _of_mixture(mixture: numpy.ndarray | None, stems: dict[str, numpy.ndarray], rate: int, job: Job, fix: bool) -> list[Finding]:
    """What the stems do not add up to, and why."""
    total = sum(stems.values())
    if mixture is None:
        fixed = fix and _write_mixture(job, total, rate)
        text = "no mixture; " + ("written from the stems" if fixed else "--fix writes it")
        return [Finding("note" if fixed else "warn", "mixture", "", text)]
    left = mixture - total
    residual = decibels(power(left)) - decibels(power(mixture))
    if residual <= -90:
        return []
    causes = findings.against_mixture(stems, left, rate)
    level = "fail" if residual > RESIDUAL_FAIL else "warn" if residual > RESIDUAL_WARN else "note"
    if fix and level != "note" and not causes and _write_mixture(job, total, rate):
        level, text = "note", f"mixture differed from the stems by {residual:.1f} dB; written anew from them"
    else:
        text = f"mixture and sum of stems differ by {residual:.1f} dB of the mixture"
    return [*causes, Finding(level, "residual", "", text, residual)]


def _loudness(samples: numpy.ndarray, rate: int) -> float | None:
    import pyloudnorm

    if samples.shape[1] < rate or power(samples) < 1e-9:
        return None
    value = float(pyloudnorm.Meter(rate).integrated_loudness(samples.T))
    return value if math.isfinite(value) else None


def _of_the_set(reports: Sequence[TrackReport]) -> list[Finding]:
    found = []
    levels = [report.loudness for report in reports if report.loudness is not None]
    if levels:
        spread = max(levels) - min(levels)
        level = "warn" if spread > 12 else "note"
        found.append(
            Finding(level, "loudness", "", f"loudness {min(levels):.1f} to {max(levels):.1f} LUFS, spread {spread:.1f} LU", spread)
        )
    counts = {}
    for split in ("train", "valid"):
        own = [report for report in reports if report.split == split]
        counts[split] = (len(own), sum(report.seconds for report in own) / 60)
    if counts["train"][0]:
        reached = next((name for name, wanted in SIZES.items() if _enough(counts, wanted)), "")
        has = ", ".join(f"{split} {songs} songs {minutes:.0f} min" for split, (songs, minutes) in counts.items())
        wish = "train 20-30 songs (2-3 h), valid 5-10 songs (30-60 min)"
        found.append(
            Finding("note", "size", "", f"size: {has}: " + (f"{reached} or better" if reached else f"below the minimum of {wish}"))
        )
    return found


def _enough(counts: dict, wanted: tuple) -> bool:
    pairs = zip(counts.values(), wanted, strict=True)
    return all(songs >= least and minutes >= length for (songs, minutes), (least, length) in pairs)


def _pad(path: Path, missing: int) -> bool:
    about = soundfile.info(str(path))
    if about.format not in ("WAV", "WAVEX", "FLAC"):
        return False
    samples, rate = soundfile.read(str(path), dtype="float64", always_2d=True)
    with files.atomic(path) as temporary:
        soundfile.write(temporary, numpy.pad(samples, ((0, missing), (0, 0))), rate, about.subtype, format=about.format)
    return True


def _write_mixture(job: Job, total: numpy.ndarray, rate: int) -> bool:
    first = Path(next(iter(job.stems.values())))
    folder = first.parent.parent if first.parent.name == "stems" else first.parent
    subtype = soundfile.info(str(first)).subtype
    whole = subtype in ("PCM_16", "PCM_24") and float(numpy.abs(total).max(initial=0.0)) < 1.0
    with files.atomic(Path(job.mixture) if job.mixture else folder / "mixture.wav") as temporary:
        soundfile.write(temporary, total.T, rate, subtype if whole else "FLOAT", format="WAV")
    return True
