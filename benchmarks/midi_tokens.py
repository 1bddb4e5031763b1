"""How fast is the tokenizer beside MidiTok, and the parsing beside pretty_midi? ``python benchmarks/midi_tokens.py [FILE.mid ...]``.

Without files 20 composed scores are taken. Needs ``pip install miditok pretty_midi``. In turns, best of ``--rounds``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import symusic

from music_training.emotion_bridges import studio
from music_training.emotion_bridges.midi_generator.tokenizer import MidiTokenizer


def best(jobs: dict, rounds: int) -> dict[str, float]:
    """CPU seconds of each job, the least of ``rounds``, in turns."""
    times = dict.fromkeys(jobs, float("inf"))
    for _ in range(rounds):
        for name, job in jobs.items():
            start = time.process_time()
            job()
            times[name] = min(times[name], time.process_time() - start)
    return times


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parsed = parser.parse_args()
    import miditok
    import pretty_midi

    with tempfile.TemporaryDirectory() as folder:
        paths = parsed.files
        if not paths:
            paths = [Path(folder) / f"{number}.mid" for number in range(20)]
            for path, (_, score) in zip(paths, studio.songs(7, range(20), 1), strict=True):
                score.dump_midi(str(path))
        scores = [symusic.Score(str(path)) for path in paths]
        notes = sum(score.note_num() for score in scores)
        own, other = MidiTokenizer(), miditok.MIDILike(miditok.TokenizerConfig(use_programs=True, use_tempos=True))
        held, others = [own.encode(score) for score in scores], [other.encode(score) for score in scores]
        jobs = {
            "parse, symusic (ours)": lambda: [symusic.Score(str(path)) for path in paths],
            "parse, pretty_midi": lambda: [pretty_midi.PrettyMIDI(str(path)) for path in paths],
            "encode, ours": lambda: [own.encode(score) for score in scores],
            "encode, MidiTok": lambda: [other.encode(score) for score in scores],
            "decode, ours": lambda: [own.decode(ids) for ids in held],
            "decode, MidiTok": lambda: [other.decode(ids) for ids in others],
        }
        times = best(jobs, parsed.rounds)
        back = sum(own.decode(ids).note_num() for ids in held), sum(other.decode(ids).note_num() for ids in others)
    print(f"{len(paths)} scores, {notes} notes; come back: {back[0]} ours, {back[1]} MidiTok")
    print(f"{'':24s}{'CPU ms a score':>16s}{'times ours':>12s}")
    for name, seconds in times.items():
        base = next(times[other] for other in times if other.startswith(name.partition(",")[0]))
        print(f"{name:24s}{1000 * seconds / len(paths):16.3f}{seconds / base:12.1f}")


if __name__ == "__main__":
    main()
