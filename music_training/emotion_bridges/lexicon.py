"""Words of emotion with their place on the circumplex, and the emotion that a file's folder or name tells.

The order around the circle follows Russell (1980, "A circumplex model of affect"); the figures are this project's own
choice for music and no norm study's. Norms of your own (NRC-VAD, Warriner et al. 2013) are read from their files by
:func:`read_norms`; they may not be passed on, so they are not part of the repository.
"""

from __future__ import annotations

import csv
import functools
import re
from collections.abc import Mapping
from pathlib import Path

from .. import config, files
from ..errors import UserError
from .emotions import strength

# family: word: (valence, arousal, intensity); the tiers of a family differ in intensity
FAMILIES: dict[str, dict[str, tuple[float, float, float]]] = {
    "happy": {
        "happy": (0.8, 0.6, 0.65), "joy": (0.9, 0.7, 0.8), "calm": (0.4, -0.8, 0.3), "peaceful": (0.6, -0.75, 0.35),
        "excited": (0.7, 0.9, 0.85), "content": (0.65, -0.4, 0.35), "tender": (0.6, -0.5, 0.4), "energetic": (0.6, 0.95, 0.8),
    },
    "sad": {"sad": (-0.7, -0.5, 0.6), "melancholy": (-0.5, -0.55, 0.45), "grief": (-0.85, -0.3, 0.9), "despair": (-0.95, -0.35, 0.95)},
    "angry": {"angry": (-0.65, 0.75, 0.75), "rage": (-0.8, 0.95, 0.95), "fury": (-0.85, 1.0, 1.0)},
    "fear": {"fear": (-0.7, 0.65, 0.7), "anxiety": (-0.55, 0.55, 0.5), "terror": (-0.9, 0.9, 0.95), "panic": (-0.8, 0.95, 0.9)},
    "surprise": {"surprise": (0.2, 0.8, 0.6)},
    "disgust": {"disgust": (-0.75, 0.3, 0.6)},
    "neutral": {"neutral": (0.0, 0.0, 0.0)},
}  # fmt: skip
WORDS = {word: place for family in FAMILIES.values() for word, place in family.items()}
FORMS = {  # other forms of the same words
    "happiness": "happy", "joyful": "joy", "joyous": "joy", "calmness": "calm", "peace": "peaceful", "excitement": "excited",
    "exciting": "excited", "contentment": "content", "contented": "content", "tenderness": "tender", "energy": "energetic",
    "sadness": "sad", "unhappy": "sad", "melancholic": "melancholy", "grieving": "grief", "desperate": "despair", "anger": "angry",
    "furious": "fury", "raging": "rage", "fearful": "fear", "afraid": "fear", "anxious": "anxiety", "terrified": "terror",
    "panicked": "panic", "surprised": "surprise", "surprising": "surprise", "disgusted": "disgust", "disgusting": "disgust",
}  # fmt: skip
TIERS = {  # what a word before an emotion makes of its intensity, valence and arousal
    "subtle": 0.4, "slightly": 0.5, "mildly": 0.5, "mild": 0.5, "somewhat": 0.7, "moderately": 0.8, "very": 1.25, "strongly": 1.3,
    "extremely": 1.5, "overwhelming": 1.6, "overwhelmingly": 1.6,
}  # fmt: skip
NEGATIONS = frozenset(["not", "no", "non", "never", "without", "isnt", "anti", "un"])
MOODS = files.REPOSITORY / "model_config" / "mood_valence_arousal.csv"  # Jamendo's mood tags, 1-9


def family_of(word: str) -> str:
    """The family of a word of the lexicon."""
    known = canonical(word)
    return next(name for name, words in FAMILIES.items() if known in words)


def canonical(word: str) -> str:
    """The lexicon's word for ``word`` or one of its forms; UserError with a close one otherwise."""
    word = word.lower().strip()
    if word not in WORDS and word not in FORMS:
        raise UserError(f"emotion {word!r}: unknown{config.suggest(word, WORDS)}")
    return FORMS.get(word, word)


