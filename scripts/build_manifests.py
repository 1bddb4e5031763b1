#!/usr/bin/env python
"""Build the emotion bridges' manifests from a folder of audio and a folder of MIDI.

python scripts/build_manifests.py --audio-root ~/music/audio --midi-root ~/music/midi --val-split 0.05 --seed 42
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from music_training.errors import run_command


def main() -> None:
    """Parse the command line, build and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio-root", required=True, help="folder of audio, read recursively: wav, mp3, flac, ogg, m4a, aac")
    parser.add_argument("--midi-root", required=True, help="folder of MIDI files in matching folders: mid, midi")
    parser.add_argument("--out-dir", help="where the manifests go (default: outputs/data/manifests)")
    parser.add_argument("--val-split", type=float, default=0.05, help="share of the pairs for validation (default 0.05)")
    parser.add_argument("--seed", type=int, default=42, help="seed of the split (default 42)")
    parser.add_argument("--emotions", metavar="JSONL", help="ground-truth emotions that replace what folder and name tell")
    parser.add_argument("--norms", metavar="FILE", help="a lexicon of your own: NRC-VAD or Warriner")
    parser.add_argument("--keep-unlabelled", action="store_true", help="take files without an emotion as neutral")
    parser.add_argument("--generate-clouds", action="store_true", help="precompute the point clouds of Spectocloud")
    parser.add_argument("--clouds-dir", help="where the clouds go (default: outputs/data/clouds)")
    parser.add_argument("--workers", type=int, default=0, help="processes (default: all cores)")
    parser.add_argument("--force", action="store_true", help="again, although it is up to date")
    parsed = vars(parser.parse_args())
    force = parsed.pop("force")
    from music_training.emotion_bridges import manifests

    result = manifests.build(manifests.ManifestSettings(**parsed), force=force).result
    print(f"{result['pairs']} pairs: {result['train']} to train on, {result['val']} to validate; in {result['folder']}")
    for name, counts in (("emotion from", result["emotion from"]), ("left out", result["left out"])):
        print(f"{name}: {', '.join(f'{count} {reason}' for reason, count in counts.items()) or 'none'}")


if __name__ == "__main__":
    run_command(main)
