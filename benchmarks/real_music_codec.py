"""How well does a small codec learn real music? ``python benchmarks/real_music_codec.py --minutes 60 [--data DIR] [--device cuda]``

2.2 kbit/s at 32 kHz (4 codebooks of 2,048 codes, 50 frames a second), without discriminators unless ``--adversarial``.
Every recording of ten seconds or more under DATA (speech left out; the stems of one song count as one recording) is left
out once, and the codec is trained on the others for its share of ``--minutes``; at each of ten points of a training SI-SNR,
SDR, mel distance and the share of codes in use are measured on the recording that was left out.

A pilot says how many steps fit. The same command goes on where it was stopped; pictures and the table of all points are
in ``outputs/benchmarks/real_music/``. On a quiet machine it takes the minutes it is given and about ten more.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from music_training import files, runs
from music_training.library import audio
from music_training.musicgen.models import load_codec
from music_training.musicgen.training import SCRIPT
from training_checks.codec_quality_check import check

RATE, SECONDS, POINTS, PILOT = 32000, 5.0, 10, 6
SPEECH = ("pyannote", "lhotse", "ami", "5703-47212-0000")
SONGS = ("mdn_stems", "babyslakh")  # folders that hold the stems of one song
CODEC = [
    "solver=compression",
    "model=codec_base",
    "seanet.n_filters=16",
    "seanet.lstm=0",
    "rvq.n_q=4",
    "rvq.bins=2048",
    "rvq.kmeans_iters=10",
    "rvq.threshold_ema_dead_code=0.05",
    "rvq.decay=0.97",
    "losses.l1=0.1",
    "+losses.l2=1.0",
    "losses.msspec=0.02",
    "+later.losses.msspec=10",
    "msspec.range_start=8",
    "dataset.batch_size=8",
    "dataset.segment_duration=0.5",
    "dataset.valid.num_samples=8",
    "optim.lr=1e-3",
    "optim.ema.decay=0.95",
    "schedule.lr_scheduler=cosine",
    "schedule.cosine.lr_min_ratio=0.05",
    "checkpoint.every_minutes=1",
]


def recordings(folder: Path) -> dict[str, list[Path]]:
    """Files of ten seconds and more by the recording that they belong to."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in (".wav", ".flac", ".ogg", ".mp3") or any(word in str(path.relative_to(folder)) for word in SPEECH):
            continue
        signal, _ = audio.read(path, RATE)
        if len(signal) >= 10 * RATE:
            song = next((part for part in path.parts if part in SONGS), path.stem)
            found.setdefault(song, []).append(path)
    return found


def segment(found: dict[str, list[Path]]) -> dict[str, list[str]]:
    """Cut the recordings into clips of 5 s; the manifest lines by recording."""
    import soundfile

    lines: dict[str, list[str]] = {}
    for number, (song, paths) in enumerate(found.items()):
        for place, path in enumerate(paths):
            signal, _ = audio.read(path, RATE)
            for index in range(int(len(signal) / RATE / SECONDS)):
                clip = files.outputs_root() / "segments" / "real_music" / f"r{number}t{place}_{index:04d}.wav"
                clip.parent.mkdir(parents=True, exist_ok=True)
                begin = int(index * SECONDS * RATE)
                soundfile.write(clip, signal[begin : begin + int(SECONDS * RATE)], RATE, subtype="PCM_16")
                line = dict(path=files.relative(clip), duration=SECONDS, sample_rate=RATE, amplitude=None, weight=None, info_path=None)
                lines.setdefault(song, []).append(json.dumps(line))
    return lines


def train(overrides: list[str], run: str) -> None:
    log = files.outputs_root() / "benchmarks" / "real_music" / f"{run}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a") as stream:
        command = [sys.executable, str(SCRIPT), *CODEC, *overrides, f"run={run}"]
        ended = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONWARNINGS": "ignore"})
    if ended.returncode:
        sys.exit(f"{run} ended with {ended.returncode}; see {log}")


