"""From cards to tables: one a section and title, with a row for every clip name and text and a column for every version."""

from __future__ import annotations

import filecmp
import hashlib
import itertools
from dataclasses import dataclass, field
from pathlib import Path

from .cards import Card, Clip


@dataclass(frozen=True)
class Version:
    """One clip in its place: the card it comes from, its audio file, and the label of its column.

    ``shared``: a reference that all cards bring alike; it stands there once and belongs to no epoch.
    """

    card: Card
    clip: Clip
    folder: Path
    label: str
    shared: bool = False

    @property
    def epoch(self) -> int | None:
        """The epoch of its column."""
        return None if self.shared else self.card.epoch

    @property
    def path(self) -> Path:
        """Where the audio lies."""
        return self.folder / self.clip.path


@dataclass
class Row:
    """The versions of one clip by column label, in order of appearance."""

    section: str
    title: str
    name: str
    text: str
    versions: dict[str, Version] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """A name for files and elements that holds nothing of what a person wrote."""
        return _short("\0".join((self.section, self.title, self.name, self.text)))


@dataclass
class Table:
    """The cards of one section and title, oldest epoch first, and their rows."""

    section: str
    title: str
    cards: list[tuple[Path, Card]]
    rows: list[Row] = field(default_factory=list)

    @property
    def id(self) -> str:
        """As of a row."""
        return _short("\0".join((self.section, self.title)))

    @property
    def columns(self) -> list[str]:
        """The labels of all columns, a run at a time, in order of appearance."""
        return list(dict.fromkeys(label for row in self.rows for label in row.versions))


def gather(cards: list[tuple[Path, Card]]) -> list[Table]:
    """The tables of cards that are sorted by section, run and epoch."""
    kept = itertools.groupby(
        sorted(cards, key=lambda item: (item[1].section, item[1].title)), key=lambda item: (item[1].section, item[1].title)
    )
    return [_table(section, title, list(items)) for (section, title), items in kept]


def label(card: Card, several_runs: bool, clip: Clip | None = None) -> str:
    """What a column is called: the run where there are several, the epoch, the version."""
    parts = [card.run if several_runs else "", f"epoch {card.epoch}" if card.epoch is not None else "", clip.version if clip else ""]
    return " · ".join(part for part in parts if part)


def _table(section: str, title: str, cards: list[tuple[Path, Card]]) -> Table:
    table = Table(section, title, cards)
    several = len({card.run for _, card in cards}) > 1
    shared = _shared_references(cards)
    rows: dict[tuple[str, str], Row] = {}
    for folder, card in cards:
        for clip in card.clips:
            row = rows.setdefault((clip.name, clip.text), Row(section, title, clip.name, clip.text))
            if clip.role == "reference" and clip.version in shared:
                name = clip.version or clip.role
                row.versions.setdefault(name, Version(card, clip, folder, name, shared=True))
                continue
            name = label(card, several, clip) or "clip"
            while name in row.versions:  # two clips of one name: both are shown
                name += " again"
            row.versions[name] = Version(card, clip, folder, name)
    table.rows = list(rows.values())
    return table


def _shared_references(cards: list[tuple[Path, Card]]) -> set[str]:
    """The versions that are the same audio in all cards, clip by clip, where several cards bring them."""
    found: dict[str, dict[tuple[str, str], list[Path]]] = {}
    for folder, card in cards:
        for clip in card.clips:
            if clip.role == "reference":
                found.setdefault(clip.version, {}).setdefault((clip.name, clip.text), []).append(folder / clip.path)
    return {
        version
        for version, clips in found.items()
        if any(len(paths) > 1 for paths in clips.values()) and all(_same(paths) for paths in clips.values())
    }


def _same(paths: list[Path]) -> bool:
    return all(path.is_file() and filecmp.cmp(paths[0], path, shallow=False) for path in paths)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
