"""Scores as training examples: excerpts of whole bars, moved to the tonic C, as tokens that are kept in a cache.

Everything is learned in C (major or minor): a key that is asked for transposes what goes in and what comes out, so the
condition "key" holds exactly and costs no training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import symusic

from ... import files
from ...errors import UserError
from ...progress import progress
from .. import emotions
from ..config import MidiSettings
from ..manifests import Entry
from . import measures
from .tokenizer import BAR, EOS, PAD, TICKS, MidiTokenizer, bar_starts, read

NOTE_NAMES = {"C": 0, "C#": 1, "Db": 1, "D": 2, "D#": 3, "Eb": 3, "E": 4, "F": 5, "F#": 6, "Gb": 6, "G": 7, "G#": 8, "Ab": 8, "A": 9,
              "A#": 10, "Bb": 10, "B": 11}  # fmt: skip
CONTEXT = 5  # known: emotion, tempo; tempo; major; minor
FEWEST = 6  # notes of an excerpt
VERSION = 1


@dataclass
class Excerpts:
    """Examples in memory: ``tokens[i]``, ``emotion`` ``[n, 64]``, ``tempo`` (bpm) and ``major`` ``[n]``; ``dropped`` were too long."""

    tokens: list[numpy.ndarray]
    emotion: numpy.ndarray
    tempo: numpy.ndarray
    major: numpy.ndarray
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.tokens)


def parse_key(text: str) -> tuple[int, bool]:
    """``F# minor`` to (6, False); UserError for another spelling."""
    tonic, _, mode = text.strip().partition(" ")
    if tonic not in NOTE_NAMES or mode.lower() not in ("major", "minor"):
        raise UserError(f"key {text!r}: write it as C major, F# minor or Eb minor")
    return NOTE_NAMES[tonic], mode.lower() == "major"


def key_name(tonic: int, major: bool) -> str:
    """``(6, False)`` to ``F# minor``."""
    return f"{next(name for name, number in NOTE_NAMES.items() if number == tonic)} {'major' if major else 'minor'}"


def key_shift(tonic: int) -> int:
    """Semitones from C to a tonic by the nearest way, -6 ... 5."""
    return (tonic + 6) % 12 - 6


def transposed(score: symusic.Score, semitones: int) -> symusic.Score:
    """A copy with every pitched note moved; what would leave the range moves an octave back."""
    score = score.copy()
    for track in score.tracks:
        if track.is_drum or not len(track.notes):
            continue
        held = track.notes.numpy()
        pitch = held["pitch"].astype(numpy.int32) + semitones
        pitch = numpy.where(pitch > 127, pitch - 12, numpy.where(pitch < 0, pitch + 12, pitch)).astype(numpy.int8)
        track.notes = symusic.Note.from_numpy(held["time"], held["duration"], pitch, held["velocity"], ttype="Tick")
    return score