def vector(text: str, norms: Mapping[str, list[float]] | None = None) -> list[float]:
    """``[valence, arousal, intensity]`` of a phrase such as ``grief`` or ``slightly happy``; UserError where it says none."""
    found = infer(text, norms)
    if found is None:
        raise UserError(f"emotion {text!r}: no word of the lexicon in it{config.suggest(text.lower(), WORDS)}")
    return found[0]


def infer(text: str, norms: Mapping[str, list[float]] | None = None) -> tuple[list[float], list[str]] | None:
    """The mean emotion of the words in ``text`` and these words; None where there are none.

    Only whole words count (``unhappy`` is not happy, ``fearless`` is not fear), at borders of letters, digits, case and
    punctuation. A negated word ("not happy") says nothing.
    """
    words = _split(text)
    places, found = [], []
    for number, word in enumerate(words):
        place = _place(word, norms)
        before = words[max(0, number - 2) : number]
        if place is None or any(previous in NEGATIONS for previous in before[-1:]):
            continue
        if len(before) == 2 and before[0] in NEGATIONS and before[1] in TIERS:  # not very happy
            continue
        factor = TIERS.get(before[-1], 1.0) if before else 1.0
        places.append([max(-1.0, min(1.0, value * factor)) for value in place])
        found.append(word)
    if not places:
        return None
    return [round(sum(column) / len(places), 4) for column in zip(*places, strict=True)], found


def infer_from_path(path: Path, norms: Mapping[str, list[float]] | None = None) -> tuple[list[float], str] | None:
    """The emotion that a file's parent folder tells, else its name; and which of the two. None where neither does."""
    for source, text in (("folder", path.parent.name), ("name", path.stem)):
        found = infer(text, norms)
        if found:
            return found[0], f"{source}: {' '.join(found[1])}"
    return None


def read_norms(path: Path) -> dict[str, list[float]]:
    """Norms of a person's own, word to ``[valence, arousal, intensity]``: NRC-VAD (tabs, 0-1 or -1-1) or Warriner (CSV, 1-9)."""
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig", errors="replace")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file of norms") from None
    first = text.partition("\n")[0]
    rows = list(csv.reader(text.splitlines(), delimiter="\t" if "\t" in first else ","))
    head = [cell.strip().lower() for cell in rows[0]] if rows else []
    named = "v.mean.sum" in head
    columns = [head.index(name) for name in ("word", "v.mean.sum", "a.mean.sum")] if named else [0, 1, 2]
    found = {}
    for row in rows:
        try:
            word, valence, arousal = (row[column] for column in columns)
            found[word.strip().lower()] = (float(valence), float(arousal))
        except (ValueError, IndexError):
            continue  # the head, an empty line
    if not found:
        raise UserError(f"{path}: neither NRC-VAD (word, valence, arousal, dominance) nor Warriner's CSV (Word, V.Mean.Sum, A.Mean.Sum)")
    values = [value for pair in found.values() for value in pair]
    low, high = (1.0, 9.0) if named or max(values) > 1 else (0.0, 1.0) if min(values) >= 0 else (-1.0, 1.0)
    scaled = {word: [2 * (value - low) / (high - low) - 1 for value in pair] for word, pair in found.items()}
    return {word: [valence, arousal, strength(valence, arousal)] for word, (valence, arousal) in scaled.items()}


@functools.cache
def jamendo_moods() -> dict[str, list[float]]:
    """``[valence, arousal, intensity]`` of MTG-Jamendo's mood tags."""
    rows = csv.DictReader(line for line in MOODS.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    pairs = {row["MoodTag"]: ((float(row["Valence"]) - 5) / 4, (float(row["Arousal"]) - 5) / 4) for row in rows}
    return {tag: [valence, arousal, strength(valence, arousal)] for tag, (valence, arousal) in pairs.items()}


def _place(word: str, norms: Mapping[str, list[float]] | None) -> list[float] | tuple[float, float, float] | None:
    if norms and word in norms:
        return norms[word]
    return WORDS.get(FORMS.get(word, word))


def _split(text: str) -> list[str]:
    """Words in lower case: ``TrackGrief_001`` -> track, grief."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", text).replace("'", "")
    return [word.lower() for word in re.findall(r"[^\W\d_]+", text)]
