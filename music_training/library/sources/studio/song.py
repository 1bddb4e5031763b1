"""A song before it sounds: its emotion, its form in bars, its notes with their times."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from . import patterns
from .artists import Artist, Style

LABELS = ("intro", "buildup", "drop", "breakdown", "outro")
DRUM_NOTES = {  # General MIDI percussion
    "kick": 36, "snare": 38, "clap": 39, "tom": 45, "perc": 37, "hat_closed": 42, "hat_open": 46, "crash": 49, "ride": 51,
}  # fmt: skip
TAIL = 1.5  # seconds that the last notes have to fade
TONICS = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")


@dataclass(frozen=True)
class Emotion:
    """Valence and arousal in [-1, 1], intensity in [0, 1]."""

    valence: float
    arousal: float
    intensity: float


@dataclass(frozen=True)
class Section:
    """A part of the form: its label, its first bar (1-based) and its length in bars."""

    label: str
    bar: int
    bars: int


@dataclass(frozen=True)
class Note:
    """A note or a hit: time and duration in seconds, MIDI pitch, velocity in (0, 1].

    ``colour`` in [0, 1] is the brightness; ``shape`` is the wobble of a bass (cycles per beat), the vowel of a voice
    and the variant of a hit.
    """

    part: str
    time: float
    duration: float
    pitch: int
    velocity: float
    colour: float = 0.5
    shape: int = 0


@dataclass
class Song:
    """A composed track; ``pickup`` is the number of beats before bar 1."""

    id: str
    title: str
    artist: Artist
    style: Style
    emotion: Emotion
    bpm: float
    tonic: int
    mode: str
    pickup: int
    sections: tuple[Section, ...]
    notes: list[Note] = field(default_factory=list)

    @property
    def beat(self) -> float:
        """Seconds per beat."""
        return 60.0 / self.bpm

    @property
    def bars(self) -> int:
        """How many bars it has."""
        return self.sections[-1].bar + self.sections[-1].bars - 1

    @property
    def duration(self) -> float:
        """Seconds, with the tail."""
        return self.bar_time(self.bars + 1) + TAIL

    @property
    def key(self) -> str:
        """Tonic and major or minor, such as ``F# minor``."""
        return f"{TONICS[self.tonic]} {'major' if patterns.is_major(self.mode) else 'minor'}"

    def bar_time(self, bar: int) -> float:
        """When a bar (1-based) begins, in seconds."""
        return (self.pickup + 4 * (bar - 1)) * self.beat

    def beats(self) -> list[tuple[float, int]]:
        """Every beat's time (s) and its position in the bar (1-4), the pickup's too."""
        return [(index * self.beat, (index - self.pickup) % 4 + 1) for index in range(self.pickup + 4 * self.bars)]


def draw_emotion(index: int, rng: np.random.Generator) -> Emotion:
    """The emotion of the track number ``index``: evenly spread over the plane (additive recurrence), never two alike."""
    valence, arousal = ((0.5 + index * step) % 1.0 * 2 - 1 for step in (0.7548776662466927, 0.5698402909980532))
    intensity = float(np.clip(0.5 + 0.32 * arousal + rng.normal(0, 0.14), 0, 1))
    return Emotion(round(0.96 * valence, 3), round(0.96 * arousal, 3), round(intensity, 3))


def draw_form(bars: int, rng: np.random.Generator) -> tuple[Section, ...]:
    """Song form over about ``bars`` bars, in units of four: two drops where there is room for them."""
    units = max(4, round(bars / 4))
    if units >= 9:
        labels = ["intro", "buildup", "drop", "breakdown", "buildup", "drop", "outro"]
        if rng.random() < 0.25:
            labels.remove("buildup")  # straight from the intro into the first drop
    elif units >= 5:
        labels = ["intro", "buildup", "drop", "breakdown", "drop", "outro"] if units >= 7 and rng.random() < 0.4 else list(LABELS)
    else:
        labels = ["intro", "buildup", "drop", "outro"]
    lengths = [1] * len(labels)
    weights = {"intro": 1.2, "buildup": 0.8, "drop": 3.0, "breakdown": 1.6, "outro": 1.1}
    for _ in range(units - len(labels)):
        need = [weights[label] * rng.uniform(0.7, 1.3) / length for label, length in zip(labels, lengths, strict=True)]
        lengths[int(np.argmax(need))] += 1
    sections, bar = [], 1
    for label, length in zip(labels, lengths, strict=True):
        sections.append(Section(label, bar, 4 * length))
        bar += 4 * length
    return tuple(sections)