def draw(points: dict[str, list[dict]], path: Path) -> None:
    """Curves of every left-out recording over steps, and their mean."""
    from matplotlib import pyplot

    names = {"si_snr": "SI-SNR, dB", "sdr": "SDR, dB", "mel": "mel distance", "usage": "codes in use"}
    figure, axes = pyplot.subplots(1, len(names), figsize=(16, 3.5), layout="constrained")
    for axis, (name, title) in zip(axes, names.items(), strict=True):
        for song, rows in points.items():
            axis.plot([row["step"] for row in rows], [row[name] for row in rows], alpha=0.6, label=song[:24])
        axis.set(title=title, xlabel="step")
    axes[0].legend(fontsize=6)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60, help="for all trainings together")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("REAL_DATA_DIR") or files.REPOSITORY.parent / "shared" / "real"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--adversarial", action="store_true", help="with the multi-scale STFT discriminator (a GPU's work)")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--filters", type=int, default=16)
    parser.add_argument("--only", type=int, default=0, metavar="N", help="only the first N recordings are left out")
    arguments = parser.parse_args()
    found = recordings(arguments.data)
    lines = segment(found)
    common = [f"device={arguments.device}", f"dataset.batch_size={arguments.batch}", f"seanet.n_filters={arguments.filters}"]
    common += [] if arguments.adversarial else ["adversarial.adversaries=[]"]
    kind = f"{arguments.minutes:g}min_f{arguments.filters}_b{arguments.batch}{'_adv' if arguments.adversarial else ''}"
    folder = files.outputs_root() / "benchmarks" / "real_music"
    notes = files.read_json(folder / f"{kind}.json") or {}
    songs = list(lines)[: arguments.only or None]
    for number, song in enumerate(songs):
        split = {"train": [line for other, clips in lines.items() if other != song for line in clips], "valid": lines[song]}
        for name, content in split.items():
            files.write_text(files.outputs_root() / "egs" / f"real_music_{number}" / name / "data.jsonl", "\n".join(content) + "\n")
        data = [f"datasource.{name}=egs/real_music_{number}/{name}" for name in split]
        if "seconds_per_step" not in notes:
            pilot = [*data, *common, "optim.epochs=1", f"optim.updates_per_epoch={PILOT}", "logging.every=1", f"quantize_after={PILOT}"]
            train(pilot, f"real_{kind}_pilot")
            rows = runs.read_metrics(runs.folder() / f"real_{kind}_pilot")
            notes["seconds_per_step"] = statistics.median([row["seconds"] for row in rows if row["stage"] == "train"][2:])
            files.write_json(folder / f"{kind}.json", notes)
        steps = max(POINTS, int(60 * arguments.minutes / len(songs) / notes["seconds_per_step"] / POINTS) * POINTS)
        schedule = [f"optim.epochs={POINTS}", f"optim.updates_per_epoch={steps // POINTS}", f"schedule.cosine.warmup={steps // 20}"]
        phases = [f"quantize_after={steps // 4}", f"later.step={steps // 2}"]  # as in the mini profile
        run = f"real_{kind}_{number}"
        if song not in notes:
            train([*data, *common, *schedule, *phases, "logging.every=10"], run)
            manifest = files.outputs_root() / "egs" / f"real_music_{number}" / "valid" / "data.jsonl"
            notes[song] = []
            for point in range(1, POINTS + 1):
                weights = runs.folder() / run / "ckpt" / f"epoch_{point}"
                # Given as a module it is measured alone; the untrained codec beside it costs most, and is needed once.
                report = check(weights if point == POINTS else load_codec(weights), manifest, 12)
                names = ("si_snr", "sdr", "mel", "mel_untrained", "mel_silence")
                figures = {name: report.figures[name] for name in names if name in report.figures}
                rows = [row for row in runs.read_metrics(runs.folder() / run) if row["step"] <= point * steps // POINTS]
                last = next((row for row in reversed(rows) if "usage_q1" in row), {})
                used = statistics.fmean(last[f"usage_q{quantiser}"] for quantiser in range(1, 5)) if last else 0.0
                notes[song].append({"step": point * steps // POINTS, "usage": used, **figures})
            files.write_json(folder / f"{kind}.json", notes)
        print(f"{song[:40]:<40} {steps} steps: " + ", ".join(f"{name} {value:.3f}" for name, value in notes[song][-1].items()), flush=True)
    points = {song: notes[song] for song in songs}
    draw(points, folder / f"{kind}.png")
    print(f"\n{'step':>8}{'SI-SNR':>10}{'SDR':>8}{'mel':>8}{'in use':>8}   means over {len(songs)} recordings left out")
    for place in range(POINTS):
        row = {name: statistics.fmean(rows[place][name] for rows in points.values()) for name in ("step", "si_snr", "sdr", "mel", "usage")}
        print(f"{row['step']:>8.0f}{row['si_snr']:>10.2f}{row['sdr']:>8.2f}{row['mel']:>8.3f}{row['usage']:>8.0%}")
    baseline = {name: statistics.fmean(rows[-1][name] for rows in points.values()) for name in ("mel_untrained", "mel_silence")}
    print(f"mel distance of an untrained codec {baseline['mel_untrained']:.3f}, of silence {baseline['mel_silence']:.3f}")
    print(f"curves: {folder / f'{kind}.png'}")


if __name__ == "__main__":
    main()
