#!/usr/bin/env python
"""Words of emotion to ``[valence, arousal, intensity]``, or the emotion that a file's folder and name tell.

python scripts/emotion_helper.py grief "slightly happy"
python scripts/emotion_helper.py --path audio/sad/track_001.wav
python scripts/emotion_helper.py --list
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from music_training.errors import UserError, run_command


def main() -> None:
    """Parse the command line and print one line for each word or path."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="words or phrases")
    parser.add_argument("--path", action="append", default=[], type=Path, help="a file: its folder counts, then its name")
    parser.add_argument("--norms", type=Path, help="a lexicon of your own: NRC-VAD or Warriner")
    parser.add_argument("--list", action="store_true", help="all words with their families")
    parsed = parser.parse_args()
    from music_training.emotion_bridges import lexicon

    if not (parsed.words or parsed.path or parsed.list):
        raise UserError("give a word, --path FILE or --list")
    norms = lexicon.read_norms(parsed.norms) if parsed.norms else None
    for family, words in lexicon.FAMILIES.items() if parsed.list else ():
        for word, place in words.items():
            print(f"{family:10s}{word:12s}{list(place)}")
    for text in parsed.words:
        print(f"{text}: {lexicon.vector(text, norms)}")
    for path in parsed.path:
        found = lexicon.infer_from_path(path, norms)
        print(f"{path}: {f'{found[0]} ({found[1]})' if found else 'no emotion in its folder or name'}")


if __name__ == "__main__":
    run_command(main)
