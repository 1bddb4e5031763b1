"""Cards: what a system says about its clips, as ``card.json`` beside them.

A card belongs to a ``section`` (a system) and a ``run``; cards of one run that differ in ``epoch`` stand side by side
on the page, clip by clip. Paths in a card are relative to its folder.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from music_training import files

CARD = "card.json"


@dataclass(frozen=True)
class Clip:
    """One audio file: ``name`` says which row it is, ``version`` (where several share a row) which column."""

    name: str
    path: str
    version: str = ""
    text: str = ""
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Picture:
    """A picture with its caption, which is also its text for those who cannot see it."""

    caption: str
    path: str


@dataclass(frozen=True)
class Card:
    """A system's clips, pictures and metrics; ``baseline`` holds what the metrics of the same name compare with."""

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


def write_card(folder: Path, card: Card) -> Path:
    """Write a card into its folder (atomically)."""
    return files.write_json(folder / CARD, asdict(card))


def read_card(folder: Path) -> Card | None:
    """The card of a folder; None where there is none that can be read."""
    content = files.read_json(folder / CARD)
    try:
        lists = {
            "clips": tuple(Clip(**clip) for clip in content["clips"]),
            "pictures": tuple(Picture(**one) for one in content["pictures"]),
        }
        return Card(**{**content, **lists})
    except (TypeError, KeyError):
        return None


def read_cards(samples: Path) -> list[tuple[Path, Card]]:
    """All cards below a folder with their folders, in the order of section, run and epoch."""
    found = [(path.parent, card) for path in samples.rglob(CARD) if (card := read_card(path.parent))]
    return sorted(found, key=lambda item: (item[1].section, item[1].run, item[1].epoch or 0, str(item[0])))
