"""How well near-duplicates are found, and at what cost: real recordings re-encoded, cut and changed in gain.

    python benchmarks/near_duplicates.py [--real DIR] [--synthetic N]

Every excerpt of a real recording gets variants (other codecs and bit rates, up to 1 s cut off, gain, mono). A pair of
variants of one excerpt is a double; everything else, other parts of the same recording among it, is not. N composed
(synthetic) songs join as strangers.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from music_training import files
from music_training.library import fingerprints

RECORDINGS = {  # seconds of excerpts that do not overlap
    "fma/fma_small/000/000002.mp3": (30.0, 1),
    "audiocraft/dataset/example/electro_1.mp3": (15.0, 1),
    "audiocraft/assets/sep_drums_1.mp3": (10.3, 1),
    "librosa_data/Kevin_MacLeod_-_Vibe_Ace.hq.ogg": (20.0, 3),
    "librosa_data/Hungarian_Dance_number_5_-_Allegro_in_F_sharp_minor_(string_orchestra).ogg": (22.0, 2),
    "mdn_stems/bassguitar.mp3": (20.0, 4),
    "mdn_stems/clav.mp3": (20.0, 4),
    "mdn_stems/drums.mp3": (20.0, 4),
    "mdn_stems/horns.mp3": (20.0, 4),
    "mdn_stems/leadguitar.mp3": (20.0, 4),
}
VARIANTS = {
    "mp3 128k": (["-b:a", "128k"], "mp3", 0.0, 0.0),
    "mp3 64k": (["-b:a", "64k"], "mp3", 0.0, 0.0),
    "mp3 48k mono, -6 dB": (["-b:a", "48k", "-ac", "1"], "mp3", 0.0, -6.0),
    "ogg q3, cut 0.37 s": (["-c:a", "libvorbis", "-q:a", "3"], "ogg", 0.37, 0.0),
    "aac 96k, cut 1 s, -12 dB": (["-c:a", "aac", "-b:a", "96k"], "m4a", 1.0, -12.0),
    "mp3 96k, 22 kHz, cut 0.71 s, +3 dB": (["-b:a", "96k", "-ar", "22050"], "mp3", 0.71, 3.0),
}


def main() -> None:
    """Print precision, recall per variant, and cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, default=Path(os.environ.get("REAL_DATA_DIR") or files.REPOSITORY.parent / "shared" / "real"))
    parser.add_argument("--synthetic", type=int, default=0, help="composed songs of the studio library to add as strangers")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = encode(arguments.real, Path(folder))
        start = time.process_time()
        prints = {name: fingerprints.of_file(path) for name, path in paths.items()}
        cost = time.process_time() - start
        seconds = sum(len(words) for words in prints.values()) * fingerprints.HOP / fingerprints.RATE
        prints |= strangers(arguments.synthetic, Path(folder))
    start = time.process_time()
    matches = fingerprints.find(prints)
    search = time.process_time() - start
    report(prints, matches)
    print(f"cost: {cost / seconds * 3600:.1f} CPU s per hour of audio for decoding and fingerprints, {search:.2f} CPU s for the search")
    print(f"size: {4 * fingerprints.RATE / fingerprints.HOP * 3600 / 1e3:.0f} kB per hour of audio")


def encode(real: Path, folder: Path) -> dict[str, Path]:
    """Excerpt and variant to file."""
    paths = {}
    for name, (seconds, count) in RECORDINGS.items():
        for part in range(count):
            excerpt = f"{Path(name).stem[:16]}#{part}"
            for variant, (options, suffix, cut, gain) in VARIANTS.items():
                path = folder / f"{len(paths)}.{suffix}"
                span = ["-ss", str(part * seconds + cut), "-t", str(seconds - cut)]
                command = ["ffmpeg", "-v", "error", *span, "-i", str(real / name), "-vn", "-af", f"volume={gain}dB", *options, str(path)]
                subprocess.run(command, check=True)
                if suffix == "m4a":  # the decoder of this project reads wav, flac, ogg and mp3
                    subprocess.run(["ffmpeg", "-v", "error", "-i", str(path), str(path.with_suffix(".wav"))], check=True)
                    path = path.with_suffix(".wav")
                paths[f"{excerpt}|{variant}"] = path
    return paths


def strangers(count: int, folder: Path) -> dict[str, np.ndarray]:
    """Fingerprints of composed songs."""
    if not count:
        return {}
    os.environ["MUSIC_OUTPUTS"] = str(folder / "outputs")
    from music_training.library import catalogue
    from music_training.library.sources import studio

    studio.compose_library(
        studio.StudioSettings(artists=count, tracks_per_artist=1, stems=False, dialogues=0, workers=1), "strangers", "benchmark"
    )
    tracks = catalogue.read(catalogue.path_of("strangers"))
    return {f"{track.id}|stranger": fingerprints.of_file(files.absolute(track.path)) for track in tracks}


def report(prints: dict[str, np.ndarray], matches: list[fingerprints.Match]) -> None:
    """Precision and recall over all pairs, recall against each variant."""
    excerpt = {name: name.split("|")[0] for name in prints}
    found = {frozenset((match.first, match.second)) for match in matches}
    doubles = {frozenset(pair) for pair in itertools.combinations(prints, 2) if excerpt[pair[0]] == excerpt[pair[1]]}
    pairs = len(prints) * (len(prints) - 1) // 2
    print(f"{len(prints)} recordings, {pairs} pairs, {len(doubles)} doubles")
    print(f"precision {len(found & doubles) / max(1, len(found)):.4f}, recall {len(found & doubles) / len(doubles):.4f}")
    for match in matches:
        if frozenset((match.first, match.second)) not in doubles:
            print(f"  wrong: {match}")
    for variant in VARIANTS:
        mine = {pair for pair in doubles if any(name.endswith(f"|{variant}") for name in pair)}
        print(f"  {variant:<36} recall {len(found & mine) / len(mine):.4f}")
    errors = sorted(match.error for match in matches)
    print(f"share of different bits among the found: median {errors[len(errors) // 2]:.3f}, largest {errors[-1]:.3f}")


if __name__ == "__main__":
    main()
