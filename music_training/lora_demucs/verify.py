"""Checks tracks with stems before anything is trained on them: ``python -m music_training.lora_demucs verify DIR``.

Each finding names the track, the stem and the figure. ``fail`` spoils training and fails the track; ``warn`` is worth a
look; ``note`` is for information. Stems are compared with what the mixture leaves when the others are taken away.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy
import soundfile

from .. import files, parallel, stages
from ..errors import UserError
from ..library import audio
from ..progress import progress

MIXTURES = ("mixture", "mix")
PARTS = {"drums": {"kick", "hihat"}}  # a stem that is the sum of others does not count twice
FRAME = 4096  # samples
RESIDUAL_FAIL, RESIDUAL_WARN = -40.0, -60.0  # dB below the mixture
SILENT = -70.0  # dB of RMS
BLEED_LEAST = -60.0  # dB of a stem in another one
SIZES = {  # songs and minutes: training, validation
    "professional": ((200, 1200), (40, 240)),
    "optimal": ((50, 300), (15, 90)),
    "minimum": ((20, 120), (5, 30)),
}


@dataclass(frozen=True)
class Finding:
    """What was found in a stem (empty: in the track): ``level`` fail, warn or note, ``kind`` and the text with its figure."""

    level: str
    kind: str
    stem: str
    text: str
    value: float | None = None


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
    """Look at one track."""
    report = TrackReport(job.track, job.split)
    add = report.findings.append
    for name in sources:
        if name not in job.stems and not (name in PARTS and PARTS[name] <= set(job.stems)):
            add(Finding("fail", "missing", name, "there is no such stem"))
    paths = {**job.stems, **({"mixture": job.mixture} if job.mixture else {})}
    heard, rates = {}, {}
    for name, path in paths.items():
        _look_at_file(Path(path), name, add)
        try:
            samples, rates[name] = audio.read(path, channels=True)
        except UserError as error:
            add(Finding("fail", "format", name, str(error)))
            continue
        heard[name] = samples
        report.figures[name] = _figures(samples, rates[name])
        _look_at_samples(samples, name, add)
    if not heard:
        return report
    rate = max(set(rates.values()), key=list(rates.values()).count)
    channels = [len(samples) for samples in heard.values()]
    for name, samples in heard.items():
        if rates[name] != rate:
            add(Finding("fail", "rate", name, f"{rates[name]} Hz, the others {rate} Hz", rates[name]))
        if len(samples) != max(set(channels), key=channels.count):
            add(
                Finding(
                    "fail",
                    "channels",
                    name,
                    f"{len(samples)} channel(s), the others {max(set(channels), key=channels.count)}",
                    len(samples),
                )
            )
    if rate not in (44100, 48000):
        add(Finding("note", "rate", "", f"{rate} Hz; 44100 or 48000 is recommended", rate))
    report.seconds = max(samples.shape[1] / rates[name] for name, samples in heard.items())
    if not 180 <= report.seconds <= 420:
        add(Finding("note", "length", "", f"{report.seconds:.0f} s long; whole tracks of 3 to 7 minutes are recommended", report.seconds))
    same = {name: samples for name, samples in heard.items() if rates[name] == rate and len(samples) == len(next(iter(heard.values())))}
    longest = max(samples.shape[1] for samples in same.values())
    for name, samples in same.items():
        missing = longest - samples.shape[1]
        if missing:
            fixed = fix and name != "mixture" and _pad(Path(paths[name]), missing)
            level = "note" if fixed else "fail" if missing > 0.01 * rate else "warn"
            text = f"{missing / rate:.3f} s ({missing} samples) shorter than the longest" + ("; padded with silence" if fixed else "")
            add(Finding(level, "length", name, text, missing))
        same[name] = numpy.pad(samples, ((0, 0), (0, missing)))
    mixture = same.pop("mixture", None)
    for whole, parts in PARTS.items():
        if parts <= set(same):
            same.pop(whole, None)
    complete = len(same) == len([name for name in job.stems if not (name in PARTS and PARTS[name] <= set(job.stems))])
    if complete:
        _look_at_mixture(mixture, same, rate, job, fix, add)
    _look_for_bleed(same, add)
    report.loudness = _loudness(mixture if mixture is not None else sum(same.values()), rate) if same else None
    order = {"fail": 0, "warn": 1, "note": 2}
    report.findings.sort(key=lambda item: order[item.level])
    return report


def _look_at_file(path: Path, name: str, add) -> None:
    try:
        about = soundfile.info(str(path))
    except soundfile.LibsndfileError:
        return
    if about.format not in ("WAV", "WAVEX", "FLAC", "AIFF"):
        add(Finding("warn", "format", name, f"{about.format}, {about.subtype}: lossy coding moves and smears; WAV is recommended"))
    elif about.subtype in ("PCM_U8", "PCM_S8"):
        add(Finding("warn", "depth", name, "8 bit; 16 or 24 are recommended", 8))


def _figures(samples: numpy.ndarray, rate: int) -> dict[str, float]:
    peak = float(numpy.abs(samples).max(initial=0.0))
    return {"seconds": samples.shape[1] / rate, "peak": peak, "rms": _decibels(_power(samples))}


def _look_at_samples(samples: numpy.ndarray, name: str, add) -> None:
    if not numpy.isfinite(samples).all():
        add(Finding("fail", "format", name, "holds values that are not numbers"))
        return
    peak, level = float(numpy.abs(samples).max(initial=0.0)), _decibels(_power(samples))
    if level < SILENT:
        add(Finding("warn", "silence", name, f"silent ({level:.0f} dB): nothing to learn from", level))
        return
    flat = _flat_runs(samples, peak)
    if peak > 1.0:
        add(Finding("fail", "clipping", name, f"peak {peak:.3f} lies above full scale: an integer file of it would clip", peak))
    elif flat >= 5:
        add(Finding("fail", "clipping", name, f"clipped: its peak {peak:.3f} is a plateau in {flat} places", flat))
    elif (true := _true_peak(samples, peak)) > 1.0:
        add(Finding("warn", "true_peak", name, f"true peak {true:.3f} between samples lies above full scale", true))
    offset = float(numpy.abs(samples.mean(1)).max())
    if offset > 0.005:
        add(Finding("fail" if offset > 0.02 else "warn", "dc", name, f"constant offset {offset:.4f}", offset))


def _flat_runs(samples: numpy.ndarray, peak: float) -> int:
    """How often three or more samples in a row lie at the peak behind a corner: the top of a low tone is flat, but round."""
    level = numpy.abs(samples)
    top = level >= peak * (1 - 1e-4)
    starts = top[:, 1:-2] & top[:, 2:-1] & top[:, 3:] & (level[:, :-3] < peak * (1 - 5e-3))
    return int(starts.sum())


def _true_peak(samples: numpy.ndarray, peak: float) -> float:
    """The peak between samples (4 x oversampling as in ITU-R BS.1770), looked for around the largest samples."""
    from scipy.signal import resample_poly

    if peak < 0.7:
        return peak
    best = peak
    for channel in numpy.abs(samples):
        for place in numpy.argpartition(channel, -20)[-20:] if len(channel) > 20 else range(len(channel)):
            around = samples[:, max(0, place - 48) : place + 48]
            best = max(best, float(numpy.abs(resample_poly(around, 4, 1, axis=1)[:, 96:-96]).max(initial=0.0)))
    return best


def _look_at_mixture(mixture, stems: dict[str, numpy.ndarray], rate: int, job: Job, fix: bool, add) -> None:
    total = sum(stems.values())
    if mixture is None:
        fixed = fix and _write_mixture(job, total, rate)
        add(
            Finding("note" if fixed else "warn", "mixture", "", "no mixture; " + ("written from the stems" if fixed else "--fix writes it"))
        )
        return
    loud = _power(mixture)
    left = mixture - total
    residual = _decibels(_power(left)) - _decibels(loud)
    if residual <= -90:
        return
    causes = []
    for name, samples in stems.items():
        if _power(samples) > 1e-9:
            causes += _compare(name, samples.mean(0), (left + samples).mean(0), rate)
    for cause in causes:
        add(cause)
    doubled = [] if causes else _doubled(left.mean(0), stems)
    for cause in doubled:
        add(cause)
    level = "fail" if residual > RESIDUAL_FAIL else "warn" if residual > RESIDUAL_WARN else "note"
    if fix and level != "note" and not causes and not doubled and _write_mixture(job, total, rate):
        add(Finding("note", "residual", "", f"mixture differed from the stems by {residual:.1f} dB; written anew from them", residual))
    else:
        add(Finding(level, "residual", "", f"mixture and sum of stems differ by {residual:.1f} dB of the mixture", residual))


def _compare(name: str, stem: numpy.ndarray, wanted: numpy.ndarray, rate: int) -> list[Finding]:
    """Lag and polarity of a stem against what the mixture leaves for it, by cross-correlation."""
    from scipy.fft import irfft, next_fast_len, rfft

    size = next_fast_len(len(stem) + rate, real=True)
    one, other = rfft(wanted, size), rfft(stem, size)
    curve = irfft(one * other.conj(), size)
    reach = min(rate, len(stem) - 1)
    curve = numpy.concatenate([curve[-reach:], curve[: reach + 1]])
    strength = curve / (math.sqrt(float(wanted @ wanted) * float(stem @ stem)) + 1e-12)
    place = int(numpy.abs(strength).argmax())
    lag, value = reach - place, float(strength[place])
    if abs(value) < 0.3:
        return (
            []
            if abs(value) > 0.05
            else [Finding("fail", "alignment", name, f"is not part of the mixture (correlation {value:.2f})", value)]
        )
    found = []
    if lag and abs(value) > abs(float(strength[reach])) * 1.0001:
        word = "late" if lag > 0 else "early"
        found.append(Finding("fail", "alignment", name, f"{abs(lag)} sample(s) {word} ({1000 * abs(lag) / rate:.2f} ms)", lag))
    if value < 0:
        found.append(Finding("fail", "polarity", name, f"polarity is flipped (correlation {value:.2f})", value))
    return found


def _doubled(left: numpy.ndarray, stems: dict[str, numpy.ndarray]) -> list[Finding]:
    """A stem that is in the sum of the stems too often or too little: what the mixture leaves is a copy of it."""
    found = []
    for name, samples in stems.items():
        stem = samples.mean(0)
        energy = float(stem @ stem)
        if energy > 1e-9 and abs(float(left @ stem)) > 0.9 * math.sqrt(energy * float(left @ left)):
            gain = float(left @ stem) / energy
            level, word = 20 * math.log10(abs(gain)), "too much" if gain < 0 else "missing"
            grade = "fail" if level > BLEED_LEAST else "note"
            found.append(
                Finding(grade, "bleed", name, f"{level:.1f} dB of it is {word} in the stems: another stem holds it as bleed", level)
            )
    return found


def _look_for_bleed(stems: dict[str, numpy.ndarray], add) -> None:
    """A stem in another one: where the other is all but silent, it is a copy of the first."""
    mono = {name: samples.mean(0) for name, samples in stems.items() if _power(samples) > 1e-9}
    count = min((len(samples) for samples in mono.values()), default=0) // FRAME
    if count < 8:
        return
    frames = {name: samples[: count * FRAME].reshape(count, FRAME).astype(numpy.float64) for name, samples in mono.items()}
    energy = {name: numpy.einsum("ij,ij->i", part, part) for name, part in frames.items()}
    for name, part in frames.items():
        for other, source in frames.items():
            loud = energy[other] > 0.1 * energy[other].max()
            quiet = loud & (energy[name] < 10**-2.5 * energy[other]) & (energy[name] > 0)
            if name == other or quiet.sum() < 5:
                continue
            product = numpy.einsum("ij,ij->i", part[quiet], source[quiet])
            alike = abs(float(product.sum())) / math.sqrt(float(energy[name][quiet].sum()) * float(energy[other][quiet].sum()))
            level = 20 * math.log10(abs(float(product.sum())) / float(energy[other][quiet].sum()) + 1e-12)
            if alike > 0.7 and level > BLEED_LEAST:
                add(
                    Finding(
                        "fail", "bleed", name, f"holds {other} at {level:.1f} dB (correlation {alike:.2f} where it should be quiet)", level
                    )
                )


def _loudness(samples: numpy.ndarray, rate: int) -> float | None:
    import pyloudnorm

    if samples.shape[1] < rate or _power(samples) < 1e-9:
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


def _power(samples: numpy.ndarray) -> float:
    flat = samples.ravel()
    return float(numpy.dot(flat, flat)) / max(flat.size, 1)


def _decibels(power: float) -> float:
    return 10 * math.log10(power + 1e-20)
