"""How fast is separation beside demucs' own ``apply_model``, what does it keep in memory, and what do the metrics cost?

``python benchmarks/separation_speed.py [--parts speed memory metrics] [--size small full] [--rounds 3]``. Speed: the same weights
(random), windows and overlap, in turns, CPU time; the real-time factor is seconds of computing for a second of audio.
Memory: files of growing length, each separated by a process of its own. Metrics: ours beside museval on the same stems.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy
import soundfile

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

SMALL = {"channels": 8, "nfft": 2048, "t_layers": 1, "dconv_mode": 0, "samplerate": 22050, "segment": 1}


def model_of(size: str):
    """The small model of the mini profile or the published architecture; random weights."""
    import torch
    from demucs.htdemucs import HTDemucs
    from lora_training import published

    if size == "full":
        return published().eval()
    torch.manual_seed(0)
    return HTDemucs(["drums", "bass", "other", "vocals"], **SMALL).eval()


def noise(seconds: float, rate: int) -> numpy.ndarray:
    """Stereo noise ``[2, n]`` that swells and fades."""
    count = int(seconds * rate)
    swell = 0.1 * (1 + numpy.sin(numpy.arange(count) / rate))
    return (swell * numpy.random.default_rng(0).standard_normal((2, count))).astype(numpy.float32)


def speed(size: str, seconds: float, rounds: int) -> None:
    """Ours and demucs' in turns."""
    import torch
    from demucs.apply import apply_model

    from music_training.lora_demucs import separation

    model = model_of(size)
    mixture = noise(seconds, model.samplerate)
    ways = {
        "demucs' apply_model": lambda: apply_model(model, torch.from_numpy(mixture)[None], shifts=0, overlap=0.25)[0].numpy(),
        "ours": lambda: separation.separate(model, mixture),
        "ours, four windows at once": lambda: separation.separate(model, mixture, batch=4),
    }
    results, spent = {}, {name: [] for name in ways}
    for turn in range(rounds):
        for name in list(ways)[turn % 3 :] + list(ways)[: turn % 3]:
            start = time.process_time()
            results[name] = ways[name]()
            spent[name].append(time.process_time() - start)
    first = min(spent["demucs' apply_model"])
    difference = max(float(numpy.abs(results[name] - results["demucs' apply_model"]).max()) for name in ways)
    print(f"{size}: {seconds:g} s at {model.samplerate} Hz, best of {rounds} in turns; largest difference {difference:.1g}")
    for name, times in spent.items():
        print(
            f"  {name:28s} {min(times):7.2f} CPU s, real-time factor {min(times) / seconds:.3f}, {first / min(times):.2f} of demucs' speed"
        )


def one_file(size: str, minutes: float) -> dict:
    """Separate a file of so many minutes in this process: CPU seconds and peak memory (MiB)."""
    from music_training.lora_demucs import separation

    model = model_of(size)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "song.wav"
        piece = noise(10, model.samplerate).T
        with soundfile.SoundFile(path, "w", model.samplerate, 2, "PCM_16") as output:
            for _ in range(round(6 * minutes)):
                output.write(piece)
        start = time.process_time()
        written = separation.separate_file(model, path, Path(folder) / "out")
        spent = time.process_time() - start
        frames = {soundfile.info(name).frames for name in written}
    whole = frames == {round(6 * minutes) * len(piece)}
    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "spent": spent, "whole": whole}


def memory(size: str, minutes: list[float]) -> None:
    """Peak memory over the length of the file."""
    print(f"{size}: a file separated to files by a process of its own")
    for length in minutes:
        command = [sys.executable, __file__, "--one", str(length), "--size", size]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        state = "all frames there" if found["whole"] else "FRAMES ARE MISSING"
        print(f"  {length:5g} min: peak {found['peak']:6.0f} MiB, {found['spent']:7.1f} CPU s, {state}", flush=True)


def metrics(seconds: float, rounds: int) -> None:
    """Ours and museval's on the same four stems."""
    import museval

    from music_training.lora_demucs import metrics as ours

    rate = 44100
    rng = numpy.random.default_rng(0)
    true = rng.standard_normal((4, 2, int(seconds * rate))).astype(numpy.float32)
    found = true + 0.3 * rng.standard_normal(true.shape).astype(numpy.float32)
    theirs = [item.transpose(0, 2, 1).astype(numpy.float64) for item in (true, found)]
    ways = {
        "nSDR": lambda: [ours.nsdr(one, other) for one, other in zip(true, found, strict=True)],
        "chunked SDR": lambda: [ours.sdr_chunks(one, other, rate) for one, other in zip(true, found, strict=True)],
        "SI-SDR": lambda: [ours.si_sdr(one, other) for one, other in zip(true, found, strict=True)],
        "museval": lambda: numpy.nanmedian(museval.evaluate(*theirs, win=rate, hop=rate)[0], axis=1),
    }
    spent = {name: [] for name in ways}
    for turn in range(rounds):
        for name, way in ways.items():
            if name == "museval" and turn:
                continue  # once is long enough
            start = time.process_time()
            values = way()
            spent[name].append(time.process_time() - start)
            if not turn:
                print(f"  {name:12s} {numpy.round(values, 4)}")
    print(f"metrics of 4 stereo stems of {seconds:g} s")
    for name, times in spent.items():
        print(f"  {name:12s} {min(times):8.3f} CPU s, museval takes {spent['museval'][0] / min(times):.0f} times that")


def main() -> None:
    """Measure the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=("speed", "memory", "metrics"), choices=("speed", "memory", "metrics"))
    parser.add_argument("--size", nargs="+", default=("small", "full"), choices=("small", "full"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30.0, help="of the audio for speed and metrics (default 30)")
    parser.add_argument("--minutes", type=float, nargs="+", default=(1, 3, 10), help="of the files for memory (default 1 3 10)")
    parser.add_argument("--one", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one_file(arguments.size[0], arguments.one)))
        return
    for size in arguments.size:
        if "speed" in arguments.parts:
            speed(size, arguments.seconds, arguments.rounds)
        if "memory" in arguments.parts:
            memory(size, list(arguments.minutes))
    if "metrics" in arguments.parts:
        metrics(arguments.seconds, arguments.rounds)


if __name__ == "__main__":
    main()
