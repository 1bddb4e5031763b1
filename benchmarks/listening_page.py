"""What does the listening page cost with 1,000 clips? Building it, building it again, and opening it in Chromium.

    python benchmarks/listening_page.py [--clips 1000] [--seconds 5]

The peer of building is plain decoding of the same files; that of opening is a page with 8 clips.
"""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy
import soundfile

from music_training.library import audio
from training_checks.listening_page import Card, Clip, write_card, write_index

EPOCHS = 4
OPEN = """() => new Promise((done) => {
  const start = performance.now();
  document.querySelector("button.open").click();
  const look = () => (document.querySelector(".panel .choices") ? done(performance.now() - start) : setTimeout(look, 1));
  look();
})"""
SCROLL = """async () => {
  const times = [];
  for (let y = 0; y < 40; y++) {
    const start = performance.now();
    scrollTo(0, (document.body.scrollHeight * y) / 40);
    await new Promise(requestAnimationFrame);
    times.push(performance.now() - start);
  }
  return times.sort((a, b) => a - b)[20];
}"""


def compose(samples: Path, clips: int, seconds: float) -> None:
    """Noise that falls differently in every clip."""
    rng = numpy.random.default_rng(0)
    time_axis = numpy.arange(int(32000 * seconds)) / 32000
    for epoch in range(EPOCHS):
        folder = samples / f"epoch_{epoch}"
        folder.mkdir(parents=True)
        names = [f"clip {i}" for i in range(clips // EPOCHS)]
        for name in names:
            signal = 0.2 * rng.standard_normal(len(time_axis)) * numpy.exp(-time_axis * rng.uniform(0, 3))
            soundfile.write(folder / f"{name}.wav", signal, 32000)
        write_card(folder, Card("MusicGen", "run", "Clips", epoch=epoch, clips=tuple(Clip(name, f"{name}.wav") for name in names)))


def timed(work) -> tuple[float, float]:
    """Wall and CPU seconds (this process and its children)."""
    start, before = time.perf_counter(), os.times()
    work()
    after = os.times()
    return time.perf_counter() - start, sum(after[:4]) - sum(before[:4])


def opened(index: Path) -> list[float]:
    """Milliseconds until the page is ready, a row is open, and of a screen while scrolling; heap in MB."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(index.as_uri())
        page.wait_for_selector("html.ready")
        ready = page.evaluate("performance.timing.domContentLoadedEventEnd - performance.timing.navigationStart")
        found = [ready, page.evaluate(OPEN), page.evaluate(SCROLL), page.evaluate("performance.memory.usedJSHeapSize / 1e6")]
        browser.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=5.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        few, many = Path(folder) / "few", Path(folder) / "many"
        compose(few, 8, args.seconds)
        compose(many, args.clips, args.seconds)
        wavs = sorted(many.rglob("*.wav"))
        rows = [("decode every clip", *timed(lambda: [audio.read(path) for path in wavs]))]
        rows.append(("build the page", *timed(lambda: write_index(many))))
        rows.append(("build it again", *timed(lambda: write_index(many))))
        print(f"{'':24}{'wall s':>10}{'CPU s':>10}{'CPU ms a clip':>16}")
        for name, wall, cpu in rows:
            print(f"{name:24}{wall:10.2f}{cpu:10.2f}{1000 * cpu / args.clips:16.2f}")
        sizes = [sum(path.stat().st_size for path in found) for found in (wavs, (many / "listening_page").rglob("*.*"))]
        print(f"listening_page/ takes {sizes[1] / sizes[0]:.2f} of the size of the WAV files")
        small, large = opened(write_index(few)), opened(many / "index.html")
        print(f"\n{'in Chromium':24}{'8 clips':>10}{f'{args.clips} clips':>14}{'ratio':>8}")
        for name, a, b in zip(("ready, ms", "open a row, ms", "scroll a screen, ms", "heap, MB"), small, large, strict=True):
            print(f"{name:24}{a:10.1f}{b:14.1f}{b / a:8.2f}")


if __name__ == "__main__":
    main()
