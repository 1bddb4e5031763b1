"""What a MIDI file loses on its way through the tokens: counts and largest errors, a row a file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy
import symusic

from ...errors import UserError
from . import tokenizer


def row(path: Path) -> dict[str, Any]:
    """Notes of a file, how many come back, tokens, largest errors of onset (quarter notes), velocity and tempo, and what is left out."""
    made = tokenizer.MidiTokenizer()
    score = tokenizer.read(path)
    ids = made.encode(score)
    back = made.decode(ids)
    before, after = _columns(score), _columns(back)
    errors = [(0.0, 0.0)]
    for key, wanted in before.items():
        found = after.get(key, numpy.zeros((0, 2)))
        if len(found) == len(wanted):
            errors.append(
                (numpy.abs(found[:, 0] - wanted[:, 0]).max(), numpy.abs(numpy.sort(found[:, 1]) - numpy.sort(wanted[:, 1])).max())
            )
    tempo = max((abs(one.qpm - other.qpm) for one, other in zip(score.tempos, back.tempos, strict=False)), default=0.0)
    return {
        "file": Path(path).name, "notes": score.note_num(), "come back": back.note_num(), "tokens": len(ids),
        "onset": max(onset for onset, _ in errors), "velocity": max(velocity for _, velocity in errors), "tempo": tempo,
        "left out": made.left_out(score),
    }  # fmt: skip


def table(paths: Iterable[Path]) -> str:
    """The rows of files as text; one that cannot be read says why."""
    lines = [f"{'file':44s}{'notes':>7s}{'back':>7s}{'tokens':>8s}{'onset':>9s}{'velocity':>9s}{'tempo':>8s}  left out"]
    for path in paths:
        try:
            one = row(path)
        except UserError as error:
            lines.append(f"{Path(path).name[:43]:44s}refused: {error}")
            continue
        out = ", ".join(f"{count} {name}" for name, count in one["left out"].items()) or "nothing"
        figures = f"{one['notes']:7d}{one['come back']:7d}{one['tokens']:8d}{one['onset']:9.4f}{one['velocity']:9.0f}{one['tempo']:8.3f}"
        lines.append(f"{one['file'][:43]:44s}{figures}  {out}")
    return "\n".join(lines)


def _columns(score: symusic.Score) -> dict[tuple[int, int], numpy.ndarray]:
    """Onset (quarter notes) and velocity of the notes of each instrument and pitch, by onset."""
    found: dict[tuple[int, int], list[tuple[float, int]]] = {}
    for track, number in zip(score.tracks, tokenizer.instruments(score), strict=True):
        for note in track.notes:
            found.setdefault((number, note.pitch), []).append((note.time / score.tpq, note.velocity))
    return {key: numpy.array(sorted(rows)) for key, rows in found.items()}