def simplified(score: symusic.Score, settings: MidiSettings) -> symusic.Score:
    """A copy on the token grid with what the settings leave of it: drums or not, one pitched instrument or all, fewer velocities."""
    scale = TICKS / score.tpq
    result = symusic.Score(TICKS)
    for tempo in score.tempos:
        result.tempos.append(symusic.Tempo(round(tempo.time * scale), qpm=tempo.qpm))
    for sign in score.time_signatures:
        result.time_signatures.append(symusic.TimeSignature(round(sign.time * scale), sign.numerator, sign.denominator))
    merged: dict[tuple, list] = {}
    for number, track in enumerate(score.tracks):
        if not len(track.notes) or (track.is_drum and not settings.drums):
            continue
        held = track.notes.numpy()
        onset = numpy.floor(held["time"] * scale + 0.5).astype(numpy.int64)
        stop = numpy.maximum(numpy.floor((held["time"].astype(numpy.float64) + held["duration"]) * scale + 0.5), onset + 1)
        step = settings.velocity_step
        velocity = numpy.clip(held["velocity"] // step * step + step // 2, 1, 127)
        place = "one" if settings.merge and not track.is_drum else number
        program = 0 if settings.merge or track.is_drum else track.program
        rows = numpy.stack([onset, stop.astype(numpy.int64), held["pitch"], velocity], 1)
        merged.setdefault((place, program, track.is_drum), []).append(rows)
    for (_, program, drums), parts in merged.items():
        rows = numpy.concatenate(parts)
        if settings.merge and not drums:
            rows = _one_keyboard(rows)
        track = symusic.Track("", program, drums)
        track.notes = _note_list(rows)
        result.tracks.append(track)
    return result


def excerpt(score: symusic.Score, start: int, stop: int) -> symusic.Score:
    """Ticks ``start`` to ``stop`` of a score on the token grid, from tick 0: the notes that begin there, cut at its end."""
    result = symusic.Score(TICKS)
    sounding = [tempo for tempo in score.tempos if tempo.time <= start] or list(score.tempos)[:1]
    if sounding:
        result.tempos.append(symusic.Tempo(0, qpm=sounding[-1].qpm))
    for tempo in score.tempos:
        if start < tempo.time < stop:
            result.tempos.append(symusic.Tempo(tempo.time - start, qpm=tempo.qpm))
    signs = [sign for sign in score.time_signatures if sign.time <= start][-1:]
    for sign in [*signs, *(sign for sign in score.time_signatures if start < sign.time < stop)]:
        result.time_signatures.append(symusic.TimeSignature(max(0, sign.time - start), sign.numerator, sign.denominator))
    for track in score.tracks:
        held = track.notes.numpy()
        inside = (held["time"] >= start) & (held["time"] < stop)
        if not inside.any():
            continue
        onset = held["time"][inside].astype(numpy.int64)
        rows = numpy.stack(
            [onset - start, numpy.minimum(onset + held["duration"][inside], stop) - start, held["pitch"][inside], held["velocity"][inside]],
            1,
        )
        cut = symusic.Track("", track.program, track.is_drum)
        cut.notes = _note_list(rows)
        result.tracks.append(cut)
    return result


def prepared(score: symusic.Score, settings: MidiSettings, key: str = "") -> tuple[symusic.Score, int, bool]:
    """The simplified score in C, the tonic that it was in and whether it is major; the key is estimated where it is not known."""
    plain = simplified(score, settings)
    tonic, major = parse_key(key) if key else measures.key_of(score)
    return transposed(plain, -key_shift(tonic)), tonic, major


def excerpts_of(score: symusic.Score, settings: MidiSettings) -> list[symusic.Score]:
    """The excerpts of a prepared score; with ``main_part`` only those with at least three quarters of the most notes."""
    end = max((int(track.notes.numpy()["time"].max()) for track in score.tracks if len(track.notes)), default=-1) + 1
    if not end:
        return []
    starts = bar_starts(score, end)
    last = len(starts) - settings.bars
    found = []
    for first in range(0, max(last, 0) + 1, settings.hop):
        stop = starts[first + settings.bars] if first + settings.bars < len(starts) else end
        found.append(excerpt(score, int(starts[first]), int(stop)))
    counts = [cut.note_num() for cut in found]
    least = max(FEWEST, 0.75 * max(counts) if settings.main_part else 0)
    return [cut for cut, count in zip(found, counts, strict=True) if count >= least]


def load(entries: Sequence[Entry], settings: MidiSettings) -> Excerpts:
    """All excerpts of the rows' scores; UserError where none is left."""
    found = Excerpts([], numpy.zeros((0, emotions.SIZE), numpy.float32), numpy.zeros(0), numpy.zeros(0, bool))
    felt, tempi, majors = [], [], []
    for entry in progress(entries, "reading scores", unit="scores"):
        tokens, tempo, major, dropped = _cached(files.absolute(entry.midi_path), entry.key, settings)
        found.tokens += tokens
        felt += [emotions.padded(entry.emotion)] * len(tokens)
        tempi += tempo
        majors += [major] * len(tokens)
        found.dropped += dropped
    if not found.tokens:
        raise UserError(
            f"none of {len(entries)} scores has an excerpt of {settings.bars} bars with {FEWEST} notes that fits {settings.context} tokens"
        )
    found.emotion, found.tempo, found.major = numpy.stack(felt), numpy.array(tempi), numpy.array(majors)
    return found


def context_of(tempo: float | None = None, major: bool | None = None, felt: bool = True) -> numpy.ndarray:
    """The musical context as the model takes it, float32 ``[5]``; None: not known."""
    known = tempo is not None
    return numpy.array([felt, known, (tempo - 120) / 60 if known else 0.0, major is True, major is False], numpy.float32)


def padded(rows: Sequence[numpy.ndarray]) -> numpy.ndarray:
    """Token rows ``[n, longest]``, filled with PAD."""
    tokens = numpy.full((len(rows), max(map(len, rows))), PAD, numpy.int64)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = row
    return tokens


def prompt_tokens(score: symusic.Score, settings: MidiSettings, bars: int, key: str = "") -> numpy.ndarray:
    """The first ``bars`` bars of a score as the beginning of a sequence: no EOS, and the next BAR."""
    plain, _, _ = prepared(score, settings, key)
    starts = bar_starts(plain, 1 << 30) if not plain.note_num() else bar_starts(plain, plain.end() + bars * 8 * TICKS)
    cut = excerpt(plain, 0, int(starts[min(bars, len(starts) - 1)]))
    return advance(MidiTokenizer().encode_array(cut), int(starts[min(bars, len(starts) - 1)]))


def advance(tokens: numpy.ndarray, end: int) -> numpy.ndarray:
    """A sequence without its EOS that goes on at tick ``end`` with a BAR."""
    from .tokenizer import SHIFT, SHIFTS, VELOCITY

    body = tokens[:-1] if tokens[-1] == EOS else tokens
    shifts = (body >= SHIFT) & (body < VELOCITY)
    shifts[1:] &= ~((body[:-1] >= VELOCITY) & (body[:-1] < PAD))  # a tempo's second half
    gap = end - int((body[shifts] - SHIFT + 1).sum())
    moves = [SHIFT + SHIFTS - 1] * (gap // SHIFTS) + ([SHIFT + gap % SHIFTS - 1] if gap % SHIFTS else [])
    return numpy.concatenate([body, numpy.array([*moves, BAR], numpy.int64)])


def last_bar(score: symusic.Score) -> tuple[symusic.Score, int]:
    """The last bar of a score on the token grid that has a note, from tick 0, and its length in ticks."""
    ends = [int(track.notes.numpy()["time"].max()) for track in score.tracks if len(track.notes)]
    starts = bar_starts(score, max(ends, default=0) + 1)
    begin = int(starts[-1])
    length = int(bar_starts(score, begin + 16 * TICKS)[len(starts)]) - begin
    return excerpt(score, begin, begin + length), length


def joined(score: symusic.Score, following: symusic.Score, overlap: int) -> symusic.Score:
    """A score with another behind it that begins with the first one's last bar, of ``overlap`` ticks."""
    result = score.copy()
    ends = [int(track.notes.numpy()["time"].max()) for track in score.tracks if len(track.notes)]
    begin = int(bar_starts(score, max(ends, default=0) + 1)[-1])
    for track in following.tracks:
        held = track.notes.numpy()
        new = held["time"] >= overlap
        if not new.any():
            continue
        same = [other for other in result.tracks if (other.program, other.is_drum) == (track.program, track.is_drum)]
        if not same:
            result.tracks.append(symusic.Track("", track.program, track.is_drum))
            same = [result.tracks[-1]]
        columns = [held[name][new] for name in ("time", "duration", "pitch", "velocity")]
        columns[0] = columns[0] + numpy.int32(begin)
        same[0].notes.extend(symusic.Note.from_numpy(*columns, ttype="Tick"))
    return result


def _one_keyboard(rows: numpy.ndarray) -> numpy.ndarray:
    """Notes of several parts as one player has them: a pitch struck twice at once sounds once, a sounding one ends when struck again."""
    rows = rows[numpy.lexsort((-rows[:, 1], rows[:, 0], rows[:, 2]))]
    same = numpy.append((rows[1:, 2] == rows[:-1, 2]) & (rows[1:, 0] == rows[:-1, 0]), False)
    first = ~numpy.append(False, same[:-1])
    rows = rows[first]
    again = numpy.append(rows[1:, 2] == rows[:-1, 2], False)
    following = numpy.append(rows[1:, 0], 0)
    rows[again, 1] = numpy.minimum(rows[again, 1], following[again])
    return rows[numpy.lexsort((rows[:, 2], rows[:, 0]))]


def _note_list(rows: numpy.ndarray):
    columns = rows.T
    times, spans = columns[0].astype(numpy.int32), (columns[1] - columns[0]).astype(numpy.int32)
    return symusic.Note.from_numpy(times, spans, columns[2].astype(numpy.int8), columns[3].astype(numpy.int8), ttype="Tick")


def _cached(path: Path, key: str, settings: MidiSettings) -> tuple[list[numpy.ndarray], list[float], bool, int]:
    chosen = settings.model_dump(include={"bars", "hop", "context", "drums", "merge", "velocity_step", "main_part"})
    name = hashlib.sha256(json.dumps([files.digest(path), key, chosen, VERSION], sort_keys=True).encode()).hexdigest()[:32]
    cached = files.outputs_root() / "cache" / "midi_tokens" / f"{name}.npz"
    if not cached.is_file():
        plain, _, major = prepared(read(path), settings, key)
        cuts = excerpts_of(plain, settings)
        encoded = [MidiTokenizer().encode_array(cut) for cut in cuts]
        fitting = [number for number, tokens in enumerate(encoded) if len(tokens) <= settings.context]
        kept = [encoded[number] for number in fitting]
        with files.atomic(cached) as temporary, open(temporary, "wb") as stream:
            numpy.savez(
                stream,
                tokens=numpy.concatenate(kept).astype(numpy.int16) if kept else numpy.zeros(0, numpy.int16),
                sizes=numpy.array([len(tokens) for tokens in kept], numpy.int64),
                tempo=numpy.array([measures.tempo_of(cuts[number]) for number in fitting]),
                major=numpy.array(major), dropped=numpy.array(len(encoded) - len(kept)),
            )  # fmt: skip
    with numpy.load(cached) as held:
        ends = numpy.cumsum(held["sizes"])
        tokens = held["tokens"].astype(numpy.int64)
        rows = [tokens[end - size : end] for end, size in zip(ends, held["sizes"], strict=True)]
        return rows, held["tempo"].tolist(), bool(held["major"]), int(held["dropped"])
