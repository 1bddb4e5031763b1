"""Dialogues: speech-like recordings of several formant voices, with who speaks when. Synthetic, no language.

Turns follow one another with pauses or overlaps, now and then a listener says a short word in between; a room's noise
lies under all. Speakers come in casts of four that never mix, so that a split by cast is a split by speaker.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import fft

from .... import files
from .artists import generator
from .mixing import write_wav
from .wavetables import PERIOD, ROWS, VOWELS, oscillate, vowel_table

RATE = 16000
CAST = 4


@dataclass(frozen=True)
class Speaker:
    """A voice: pitch (Hz) and its range, formant scale, syllables per second, breath, brightness of the consonants."""

    id: str
    hz: float
    span: float
    scale: float
    pace: float
    breath: float
    tilt: float


@dataclass(frozen=True)
class Turn:
    """Who speaks from when to when, in seconds; ``loudness`` as a factor."""

    speaker: int
    start: float
    end: float
    loudness: float


@dataclass(frozen=True)
class Dialogue:
    """A recording before it sounds; ``cast`` numbers the group that its speakers belong to."""

    id: str
    seed: int
    index: int
    cast: int
    seconds: float
    speakers: tuple[Speaker, ...]
    turns: tuple[Turn, ...]
    noise: float


def draw_speaker(seed: int, index: int) -> Speaker:
    """The speaker number ``index``: low and high voices in turn."""
    rng = generator("speaker", seed, index)
    high = index % 2
    return Speaker(
        id=f"speaker_{index + 1:03d}",
        hz=float(rng.uniform(165, 260) if high else rng.uniform(85, 150)),
        span=float(rng.uniform(0.12, 0.3)),
        scale=float(rng.uniform(1.1, 1.28) if high else rng.uniform(0.9, 1.08)),
        pace=float(rng.uniform(3.6, 6.2)),
        breath=float(rng.uniform(0.02, 0.12)),
        tilt=float(rng.uniform(2500, 5500)),
    )


def plan(seed: int, index: int, seconds: float, speakers: int) -> Dialogue:
    """Who talks when in the dialogue number ``index``: 2 to 4 speakers of one cast."""
    rng = generator("dialogue", seed, index)
    cast = index % (speakers // CAST)
    present = rng.permutation(CAST)[: int(rng.choice([2, 2, 3, 3, 4]))]
    voices = tuple(draw_speaker(seed, cast * CAST + int(place)) for place in sorted(present))
    loudness = rng.uniform(0.6, 1.0, len(voices))
    turns, time, current = [], float(rng.uniform(0.2, 1.5)), int(rng.integers(len(voices)))
    free = [0.0] * len(voices)  # when a speaker has ended: nobody overlaps with oneself
    while time < seconds - 1.2:
        start = max(time, free[current] + 0.1)
        end = min(start + float(np.clip(rng.gamma(2.2, 1.1), 0.7, 8.0)), seconds - 0.1)
        if end - start < 0.4:
            break
        turns.append(Turn(current, start, end, float(loudness[current])))
        free[current] = end
        if end - start > 2.0 and rng.random() < 0.35:  # a short word of a listener
            listener = int((current + rng.integers(1, len(voices))) % len(voices))
            at = float(rng.uniform(start + 0.5, end - 0.8))
            if at > free[listener] + 0.1:
                turns.append(Turn(listener, at, at + float(rng.uniform(0.3, 0.7)), 0.7 * float(loudness[listener])))
                free[listener] = turns[-1].end
        gap = rng.choice(3, p=[0.55, 0.3, 0.15])
        time = end + float((rng.uniform(0.08, 0.5), -rng.uniform(0.2, min(1.2, 0.6 * (end - start))), rng.uniform(0.8, 2.5))[gap])
        current = int((current + rng.integers(1, len(voices))) % len(voices))
    turns.sort(key=lambda turn: (turn.start, turn.speaker))
    noise = float(10 ** (rng.uniform(-48, -34) / 20))
    return Dialogue(f"dialogue_{index + 1:03d}", seed, index, cast, seconds, voices, tuple(turns), noise)


def render(recording: Dialogue) -> np.ndarray:
    """The audio, float32 [samples] at 16 kHz, peak below 1."""
    count = int(recording.seconds * RATE)
    rng = generator("dialogue audio", recording.seed, recording.index)
    out = np.zeros(count, np.float32)
    tables = [_voice_tables(speaker) for speaker in recording.speakers]
    for turn in recording.turns:
        speech = _speak(recording.speakers[turn.speaker], tables[turn.speaker], int((turn.end - turn.start) * RATE), rng)
        start = int(turn.start * RATE)
        part = out[start : start + len(speech)]
        part += np.float32(0.3 * turn.loudness) * speech[: len(part)]
    bins = fft.rfft(rng.standard_normal(count, dtype=np.float32))
    bins /= 1 + np.linspace(0, RATE / 2, len(bins), dtype=np.float32) / 400
    room = fft.irfft(bins, count)
    out += np.float32(recording.noise / room.std()) * room
    return out * np.float32(min(1.0, 0.95 / np.abs(out).max()))


def write(recording: Dialogue, folder: Path) -> None:
    """Write ``<id>.wav`` and ``<id>.rttm`` into a folder."""
    write_wav(folder / f"{recording.id}.wav", np.rint(render(recording) * 32767).astype(np.int16), RATE)
    lines = (
        f"SPEAKER {recording.id} 1 {turn.start:.3f} {turn.end - turn.start:.3f} <NA> <NA> {recording.speakers[turn.speaker].id} <NA> <NA>\n"
        for turn in recording.turns
    )
    (folder / f"{recording.id}.rttm").write_text("".join(lines), encoding="utf-8")


def row(recording: Dialogue, folder: Path) -> dict:
    """The dialogue's line of ``dialogues.jsonl``."""
    return {
        "id": recording.id,
        "path": files.relative(folder / f"{recording.id}.wav"),
        "rttm": files.relative(folder / f"{recording.id}.rttm"),
        "duration": int(recording.seconds * RATE) / RATE,
        "sample_rate": RATE,
        "cast": recording.cast,
        "speakers": [speaker.id for speaker in recording.speakers],
    }


