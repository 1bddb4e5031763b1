"""Does the verifier of stems find what is wrong with a track, and does it leave clean ones alone?

``python benchmarks/stem_verifier.py [--artists 12] [--seconds 36 60]`` composes studio tracks (synthetic, two of an artist),
checks them as they are, and again with one stem tampered with in every way of the table; the stems take turns. A fault
counts as found where a failing finding names its kind and stem; as blamed on others where one names a clean stem.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy
import soundfile
import soxr

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

STEMS = ("other", "kick", "vocals", "bass", "hihat")
Stems = dict[str, numpy.ndarray]


def shifted(count: int):
    """A stem that comes ``count`` samples late."""

    def change(stems: Stems, name: str) -> None:
        stems[name] = numpy.concatenate([numpy.zeros((count, 2)), stems[name][:-count]])

    return change


def flipped(stems: Stems, name: str) -> None:
    """The other polarity."""
    stems[name] = -stems[name]


def bleeding(stems: Stems, name: str, delay: int = 0) -> None:
    """The next stem in it at -40 dB."""
    stems[name] = stems[name] + 0.01 * numpy.roll(stems[neighbour(stems, name)], delay, 0)


def late_bleeding(stems: Stems, name: str) -> None:
    """The same, 200 samples later."""
    bleeding(stems, name, 200)


def clipped(stems: Stems, name: str) -> None:
    """Recorded 6 dB too loud and turned down."""
    peak = numpy.abs(stems[name]).max() / 2
    stems[name] = numpy.clip(stems[name], -peak, peak)


def mixed(change):
    """The fault, and the mixture is the sum of the stems as they are then."""

    def both(stems: Stems, name: str) -> None:
        change(stems, name)
        stems["mixture"] = sum(stems[one] for one in STEMS)

    return both


# fault -> what is done and the kind of the finding
FAULTS = {
    "1 sample late": (shifted(1), "alignment"),
    "100 samples late": (shifted(100), "alignment"),
    "polarity flipped": (flipped, "polarity"),
    "another stem at -40 dB": (bleeding, "bleed"),
    "the same, in the mixture, too": (mixed(bleeding), "bleed"),
    "the same, 4.5 ms late, in the mixture, too": (mixed(late_bleeding), "bleed"),
    "clipped by 6 dB": (clipped, "clipping"),
    "clipped by 6 dB in the mixture, too": (mixed(clipped), "clipping"),
    "at 48 kHz": (lambda stems, name: None, "rate"),
}


def neighbour(stems: Stems, name: str) -> str:
    """The next stem that sounds."""
    order = [*STEMS, *STEMS]
    return next(one for one in order[order.index(name) + 1 :] if sounds(stems[one]))


def sounds(samples: numpy.ndarray) -> bool:
    """Whether a stem is louder than -60 dB."""
    return float(numpy.mean(samples**2)) > 1e-6


def tampered(job, fault: str, number: int, folder: Path):
    """The job with one stem tampered with, its changed files in ``folder``: ``(job, stem, the stem that bleeds into it)``."""
    from dataclasses import replace

    paths = {**job.stems, "mixture": job.mixture}
    stems = {name: soundfile.read(path)[0] for name, path in paths.items()}
    usable = [name for name in STEMS if sounds(stems[name])]
    stem = usable[number % len(usable)]
    before = dict(stems)
    FAULTS[fault][0](stems, stem)
    for name in stems:
        if stems[name] is not before[name] or name == stem:
            rate, samples = 44100, stems[name]
            if fault == "at 48 kHz":
                rate, samples = 48000, soxr.resample(samples, 44100, 48000)
            paths[name] = str(folder / f"{name}.wav")
            soundfile.write(paths[name], samples, rate, "PCM_24")
    paths.pop("drums", None)  # its parts are judged
    mixture = paths.pop("mixture")
    return replace(job, stems=paths, mixture=mixture), stem, neighbour(before, stem)


def main() -> None:
    """Compose, check, tamper, check, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--artists", type=int, default=12)
    parser.add_argument("--seconds", type=int, nargs=2, default=(36, 60))
    parser.add_argument("--faults", nargs="+", default=list(FAULTS), choices=FAULTS, metavar="FAULT", help=f"of {', '.join(FAULTS)}")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MUSIC_OUTPUTS"] = folder
        from music_training import files
        from music_training.library import catalogue
        from music_training.library.sources import studio
        from music_training.lora_demucs import verify

        settings = studio.StudioSettings(artists=arguments.artists, seconds=tuple(arguments.seconds), dialogues=0)
        studio.compose_library(settings, "benchmark", "benchmark")
        rows = catalogue.read(catalogue.path_of("benchmark"))
        jobs = [
            verify.Job(row.id, "", {name: str(files.absolute(path)) for name, path in row.stems.items()}, str(files.absolute(row.path)))
            for row in rows
        ]
        verify.check(jobs[0], STEMS)  # what is imported and cached is not measured
        start, reports = time.process_time(), [verify.check(job, STEMS) for job in jobs]
        spent = time.process_time() - start
        minutes = sum(report.seconds for report in reports) / 60
        loud = [f"{report.track}: {item.text}" for report in reports for item in report.findings if item.level != "note"]
        print(f"{len(jobs)} clean tracks of {minutes:.1f} min: {len(loud)} warnings or failures; {spent / minutes:.2f} CPU s a minute")
        print("\n".join(loud))
        print(f"{'fault':45s} {'tracks':>6s} {'found':>6s} {'blamed on others':>17s} {'CPU s a minute':>15s}")
        for fault in arguments.faults:
            kind = FAULTS[fault][1]
            hits = wrong = 0
            spent = 0.0
            for number, job in enumerate(jobs):
                with tempfile.TemporaryDirectory() as changed:
                    made, stem, source = tampered(job, fault, number, Path(changed))
                    start = time.process_time()
                    report = verify.check(made, STEMS)
                    spent += time.process_time() - start
                failed = [item for item in report.findings if item.level == "fail" and item.kind not in ("residual", "length")]
                named = {stem, source} if kind == "bleed" else {stem}
                hits += any(item.kind == kind and item.stem in named for item in failed)
                wrong += any(item.stem not in named for item in failed)
                for item in failed if any(item.stem not in named for item in failed) else []:
                    print(f"  {job.track}, {stem}: {item.stem}: {item.text}")
            print(f"{fault:45s} {len(jobs):6d} {hits:6d} {wrong:17d} {spent / minutes:15.2f}", flush=True)


if __name__ == "__main__":
    main()
