"""Captions: sentences about a piece of music from what its catalogue knows (genre, tempo, key, mood, instruments).

In training every example gets another sentence: one of several templates, with some facts left out, or the catalogue's
own description. So a model learns each fact by itself, and that a text may say much or little.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from ..config import Settings

FACTS = ("genre", "moods", "instruments", "tempo", "key")
TEMPOS = ((90, "slow"), (115, "mid-tempo"), (140, "fast"), (float("inf"), "very fast"))  # below so many beats per minute

# A part of a template is used if every fact that it names is known and kept.
TEMPLATES: tuple[tuple[str, ...], ...] = (
    ("a", "{moods}", "{genre}", "track", "with {instruments}", "at {bpm} bpm", "in {key}"),
    ("{moods}", "{pace}", "{genre}", "featuring {instruments}", "in {key}"),
    ("{genre}", "{bpm} bpm", "{key}", "{instruments}", "{moods}"),
    ("{instruments} playing", "{moods}", "{genre}", "at a {pace} tempo"),
    ("a", "{pace}", "{genre}", "piece", "in {key}", "that sounds {moods}", "with {instruments}"),
)
LISTS = (2,)  # templates that are lists of words, written with commas


class CaptionSettings(Settings):
    """How often a fact is left out (``drop``), and how often the catalogue's own description is used (``original``).

    At most ``words`` moods and as many instruments are named in one caption, drawn from those that are known.
    """

    drop: float = Field(0.25, ge=0, le=1)
    original: float = Field(0.4, ge=0, le=1)
    words: int = Field(3, ge=1)


def caption(known: Mapping[str, Any], settings: CaptionSettings, chance: random.Random | None = None) -> str:
    """A sentence about a piece of music; empty where nothing is known.

    ``known`` is a sidecar (or AudioCraft's ``MusicInfo`` as a mapping): ``genre, moods, instrument, bpm, key,
    description``, all optional. Without ``chance`` it is always the same: the description, else every fact in the first
    template.
    """
    description = str(known.get("description") or "").strip()
    if description and (chance is None or chance.random() < settings.original):
        return description
    if chance is None:
        return _write(0, _facts(known))
    facts = _facts({**known, **{name: _some(known.get(name), settings.words, chance) for name in ("moods", "instrument")}})
    kept = [name for name in FACTS if chance.random() >= settings.drop]
    return _write(chance.randrange(len(TEMPLATES)), {name: words for name, words in facts.items() if _SOURCE[name] in kept})


_SOURCE = {"genre": "genre", "moods": "moods", "instruments": "instruments", "bpm": "tempo", "pace": "tempo", "key": "key"}


def _facts(known: Mapping[str, Any]) -> dict[str, str]:
    instruments = _words(known.get("instrument"))
    facts = {
        "genre": str(known.get("genre") or "").strip(),
        "moods": ", ".join(_words(known.get("moods"))),
        "instruments": _together([name for name in instruments if name.lower() != "mix"]),
        "key": str(known.get("key") or "").strip(),
    }
    try:
        bpm = float(known.get("bpm") or 0)
    except ValueError:
        bpm = 0.0
    if bpm > 0:
        facts["bpm"] = f"{bpm:.0f}"
        facts["pace"] = next(word for below, word in TEMPOS if bpm < below)
    return {name: words for name, words in facts.items() if words}


def _write(number: int, facts: Mapping[str, str]) -> str:
    parts, said = [], False
    for part in TEMPLATES[number]:
        named = [name for name in _SOURCE if f"{{{name}}}" in part]
        if all(name in facts for name in named):
            parts.append(part.format(**facts))
            said = said or bool(named)
    if not said:
        return ""
    text = (", " if number in LISTS else " ").join(parts)
    return re.sub(r"\ba (?=[aeiou])", "an ", text)


def _some(value: Any, most: int, chance: random.Random) -> list[str]:
    """At most ``most`` of the words, in their order."""
    words = [word for word in _words(value) if word.lower() != "mix"]
    count = chance.randint(1, most)
    kept = sorted(chance.sample(range(len(words)), min(count, len(words))))
    return [words[index] for index in kept]


def _words(value: Any) -> list[str]:
    """A list, or a text with commas, as words."""
    items = value.split(",") if isinstance(value, str) else value or []
    return [word for item in items if (word := str(item).strip())]


def _together(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else ""
