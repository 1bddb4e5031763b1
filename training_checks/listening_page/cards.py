"""Cards: what a system says about its clips, as ``card.json`` beside them (docs/listening_page.md).

A card belongs to a ``section`` (a system), a ``run`` and a ``title`` (a table of the page). Cards of the same section and
title share a table: a clip ``name`` with its ``text`` is a row; run, epoch and version are the columns. Paths are
relative to the card's folder.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from music_training import files

CARD = "card.json"
STRICT = {"extra": "forbid"}  # read by pydantic: a misspelt field is a broken card, not a silent loss


@dataclass(frozen=True)
class Picture:
    """A picture with its caption, which is also its text for those who cannot see it."""

    caption: str
    path: str
    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class Link:
    """A file to open from the page (a viewer, MIDI, a table); below ``outputs``, so that all of it can be moved."""

    text: str
    path: str
    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class Clip:
    """One audio file: ``name`` (with ``text``) says which row it is, ``version`` (where several share a row) which column.

    ``role`` tells listening tests what it is: the "reference" that others imitate, or an "anchor" known to be worse.
    """

    name: str
    path: str
    version: str = ""
    text: str = ""
    figures: dict[str, float] = field(default_factory=dict)
    role: Literal["", "reference", "anchor"] = ""
    pictures: tuple[Picture, ...] = ()
    links: tuple[Link, ...] = ()
    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class Card:
    """A system's clips, pictures, links and metrics; ``baseline`` holds what the metrics of the same name compare with."""

    section: str
    run: str
    title: str
    about: str = ""
    epoch: int | None = None
    synthetic: bool = False
    clips: tuple[Clip, ...] = ()
    pictures: tuple[Picture, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    baseline: dict[str, float] = field(default_factory=dict)
    made_from: dict[str, Any] = field(default_factory=dict)
    links: tuple[Link, ...] = ()
    __pydantic_config__ = STRICT


def write_card(folder: Path, card: Card) -> Path:
    """Write a card into its folder (atomically)."""
    return files.write_json(folder / CARD, asdict(card))


def read_card(folder: Path) -> Card | None:
    """The card of a folder; None where there is none that can be read."""
    from pydantic import ValidationError

    try:
        return _reader().validate_python(files.read_json(folder / CARD))
    except ValidationError:
        return None


def read_cards(samples: Path) -> list[tuple[Path, Card]]:
    """All cards below a folder with their folders, in the order of section, run and epoch."""
    found = [(path.parent, card) for path in samples.rglob(CARD) if (card := read_card(path.parent))]
    return sorted(found, key=lambda item: (item[1].section, item[1].run, item[1].epoch or 0, str(item[0])))


def broken_cards(samples: Path) -> list[Path]:
    """The cards below a folder that cannot be read."""
    return sorted(path for path in samples.rglob(CARD) if read_card(path.parent) is None)


@functools.cache
def _reader():
    from pydantic import TypeAdapter

    return TypeAdapter(Card)