def _voice_tables(speaker: Speaker) -> list[np.ndarray]:
    """Tables for three heights of the voice: formants stay where they are when the pitch moves."""
    return [vowel_table(speaker.hz * factor, RATE, speaker.scale) for factor in (0.85, 1.0, 1.2)]


def _speak(speaker: Speaker, tables: list[np.ndarray], count: int, rng: np.random.Generator) -> np.ndarray:
    """Syllables without meaning that fill ``count`` samples: pitch falls over a sentence, words have short rests."""
    out = np.zeros(count, np.float32)
    position, in_word = 0, int(rng.integers(1, 5))
    while position < count - int(0.06 * RATE):
        length = min(int(RATE / speaker.pace * rng.uniform(0.65, 1.4)), count - position)
        place = position / count
        height = (1.1 - 0.22 * place) * 2 ** rng.normal(0, 0.5 * speaker.span)
        t = np.arange(length, dtype=np.float32) / RATE
        hz = speaker.hz * height * (1 + 0.08 * np.sin(np.pi * t / t[-1]) + 0.01 * rng.standard_normal())
        table = tables[int(np.argmin([abs(height - factor) for factor in (0.85, 1.0, 1.2)]))]
        path = (rng.integers(0, 5) + np.minimum(t / 0.18, 1) * rng.uniform(0.2, 1.0)) / len(VOWELS) % 1.0
        rows = (np.minimum(path * ROWS, ROWS - 1)).astype(np.uint32) * np.uint32(PERIOD)
        vowel = oscillate(table, rows, hz, length, rng.random(), RATE) / 0.25
        onset = int(min(rng.uniform(0.02, 0.09) * RATE, length / 3))
        ramps = np.minimum(np.arange(length) / max(onset, 1), np.arange(length, 0, -1) / (0.035 * RATE))
        envelope = np.minimum(1, ramps).astype(np.float32)
        noise = rng.standard_normal(length, dtype=np.float32)
        noise[1:] -= np.float32(np.clip(1 - speaker.tilt / 8000, 0.2, 0.9)) * noise[:-1].copy()
        consonant = np.where(np.arange(length) < 1.5 * onset, np.float32(rng.uniform(0.05, 0.5)), np.float32(speaker.breath))
        out[position : position + length] += envelope * vowel + consonant * noise * np.minimum(1, 4 * envelope + 0.2) * 0.5
        position += length
        in_word -= 1
        if in_word == 0:
            in_word = int(rng.integers(1, 5))
            position += int(rng.uniform(0.0, 0.12) * RATE)
    return out / np.float32(np.sqrt(np.mean(out**2)) / 0.35 + 1e-6)
