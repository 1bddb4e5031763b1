"""What does an adapter that was trained on the studio library do for music made of recorded sounds?

``python benchmarks/lora_on_real_sounds.py RUN [--tracks 16] [--first 0] [--seconds 16]`` assembles tracks with known stems from
real one-shots and loops (``$REAL_DATA_DIR/sonic_pi_samples``), seeded, and prints nSDR (dB) per stem: the base model with
new stems as their parents, the base's drums split by frequency, and the adapted model. Silence has 0 dB.

Kicks and snares are the stem kick, hats and cymbals hihat, a choir vocals, a synth two octaves up other. Half of the tracks
have a drum loop, too: nobody knows its hats from its kicks, so that those count for drums (kick and hihat together) alone.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy
import soundfile
import soxr

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from music_training import files

STEMS = ("other", "kick", "vocals", "bass", "hihat")
KICKS, SNARES, HATS = ("bd_808", "bd_haus", "drum_heavy_kick"), ("sn_dub", "hat_snap"), ("hat_zild", "drum_cymbal_closed")
BASSES, LOOPS = ("bass_hit_c", "bass_trance_c"), {"loop_amen": 4, "loop_breakbeat": 4, "loop_industrial": 2}  # beats
SCALE = (0, 2, 3, 5, 7, 8, 10)


def assemble(samples: Path, number: int, rate: int, channels: int, seconds: float) -> dict[str, numpy.ndarray]:
    """Stems ``[C, n]`` of track ``number``, and ``loop`` in every second one; their sum peaks at 0.9."""
    rng = numpy.random.default_rng(4000 + number)
    beat = 60 / rng.uniform(110, 150)
    count = int(seconds * rate)
    stems = {name: numpy.zeros((channels, count), numpy.float32) for name in (*STEMS, *(["loop"] if number % 2 else []))}
    level = {name: 10 ** (rng.uniform(-6, 0) / 20) for name in ("kick", "snare", "hihat", "bass", "vocals", "other", "loop")}
    kick, snare, hat, cymbal = (_read(samples, rng.choice(names), rng.uniform(-3, 3), rate) for names in (KICKS, SNARES, HATS, HATS[1:]))
    bass_name, root = rng.choice(BASSES), rng.integers(-4, 5)
    notes = rng.choice(SCALE, 8)
    bass = {int(note): _read(samples, bass_name, root + note, rate) for note in set(notes)}
    synth = {int(note): _read(samples, "bass_trance_c", 24 + root + note, rate) for note in set(notes)}
    choir = [_read(samples, "ambi_choir", float(rng.integers(-5, 6)), rate) for _ in range(2)]
    broken, offbeat, swing = rng.random() < 0.3, rng.random() < 0.5, rng.uniform(0, 0.12)
    pan = rng.uniform(-0.5, 0.5, 2)
    steps = int(seconds / beat * 4)
    for step in range(steps):  # sixteenths
        at, place, bar = (step + swing * (step % 2)) * beat / 4, step % 16, step // 16
        if place in (0, 6, 10) if broken else place % 4 == 0:
            _add(stems["kick"], kick, at, 0.9 * level["kick"], rate)
        if place in (4, 12):
            _add(stems["kick"], snare, at, 0.5 * level["snare"], rate)
        if place % 4 == 2 if offbeat else place % 2 == 0:
            _add(stems["hihat"], hat, at, level["hihat"] * (0.4 if place % 4 == 2 else 0.25), rate, pan[0])
        if bar % 4 == 3 and place == 0:
            _add(stems["hihat"], cymbal, at, 0.4 * level["hihat"], rate, pan[0])
        if place % 4 == (2 if offbeat else 0) or rng.random() < 0.15:
            _add(stems["bass"], bass[int(notes[bar % 8])][: int(beat * rate)], at, 0.5 * level["bass"], rate)
        if place in (0, 3, 6, 11):
            for third in (0, 2, 4):
                note = int(notes[(bar + third) % 8])
                _add(stems["other"], synth[note][: int(0.6 * beat * rate)], at, 0.15 * level["other"], rate, pan[1])
        if step % 32 == 8:
            _add(stems["vocals"], choir[(step // 32) % 2], at, 0.6 * level["vocals"], rate)
        if "loop" in stems and place == 0:
            name = list(LOOPS)[number // 2 % len(LOOPS)]
            loop = _read(samples, name, 0, rate)
            loop = soxr.resample(loop, len(loop), LOOPS[name] * beat * rate, "HQ")
            for repeat in range(4 // LOOPS[name]):
                _add(stems["loop"], loop, at + repeat * LOOPS[name] * beat, 0.4 * level["loop"], rate)
    gain = 0.9 / numpy.abs(sum(stems.values())).max()
    return {name: gain * wave for name, wave in stems.items()}


def _read(folder: Path, name: str, semitones: float, rate: int) -> numpy.ndarray:
    samples, own = soundfile.read(folder / f"{name}.flac", dtype="float32", always_2d=True)
    mono = soxr.resample(samples.mean(1), own * 2 ** (semitones / 12), rate, "HQ")
    return (mono / max(1e-6, numpy.abs(mono).max())).astype(numpy.float32)


def _add(stem: numpy.ndarray, sound: numpy.ndarray, time: float, gain: float, rate: int, pan: float = 0.0) -> None:
    start = round(time * rate)
    part = gain * sound[: max(0, stem.shape[1] - start)]
    for channel, share in zip(stem, (1 - pan, 1 + pan), strict=False):
        channel[start : start + len(part)] += share * part


def main() -> None:
    """Assemble, separate, print."""
    from music_training import runs
    from music_training.lora_demucs import metrics, separation, train

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a run of LoRA Demucs with the stems other, kick, vocals, bass, hihat, or its adapter's folder")
    parser.add_argument("--base", help="base model in place of the one that the adapter names")
    parser.add_argument("--tracks", type=int, default=16)
    parser.add_argument("--first", type=int, default=0, help="number of the first track")
    parser.add_argument("--seconds", type=float, default=16)
    arguments = parser.parse_args()
    samples = Path(os.environ.get("REAL_DATA_DIR") or files.REPOSITORY.parent / "shared" / "real") / "sonic_pi_samples"
    if not samples.is_dir():
        sys.exit(f"{samples}: not found; set REAL_DATA_DIR")
    made = train.open_adapted(arguments.run, arguments.base)
    model, info = made.model, made.known["default"]
    if set(info.sources) != set(STEMS):
        sys.exit(f"{arguments.run}: separates {', '.join(info.sources)}; {', '.join(STEMS)} are needed")
    evaluated = files.read_json(runs.folder() / arguments.run / train.EVALUATION / "summary.json") or {}
    crossover = evaluated.get("crossover_hz") or 5000
    place = {name: info.sources.index(name) for name in STEMS}
    rows: dict[tuple[str, str], list[float]] = {}
    for number in range(arguments.first, arguments.first + arguments.tracks):
        true = assemble(samples, number, model.samplerate, model.audio_channels, arguments.seconds)
        mixture = sum(true.values())
        true["drums"] = true["kick"] + true["hihat"] + true.get("loop", 0)
        adapted = separation.separate(model, mixture)
        with made.disabled():
            plain = dict(zip(model.sources, separation.separate(model, mixture), strict=True))
        found = {name: {"base": plain[info.parents[name]], "adapted": adapted[place[name]]} for name in STEMS}
        low, high = metrics.split_bands(plain["drums"], model.samplerate, crossover)
        found["kick"]["split"], found["hihat"]["split"] = low, high
        found["drums"] = {"base": plain["drums"], "adapted": adapted[place["kick"]] + adapted[place["hihat"]]}
        if "loop" in true:
            del found["kick"], found["hihat"]
        for name, versions in found.items():
            for version, estimate in versions.items():
                rows.setdefault((name, version), []).append(metrics.nsdr(true[name], estimate))
    print(
        f"{arguments.tracks} tracks of {arguments.seconds:g} s from recorded sounds, nSDR dB, mean over tracks; split at {crossover:g} Hz"
    )
    print(f"{'stem':8s} {'tracks':>6s} {'base':>8s} {'split':>8s} {'adapted':>8s} {'gain':>8s}  {'least':>7s} ... {'most':>7s} of the gain")
    for name in (*STEMS, "drums"):
        base, adapted = (numpy.array(rows[name, version]) for version in ("base", "adapted"))
        split = f"{numpy.mean(rows[name, 'split']):8.2f}" if (name, "split") in rows else f"{'':8s}"
        gain = adapted - base
        print(
            f"{name:8s} {len(base):6d} {base.mean():8.2f} {split} {adapted.mean():8.2f} {gain.mean():+8.2f}"
            f"  {gain.min():+7.2f} ... {gain.max():+7.2f}"
        )


if __name__ == "__main__":
    main()
