"""How well does a model that was trained on the studio library alone read music made of other sounds?

``python benchmarks/edm_on_real_sounds.py RUN [--tracks 16] [--first 480]`` assembles EDM from real recorded one-shots and loops
(``$REAL_DATA_DIR/sonic_pi_samples``) with known beats and sections, at tempi that no studio style uses, and prints
each track's scores beside those of two peers without learning: equal sections, and a beat every 60/128 s.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy
import soundfile
import soxr

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from music_training import files
from music_training.edm_structure.data import AnnotatedTrack

RATE = 44100
TEMPI = (118.0, 121.5, 130.5, 133.0, 135.5, 145.0, 148.0, 152.0)
FORMS = (
    "intro buildup drop breakdown buildup drop outro",
    "intro drop breakdown drop outro",
    "intro buildup drop outro",
    "intro breakdown buildup drop breakdown drop outro",
)
USED = {  # which parts sound in which section
    "intro": {"hat", "pad"}, "buildup": {"snare", "hat", "bass", "pad"}, "drop": {"kick", "snare", "hat", "bass", "loop"},
    "breakdown": {"pad", "bass"}, "outro": {"kick", "hat"},
}  # fmt: skip
KICKS, SNARES = ("bd_808", "bd_haus", "drum_heavy_kick"), ("sn_dub", "hat_snap")
HATS, BASSES = ("hat_zild", "drum_cymbal_closed"), ("bass_hit_c", "bass_trance_c")
LOOPS = {"loop_amen": 4, "loop_breakbeat": 4, "loop_industrial": 2}  # beats each lasts


def assemble(samples: Path, number: int, folder: Path) -> AnnotatedTrack:
    """Compose track ``number`` from the recordings in ``samples``, write it to ``folder`` and return it with its truth."""
    rng = numpy.random.default_rng(1000 + number)
    tempo = TEMPI[number % len(TEMPI)]
    beat = 60 / tempo
    sounds = {name: _read(samples, name, 2 ** (rng.uniform(-3, 3) / 12)) for name in (*KICKS, *SNARES, *HATS, *BASSES)}
    pad = _read(samples, "ambi_choir", 2 ** (rng.uniform(-5, 5) / 12))
    kick, snare, hat, bass = (sounds[rng.choice(names)] for names in (KICKS, SNARES, HATS, BASSES))
    loop_name = rng.choice(list(LOOPS))
    loop = _read(samples, loop_name, 1.0)
    loop = soxr.resample(loop, len(loop), LOOPS[loop_name] * beat * RATE, "HQ")
    form = FORMS[number % len(FORMS)].split()
    bars = [int(rng.choice([4, 8, 8])) for _ in form]
    silence = float(rng.choice([0.0, rng.uniform(0.1, 2.0)]))  # many tracks do not begin with their first beat
    out = numpy.zeros(int((silence + sum(bars) * 4 * beat + 1) * RATE), numpy.float32)
    broken, offbeat = rng.random() < 0.3, rng.random() < 0.5
    levels = {name: 10 ** (rng.uniform(-6, 0) / 20) for name in ("kick", "snare", "hat", "bass", "pad", "loop")}
    starts, time = [], silence
    for name, count in zip(form, bars, strict=True):
        starts.append(time)
        used = USED[name]
        for step in range(count * 16):  # sixteenths
            at, place, bar = time + step * beat / 4, step % 16, step // 16
            fill = bar == count - 1 and place >= 12  # the last beat of a section
            if "kick" in used and not fill and (place in (0, 6, 10) if broken else place % 4 == 0):
                _add(out, kick, at, 0.9 * levels["kick"])
            roll = name == "buildup" and step % (8 if bar < count // 2 else 4 if bar < count - 1 else 2) == 0
            if "snare" in used and (roll if name == "buildup" else place in (4, 12) or fill):
                _add(out, snare, at, 0.6 * levels["snare"] * (0.4 + 0.6 * bar / count if name == "buildup" else 1))
            if "hat" in used and (place % 4 == 2 if offbeat else place % 2 == 0):
                _add(out, hat, at, 0.35 * levels["hat"] * (1 if place % 4 == 2 else 0.6))
            if "bass" in used and place % 4 == (2 if offbeat else 0) and (name != "breakdown" or place == 0):
                _add(out, bass, at, 0.6 * levels["bass"])
            if "pad" in used and step % 32 == 0:
                _add(out, pad[: int(8 * beat * RATE)], at, 0.5 * levels["pad"])
            if "loop" in used and place == 0:
                _add(out, loop, at, 0.4 * levels["loop"])
        time += count * 4 * beat
    duration = len(out) / RATE
    out *= 0.9 / numpy.abs(out).max()
    path = folder / f"real_{number:03d}.wav"
    soundfile.write(path, out, RATE, subtype="PCM_16")
    beats = silence + beat * numpy.arange(sum(bars) * 4)
    return AnnotatedTrack(path.stem, path, path.stem, duration, numpy.array(starts), form, beats, beats[::4], tempo)


def _read(folder: Path, name: str, pitch: float) -> numpy.ndarray:
    samples, rate = soundfile.read(folder / f"{name}.flac", dtype="float32", always_2d=True)
    mono = soxr.resample(samples.mean(1), rate * pitch, RATE, "HQ")
    return (mono / max(1e-6, numpy.abs(mono).max())).astype(numpy.float32)


def _add(out: numpy.ndarray, sound: numpy.ndarray, time: float, gain: float) -> None:
    start = round(time * RATE)
    part = sound[: max(0, len(out) - start)]
    out[start : start + len(part)] += gain * part


def main() -> None:
    """Assemble, predict, print."""
    from music_training.edm_structure import evaluation, features, inference, metrics

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a run of the studio library")
    parser.add_argument("--tracks", type=int, default=16)
    parser.add_argument(
        "--first", type=int, default=480, help="number of the first track; 0 to 479 were looked at while the decoding was made"
    )
    arguments = parser.parse_args()
    samples = Path(os.environ.get("REAL_DATA_DIR") or files.REPOSITORY.parent / "shared" / "real") / "sonic_pi_samples"
    if not samples.is_dir():
        sys.exit(f"{samples}: not found; set REAL_DATA_DIR")
    predictor = inference.load(arguments.run)
    rows, peers = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.first, arguments.first + arguments.tracks):
            track = assemble(samples, number, Path(folder))
            row = evaluation.of_features(predictor, track, features.of_file(track.audio))
            rows.append(row)
            edges = numpy.linspace(0, track.duration, len(track.starts) + 1)
            equal = numpy.stack([edges[:-1], edges[1:]], 1)
            peers.append(metrics.segments(track.intervals, track.labels, equal, track.labels))
            peers[-1]["beat_F1"] = metrics.beats(track.beats, numpy.arange(0, track.duration, 60 / 128))
            shown = "  ".join(f"{name} {row[name]:.3f}" for name in ("HR.5F", "HR3F", "beat_F1", "downbeat_F1", "label_accuracy"))
            print(f"{track.id} {track.bpm:6.1f} bpm  {shown}", flush=True)
    mean, peer = metrics.summarise(rows), metrics.summarise(peers)
    print(f"\n{'metric':20s} {'model':>6s}  {'95% interval':>14s}  {'peer':>6s}  ratio")
    for name, values in mean.items():
        other = peer.get(name, {}).get("mean")
        ratio = f"{other:6.3f}  {values['mean'] / other:5.2f}" if other else f"{'-':>6s}      -"
        print(f"{name:20s} {values['mean']:6.3f}  {values['low']:6.3f}..{values['high']:5.3f}  {ratio}")


if __name__ == "__main__":
    main()
