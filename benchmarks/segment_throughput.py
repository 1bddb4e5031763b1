"""How many hours of mp3 a minute become checked and hashed segments, against bare ffmpeg; and who rejects aliases better.

``python benchmarks/segment_throughput.py [--files 36] [--seconds 180] [--workers 2] [--rounds 3] [--audio-dir DIR]``

Both make 10 s mono PCM16 WAV at 32 kHz of the same files, with as many processes at a time, in turns in one run. Ours
is the whole stage (decode, checks, hashes, sidecars, index, one sync); ffmpeg's is
``ffmpeg -i FILE -ac 1 -ar 32000 -f segment -segment_time 10``. The audio is synthetic unless a folder is given.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile

# The project is imported where it is used: a worker process imports this file too, and its start is part of the time.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

RATE = 32000


def main() -> None:
    from music_training import parallel

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=36)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--workers", type=int, default=parallel.cores())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--audio-dir", help="a folder of your own files in place of synthetic ones")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        source = Path(arguments.audio_dir or Path(work) / "audio").resolve()
        if not arguments.audio_dir:
            make_audio(source, arguments.files, arguments.seconds)
        throughput(source, Path(work), arguments.workers, arguments.rounds)
        aliases(Path(work))


def make_audio(target: Path, count: int, seconds: float) -> None:
    """Synthetic, music-like mp3 at 256 kbit/s: chords with slow swells, noise bursts on the beat; each file another."""
    target.mkdir()
    time_axis = np.arange(int(seconds * 44100), dtype=np.float32) / 44100
    draw = np.random.default_rng(0)
    sound = draw.standard_normal((len(time_axis), 2), dtype=np.float32) * (0.2 * np.exp(-8 * (time_axis * 2 % 1)))[:, None]
    for _ in range(12):
        tone = np.sin(2 * np.pi * draw.uniform(50, 4000) * time_axis + draw.uniform(0, 6))
        sound += (tone * (0.5 + 0.5 * np.sin(2 * np.pi * draw.uniform(0.1, 2) * time_axis)))[:, None] * draw.uniform(0, 0.08, 2)

    def encode(number: int) -> None:
        wav = target / f"{number}.wav"
        soundfile.write(wav, np.clip(np.roll(sound, number * 99991, 0), -1, 1), 44100)
        subprocess.run(["ffmpeg", "-v", "error", "-i", wav, "-b:a", "256k", target / f"{number}.mp3"], check=True)
        wav.unlink()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(encode, range(count)))


def throughput(source: Path, work: Path, workers: int, rounds: int) -> None:
    from music_training.library import audio
    from music_training.library.sources import folder

    files = sorted(folder.find(source))
    hours = 0.0
    for path in files:
        with audio.open_stream(path) as stream:
            hours += (stream.declared or 0) / stream.sample_rate / 3600
    print(f"{len(files)} files, {hours:.2f} h, {workers} processes, {rounds} rounds in turns")
    runs: dict[str, list[tuple[float, float]]] = {"ours": [], "ffmpeg": []}
    for number in range(rounds):
        for name, function in (("ours", ours), ("ffmpeg", bare_ffmpeg)):
            target = work / f"{name}{number}"
            target.mkdir()
            os.sync()
            before, start = cpu(), time.monotonic()
            function(source, files, target, workers)
            runs[name].append((time.monotonic() - start, cpu() - before))
    print(f"{'':8s}{'wall s':>9s}{'CPU s':>9s}{'h/min':>9s}   (best of {rounds})")
    best = {name: (min(wall for wall, _ in pairs), min(used for _, used in pairs)) for name, pairs in runs.items()}
    for name, (wall, used) in best.items():
        print(f"{name:8s}{wall:9.2f}{used:9.2f}{hours / wall * 60:9.2f}")
    print(f"{'ratio':8s}{best['ffmpeg'][0] / best['ours'][0]:9.2f}{best['ffmpeg'][1] / best['ours'][1]:9.2f}   (over 1: ours is faster)")


def ours(source: Path, files: list[Path], target: Path, workers: int) -> None:
    from music_training.library import segments
    from music_training.library.sources import folder

    os.environ["MUSIC_OUTPUTS"] = str(target)
    folder.catalogue_folder(source, "bench", "bench")
    segments.segment("bench", "bench", segments.SegmentSettings(workers=workers))


def bare_ffmpeg(source: Path, files: list[Path], target: Path, workers: int) -> None:
    def one(number: int) -> None:
        options = ["-ac", "1", "-ar", str(RATE), "-c:a", "pcm_s16le", "-f", "segment", "-segment_time", "10"]
        command = ["ffmpeg", "-nostdin", "-v", "error", "-i", files[number], *options, target / f"{number}_%04d.wav"]
        subprocess.run(command, check=True)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, range(len(files))))


def cpu() -> float:
    """CPU seconds of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(item.ru_utime + item.ru_stime for item in used)


def aliases(work: Path) -> None:
    """Tones above 16 kHz at full scale: what is left of them at 32 kHz, and what is lost of tones below."""
    from music_training.library import audio

    print("\nenergy after conversion to 32 kHz, dB against the tone itself (above 16 kHz: an alias, lower is better)")
    print(f"{'from Hz':>9s}{'tone Hz':>9s}{'ours':>9s}{'ffmpeg':>9s}")
    for rate, tones in ((44100, (14000, 15500, 16200, 16500, 17000, 18000, 20000)), (48000, (16500, 17000, 18000, 20000, 23000))):
        for tone in tones:
            path = work / "tone.wav"
            x = 0.9 * np.sin(2 * np.pi * tone * np.arange(rate * 4) / rate)
            soundfile.write(path, x.astype(np.float32), rate, subtype="FLOAT")
            kept, _ = audio.read(path, RATE)
            options = ["-ac", "1", "-ar", str(RATE), "-f", "f32le", "-"]
            peer = subprocess.run(["ffmpeg", "-v", "error", "-i", path, *options], check=True, capture_output=True).stdout
            levels = [
                10 * np.log10(np.mean(y[RATE:-RATE].astype(float) ** 2) / np.mean(x**2)) for y in (kept, np.frombuffer(peer, np.float32))
            ]
            print(f"{rate:9d}{tone:9d}{levels[0]:9.1f}{levels[1]:9.1f}")


if __name__ == "__main__":
    main()
