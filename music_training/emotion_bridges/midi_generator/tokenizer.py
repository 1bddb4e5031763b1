"""MIDI as 388 tokens that can be read back: 128 note-on, 128 note-off, 96 time shifts, 32 velocities, PAD, BOS, EOS, BAR.

Time is counted in ticks, 24 to the quarter note; a time shift is 1 to 96 ticks. A velocity token sets the level
(velocity // 4) of the notes that follow. Two pairs that mean nothing else carry what the vocabulary has no token for:

``velocity a, time shift n``   tempo 20 + (96 a + n - 1) / 10 beats per minute, up to 327.1; no time passes
``velocity a, velocity b``     the notes that follow are of instrument 32 a + b: a program (0-127) or the drums (128), plus
                               129 for each earlier track of the same program (up to 6; further ones share the last)

Tempo stands first, after BOS, so that a model generates it and a sequence alone is music. BAR stands where a bar
begins; its distances give back the time signatures (6/8 comes back as 3/4). Within a tick: note-offs, BAR, tempo,
note-ons by instrument and pitch. Drum hits have no note-off. Of two sounding notes of one pitch and instrument the one
that began first ends first, as in MIDI itself.

Round trip: onsets within half a tick (1/48 of a quarter note) and ends within half a tick at least one tick later,
velocities within 2, tempi within 0.05 bpm. Not kept, and counted by :meth:`MidiTokenizer.left_out`: controllers,
pedals, pitch bends, texts, names, key signatures, how long drum hits are held.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy
import symusic

from ...errors import UserError

TICKS = 24  # per quarter note
NOTE_ON, NOTE_OFF, SHIFT, VELOCITY = 0, 128, 256, 352
PAD, BOS, EOS, BAR = 384, 385, 386, 387
SHIFTS, LEVELS = 96, 32
SLOWEST, TEMPI = 20.0, SHIFTS * LEVELS  # bpm; steps of 0.1
DRUMS, PROGRAMS = 128, 129
LAYERS = 7  # tracks of one program that stay apart
DRUM_TICKS = 6  # the length that a drum hit gets back
_OFF, _BAR, _TEMPO, _ON = range(4)  # order within a tick


class MidiTokenizer:
    """Scores to tokens and back; ``vocab_size`` is 388."""

    vocab_size = 388

    def encode(self, score: symusic.Score | Path | str) -> list[int]:
        """Tokens of a score or MIDI file, BOS ... EOS; UserError for a file that is not MIDI."""
        return self.encode_array(read(score)).tolist()

    def encode_array(self, score: symusic.Score) -> numpy.ndarray:
        """As :meth:`encode`, an int64 array."""
        events = _events(score)
        tick, kind, instrument, value, level = (events[:, column] for column in range(5))
        gaps = numpy.diff(tick, prepend=0)
        shifts = -(-gaps // SHIFTS)
        noted = (kind == _OFF) | (kind == _ON)
        switched = numpy.zeros(len(events), bool)
        switched[noted] = numpy.diff(instrument[noted], prepend=0) != 0
        louder = numpy.zeros(len(events), bool)
        louder[kind == _ON] = numpy.diff(level[kind == _ON], prepend=-1) != 0
        sizes = shifts + 2 * switched + louder + 1 + (kind == _TEMPO)
        ends = 1 + numpy.cumsum(sizes)
        tokens = numpy.full(int(ends[-1]) + 1 if len(events) else 2, SHIFT + SHIFTS - 1, numpy.int64)
        tokens[0], tokens[-1] = BOS, EOS
        starts = ends - sizes
        moved = shifts > 0
        tokens[(starts + shifts - 1)[moved]] = SHIFT + (gaps[moved] - 1) % SHIFTS
        at = (starts + shifts)[switched]
        tokens[at] = VELOCITY + instrument[switched] // LEVELS
        tokens[at + 1] = VELOCITY + instrument[switched] % LEVELS
        tokens[ends[louder] - 2] = VELOCITY + level[louder]
        tempo = kind == _TEMPO
        tokens[ends[tempo] - 2] = VELOCITY + value[tempo] // SHIFTS
        tokens[ends[tempo] - 1] = SHIFT + value[tempo] % SHIFTS
        for of_kind, base in ((_OFF, NOTE_OFF), (_ON, NOTE_ON)):
            tokens[ends[kind == of_kind] - 1] = base + value[kind == of_kind]
        tokens[ends[kind == _BAR] - 1] = BAR
        return tokens

    def decode(self, ids: Iterable[int]) -> symusic.Score:
        """The score of any sequence of tokens: what makes no sense is passed over, what still sounds ends with the last event."""
        ids = [int(token) for token in ids]
        wrong = [token for token in ids if not 0 <= token < self.vocab_size]
        if wrong:
            raise UserError(f"token {wrong[0]}: the vocabulary ends at {self.vocab_size - 1}")
        tick, level, instrument = 0, 16, 0
        notes: dict[int, list[list[int]]] = defaultdict(list)
        sounding: dict[tuple[int, int], deque[list[int]]] = defaultdict(deque)
        tempi: dict[int, float] = {}
        bars: list[int] = []
        place, end = 0, len(ids)
        while place < end:
            token = ids[place]
            place += 1
            if token < NOTE_OFF:
                note = [tick, DRUM_TICKS if instrument % PROGRAMS == DRUMS else 0, token, 4 * level + 2]
                notes[instrument].append(note)
                if not note[1]:
                    sounding[instrument, token].append(note)
            elif token < SHIFT:
                waiting = sounding[instrument, token - NOTE_OFF]
                if waiting:
                    note = waiting.popleft()
                    note[1] = max(1, tick - note[0])
            elif token < VELOCITY:
                tick += token - SHIFT + 1
            elif token < PAD:
                following = ids[place] if place < end else PAD
                if SHIFT <= following < VELOCITY:
                    tempi[tick] = SLOWEST + ((token - VELOCITY) * SHIFTS + following - SHIFT) / 10
                    place += 1
                elif VELOCITY <= following < PAD:
                    instrument = min((token - VELOCITY) * LEVELS + following - VELOCITY, PROGRAMS * LAYERS - 1)
                    place += 1
                else:
                    level = token - VELOCITY
            elif token == BAR:
                bars.append(tick)
            elif token == EOS:
                break
        for waiting in sounding.values():
            for note in waiting:
                note[1] = max(1, tick - note[0])
        return _score(notes, tempi, bars)

    def left_out(self, score: symusic.Score | Path | str) -> dict[str, int]:
        """What :meth:`encode` does not keep of a score, counted; empty where it keeps all."""
        score = read(score)
        counts = {
            "controllers": sum(len(track.controls) for track in score.tracks),
            "pedals": sum(len(track.pedals) for track in score.tracks),
            "pitch bends": sum(len(track.pitch_bends) for track in score.tracks),
            "texts": len(score.markers) + sum(len(track.lyrics) for track in score.tracks),
            "key signatures": len(score.key_signatures),
            "lengths of drum hits": sum(len(track.notes) for track in score.tracks if track.is_drum),
            "tempi out of range": sum(not SLOWEST <= tempo.qpm <= SLOWEST + TEMPI / 10 for tempo in score.tempos),
        }
        return {name: count for name, count in counts.items() if count}


def read(score: symusic.Score | Path | str) -> symusic.Score:
    """A score as it is, or read from a MIDI file; UserError for a file that is not one."""
    if not isinstance(score, (str, Path)):
        return score
    try:
        return symusic.Score(str(score))
    except Exception as error:  # the parser's own kinds of error differ between its versions
        if not Path(score).is_file():
            raise UserError(f"{score}: no such MIDI file") from None
        raise UserError(f"{score}: not MIDI that can be read ({str(error).splitlines()[0] if str(error) else error})") from None


def instruments(score: symusic.Score) -> list[int]:
    """The instrument number of each track: its program or the drums, plus 129 for each earlier track of the same."""
    seen: dict[int, int] = defaultdict(int)
    numbers = []
    for track in score.tracks:
        program = DRUMS if track.is_drum else track.program
        numbers.append(program + PROGRAMS * min(seen[program], LAYERS - 1))
        seen[program] += bool(len(track.notes))
    return numbers


def bar_starts(score: symusic.Score, end: int) -> numpy.ndarray:
    """Where bars begin before tick ``end``, in ticks of 1/24 quarter note; without a time signature in 4/4."""
    scale = TICKS / score.tpq
    changes = sorted({sign.time: (sign.numerator, sign.denominator) for sign in score.time_signatures}.items())
    if not changes or changes[0][0] > 0:
        changes.insert(0, (0, (4, 4)))
    starts = []
    for (time, (above, below)), following in zip(changes, [*(time for time, _ in changes[1:]), None], strict=True):
        stop = end if following is None else min(end, following * scale)
        starts.append(numpy.arange(time * scale, stop - 1e-6, max(1.0, above * 4 * TICKS / below)))
    return numpy.unique(numpy.rint(numpy.concatenate(starts)).astype(numpy.int64))


def _events(score: symusic.Score) -> numpy.ndarray:
    """All events in their order, ``[n, 5]``: tick, kind, instrument, value, level."""
    scale = TICKS / score.tpq
    parts, end = [], 0
    for track, instrument in zip(score.tracks, instruments(score), strict=True):
        if not len(track.notes):
            continue
        held = track.notes.numpy()
        begin = held["time"].astype(numpy.float64)
        onset = numpy.maximum(numpy.floor(begin * scale + 0.5), 0).astype(numpy.int64)
        stop = numpy.maximum(numpy.floor((begin + held["duration"]) * scale + 0.5).astype(numpy.int64), onset + 1)
        end = max(end, int(onset.max()) + 1 if track.is_drum else int(stop.max()))
        pitch = held["pitch"].astype(numpy.int64)
        level = numpy.clip(held["velocity"].astype(numpy.int64), 1, 127) // 4
        parts.append(_rows(onset, _ON, instrument, pitch, level))
        if not track.is_drum:
            parts.append(_rows(stop, _OFF, instrument, pitch))
    tempi: dict[int, int] = {0: round((120 - SLOWEST) * 10)}
    for tempo in score.tempos:
        tempi[int(tempo.time * scale + 0.5)] = min(max(round((tempo.qpm - SLOWEST) * 10), 0), TEMPI - 1)
    changes = [(time, value) for time, value in sorted(tempi.items()) if time == 0 or time < end]
    changes = [change for change, before in zip(changes, [(0, -1), *changes], strict=False) if change[1] != before[1]]
    parts.append(_rows(numpy.array([time for time, _ in changes]), _TEMPO, 0, numpy.array([value for _, value in changes])))
    parts.append(_rows(bar_starts(score, end), _BAR, 0, 0))
    events = numpy.concatenate(parts)
    order = numpy.where((events[:, 1] == _TEMPO) & (events[:, 0] == 0), -1, events[:, 1])
    return events[numpy.lexsort((events[:, 4], events[:, 3], events[:, 2], order, events[:, 0]))]


def _rows(tick: numpy.ndarray, kind: int, instrument: int, value, level=0) -> numpy.ndarray:
    rows = numpy.empty((len(tick), 5), numpy.int64)
    for column, content in enumerate((tick, kind, instrument, value, level)):
        rows[:, column] = content
    return rows


def _score(notes: dict[int, list[list[int]]], tempi: dict[int, float], bars: Sequence[int]) -> symusic.Score:
    score = symusic.Score(TICKS)
    for time, tempo in tempi.items():
        score.tempos.append(symusic.Tempo(time, qpm=tempo))
    before = 0
    for start, stop in zip(bars, bars[1:], strict=False):
        length = stop - start
        unit = next((unit for unit in (4, 8, 16) if length and length % (4 * TICKS // unit) == 0), 0)
        if unit and length != before:
            score.time_signatures.append(symusic.TimeSignature(start, length * unit // (4 * TICKS), unit))
            before = length
    for instrument in sorted(notes):
        program = instrument % PROGRAMS
        track = symusic.Track("", 0 if program == DRUMS else program, program == DRUMS)
        columns = numpy.array(notes[instrument], numpy.int32).T
        track.notes = symusic.Note.from_numpy(*columns[:2], *columns[2:].astype(numpy.int8), ttype="Tick")
        score.tracks.append(track)
    return score
