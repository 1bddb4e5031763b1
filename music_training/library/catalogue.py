"""The catalogue: one row per track, what is known of it and where its audio lies.

Every source writes ``outputs/library/<dataset>/catalogue.jsonl``; everything after it reads only that. Rows are
sorted by id, so that a catalogue's bytes depend on its content alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from .. import files
from ..errors import UserError


@dataclass(frozen=True)
class Track:
    """A track of the catalogue.

    ``path`` is relative to the outputs root, or absolute for audio outside it; ``duration`` is in seconds, 0 where
    unknown; ``valence`` and ``arousal`` lie in [-1, 1], ``intensity`` in [0, 1], None where unknown. ``annotation``,
    ``midi`` and ``stems`` (stem name to path) are paths as ``path`` is. ``synthetic`` marks composed audio.
    """

    id: str
    path: str
    source: str
    artist_id: str
    artist: str = ""
    title: str = ""
    album: str = ""
    genre: str = ""
    tags: tuple[str, ...] = ()
    moods: tuple[str, ...] = ()
    instruments: tuple[str, ...] = ()
    description: str = ""
    bpm: float | None = None
    key: str = ""
    licence: str = ""
    attribution: str = ""
    duration: float = 0.0
    valence: float | None = None
    arousal: float | None = None
    intensity: float | None = None
    synthetic: bool = False
    annotation: str = ""
    midi: str = ""
    stems: dict[str, str] = field(default_factory=dict)


def path_of(dataset: str) -> Path:
    """Where the catalogue of a data set lies."""
    return files.outputs_root() / "library" / dataset / "catalogue.jsonl"


def is_synthetic(dataset: str) -> bool:
    """Whether any track of a data set is composed by this project: what is trained on it is then labelled so."""
    return any(track.synthetic for track in read(path_of(dataset)))


def write(path: Path, tracks: Iterable[Track]) -> Path:
    """Write a catalogue (atomically, sorted by id); two rows with one id are an error."""
    rows = sorted(tracks, key=lambda track: track.id)
    for before, after in zip(rows, rows[1:], strict=False):
        if before.id == after.id:
            raise UserError(f"{path}: the id {after.id!r} stands twice ({before.path}, {after.path})")
    return files.write_text(path, "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows))


def read(path: Path) -> list[Track]:
    """Read a catalogue; UserError names file and line of a row that cannot be read."""
    if not path.is_file():
        raise UserError(f"{path}: no catalogue; run the notebook that makes it (02_compose_library or a download) first")
    known = {item.name for item in fields(Track)}
    tracks = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):  # splitlines() also splits at U+2028
        if not line:
            continue
        try:
            row = json.loads(line)
            for name in ("tags", "moods", "instruments"):
                row[name] = tuple(row.get(name) or ())
            tracks.append(Track(**{name: value for name, value in row.items() if name in known}))
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path}:{number}: not a catalogue row ({error})") from None
    return tracks
