"""The small change of composition: scales, progressions, motifs, rhythms and titles."""

from __future__ import annotations

import numpy as np

SCALES = {  # semitones above the tonic, dark to bright
    "phrygian": (0, 1, 3, 5, 7, 8, 10),
    "aeolian": (0, 2, 3, 5, 7, 8, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
    "ionian": (0, 2, 4, 5, 7, 9, 11),
    "lydian": (0, 2, 4, 6, 7, 9, 11),
}
MAJOR = ("mixolydian", "ionian", "lydian")
PROGRESSIONS = {  # degrees from 0
    "phrygian": ((0, 1, 0, 6), (0, 0, 1, 1), (0, 5, 1, 0)),
    "aeolian": ((0, 5, 2, 6), (0, 3, 5, 4), (0, 6, 5, 6), (0, 0, 5, 6)),
    "dorian": ((0, 3, 0, 3), (0, 6, 3, 0), (0, 2, 3, 6)),
    "mixolydian": ((0, 6, 3, 0), (0, 3, 6, 3), (0, 4, 6, 3)),
    "ionian": ((0, 4, 5, 3), (0, 3, 5, 4), (5, 3, 0, 4), (3, 0, 4, 5)),
    "lydian": ((0, 1, 0, 4), (0, 1, 5, 1), (0, 4, 1, 0)),
}
ARPS = ((0, 1, 2, 3), (0, 2, 1, 3, 2, 4), (4, 3, 2, 1, 0, 1, 2, 3), (0, 2, 4, 1, 3), (0, 0, 2, 4, 0, 3, 2, 4))
WORDS = {  # (valence above 0, arousal above 0): adjectives, nouns
    (True, True): (("Golden", "Rising", "Open", "Electric", "Summer", "Wild"), ("Sky", "Hearts", "Parade", "Sunrise", "Colours", "Run")),
    (True, False): (("Warm", "Slow", "Gentle", "Drifting", "Soft", "Evening"), ("Water", "Light", "Garden", "Letters", "Breeze", "Home")),
    (False, True): (("Iron", "Burning", "Broken", "Black", "Sharp", "Night"), ("Engine", "Alarm", "Teeth", "Pressure", "Chase", "Wire")),
    (False, False): (("Empty", "Cold", "Grey", "Fading", "Last", "Distant"), ("Room", "Winter", "Station", "Echo", "Rain", "Shore")),
}
MOODS = {
    (True, True): ("happy", "energetic", "uplifting"),
    (True, False): ("calm", "warm", "dreamy"),
    (False, True): ("aggressive", "tense", "dark"),
    (False, False): ("sad", "melancholic", "cold"),
}


def steps(rhythm: str) -> list[tuple[int, int]]:
    """``"x--.x..."`` -> [(0, 3), (4, 1)]: every note's step and its length in steps."""
    starts = [index for index, sign in enumerate(rhythm) if sign == "x"]
    return [(start, len(rhythm[start + 1 :]) - len(rhythm[start + 1 :].lstrip("-")) + 1) for start in starts]


def is_major(mode: str) -> bool:
    """Whether a mode has the major third."""
    return mode in MAJOR


def mode(valence: float, rng: np.random.Generator) -> str:
    """A mode as bright as the valence: minor ones below 0, major ones above."""
    names = tuple(SCALES)
    place = (valence + 1) / 2 * len(names) + rng.normal(0, 0.25)
    index = int(np.clip(place, 0, len(names) - 1))
    return names[max(3, index) if valence > 0 else min(2, index)]


def progression(name: str, rng: np.random.Generator) -> tuple[int, ...]:
    """The degrees of a mode's chords, four of them."""
    options = PROGRESSIONS[name]
    return options[int(rng.integers(len(options)))]


def melody(rng: np.random.Generator, density: float, steps: int) -> list[tuple[int, float, int]]:
    """A motif: (step, length in steps, degree above the chord's root); strong beats take tones of the chord."""
    weight = np.array([1.0, 0.15, 0.5, 0.3])[np.arange(steps) % 4]
    chosen = [step for step in range(steps) if rng.random() < weight[step] * (0.25 + 0.85 * density)]
    chosen = sorted({0, *chosen, steps // 2 + 4})
    motif, degree = [], int(rng.choice([0, 2, 4]))
    for step, following in zip(chosen, [*chosen[1:], steps], strict=True):
        degree = int(np.clip(degree + rng.choice([-2, -1, -1, 0, 1, 1, 2]), -2, 6))
        if step % 4 == 0:
            degree = min((0, 2, 4), key=lambda tone: abs(tone - degree))
        motif.append((step, float(min(following - step, 6)) * 0.9, degree))
    return motif


def euclid(hits: int, steps: int, turn: int) -> tuple[int, ...]:
    """``hits`` spread as evenly as can be over ``steps``, turned by ``turn``."""
    return tuple(sorted((index * steps // hits + turn) % steps for index in range(hits)))


def moods(valence: float, arousal: float) -> tuple[str, ...]:
    """Three mood words of the emotion's quadrant."""
    return MOODS[valence > 0, arousal > 0]


def title(valence: float, arousal: float, rng: np.random.Generator) -> str:
    """A title in the words of the emotion's quadrant."""
    adjectives, nouns = WORDS[valence > 0, arousal > 0]
    return f"{adjectives[int(rng.integers(len(adjectives)))]} {nouns[int(rng.integers(len(nouns)))]}"
