"""Segmentation of many mp3s of 30 s: one process, two, two dask workers, ffmpeg; and how the cost grows with their number.

    python benchmarks/segment_scaling.py [--real DIR] [--files 200] [--sizes 50,100,200,400,800]

The mp3s are different 30 s cuts of real recordings. ffmpeg decodes to 32 kHz and writes 10 s WAV files, in as many
processes. CPU seconds count the children's too; memory is the largest resident set of the main process.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from music_training import files
from music_training.library import catalogue, segments

SOURCES = ("mdn_stems/bassguitar.mp3", "mdn_stems/clav.mp3", "mdn_stems/horns.mp3", "librosa_data/Kevin_MacLeod_-_Vibe_Ace.hq.ogg")
ONE = "--one"


def main() -> None:
    """Print both tables."""
    if ONE in sys.argv:
        return one(*sys.argv[sys.argv.index(ONE) + 1 :])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, default=Path(os.environ.get("REAL_DATA_DIR") or files.REPOSITORY.parent / "shared" / "real"))
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--sizes", default="50,100,200,400,800")
    given = parser.parse_args()
    sizes = [int(size) for size in given.sizes.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        paths = cut(given.real, Path(folder) / "mp3", max([given.files, *sizes]))
        few = paths[: given.files]
        print(f"{len(few)} mp3s of 30 s")
        peer = {count: ffmpeg(few, Path(folder) / "ffmpeg", count) for count in (1, 2)}
        for label, workers, scheduler in (("1 process", 1, ""), ("2 processes", 2, ""), ("dask, 2 workers", 2, "local")):
            seconds, cpu, _ = ours(few, Path(folder), workers, scheduler)
            wall, other = peer[workers]
            theirs = f"ffmpeg x {workers}: {wall:6.1f} s, {other:6.1f} CPU s"
            print(f"  {label:<16} {seconds:6.1f} s, {cpu:6.1f} CPU s; {theirs}; ratio {wall / seconds:.2f}")
        print("growth, 1 process")
        for size in sizes:
            seconds, cpu, memory = ours(paths[:size], Path(folder), 1, "")
            print(f"  {size:5d} files: {seconds:6.1f} s, {1000 * cpu / size:6.1f} CPU ms a file, {memory / 1024:.0f} MiB")


def cut(real: Path, folder: Path, count: int) -> list[Path]:
    """``count`` different mp3s of 30 s."""
    folder.mkdir()
    long = folder / "long.mp3"
    inputs = [option for name in SOURCES for option in ("-i", str(real / name))]
    streams = "".join(f"[{n}:a]aresample=44100,aformat=channel_layouts=stereo[a{n}];" for n in range(len(SOURCES)))
    graph = f"{streams}{''.join(f'[a{n}]' for n in range(len(SOURCES)))}concat=n={len(SOURCES)}:v=0:a=1"
    subprocess.run(["ffmpeg", "-v", "error", *inputs, "-filter_complex", graph, "-b:a", "256k", str(long)], check=True)
    paths = []
    for number in range(count):
        path = folder / f"{number:04d}.mp3"
        start = f"{number * 270 / count:.3f}"
        subprocess.run(["ffmpeg", "-v", "error", "-ss", start, "-t", "30", "-i", str(long), "-c", "copy", str(path)], check=True)
        paths.append(path)
    return paths


def ffmpeg(paths: list[Path], folder: Path, processes: int) -> tuple[float, float]:
    """Wall and CPU seconds of ffmpeg doing the same."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    options = ["-ac", "1", "-ar", "32000", "-f", "segment", "-segment_time", "10"]
    start, before = time.monotonic(), cpu_seconds(resource.RUSAGE_CHILDREN)

    def work(path: Path) -> None:
        target = folder / f"{path.stem}_%03d.wav"
        subprocess.run(["ffmpeg", "-v", "error", "-threads", "1", "-i", str(path), *options, str(target)], check=True)

    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(work, paths))
    return time.monotonic() - start, cpu_seconds(resource.RUSAGE_CHILDREN) - before


def ours(paths: list[Path], folder: Path, workers: int, scheduler: str) -> tuple[float, float, int]:
    """Wall seconds, CPU seconds, and KiB of the main process, in a process of its own."""
    outputs = folder / "outputs"
    shutil.rmtree(outputs, ignore_errors=True)
    environment = {**os.environ, "MUSIC_OUTPUTS": str(outputs)}
    command = [sys.executable, __file__, ONE, str(paths[0].parent), str(len(paths)), str(workers), scheduler]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    wall, cpu, memory = done.stdout.split()[-3:]
    return float(wall), float(cpu), int(memory)


def one(folder: str, count: str, workers: str, scheduler: str) -> None:
    """Segment once and print wall seconds, CPU seconds and KiB."""
    tracks = [catalogue.Track(path.stem, str(path), "cuts", path.stem) for path in sorted(Path(folder).glob("0*.mp3"))[: int(count)]]
    catalogue.write(catalogue.path_of("cuts"), tracks)
    cluster = contextlib.nullcontext()
    if scheduler:
        from distributed import LocalCluster

        cluster = LocalCluster(n_workers=int(workers), threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50)
    with cluster as running, contextlib.redirect_stdout(io.StringIO()):
        start = time.monotonic()
        address = running.scheduler_address if scheduler else ""
        segments.segment("cuts", "benchmark", segments.SegmentSettings(workers=int(workers)), address)
        wall = time.monotonic() - start
    cpu = cpu_seconds(resource.RUSAGE_SELF) + cpu_seconds(resource.RUSAGE_CHILDREN)
    print(wall, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def cpu_seconds(who: int) -> float:
    """User and system time."""
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
