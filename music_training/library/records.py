"""What a download leaves beside the audio: the catalogue, who made what under which licence, and what was left out."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import files
from ..errors import UserError
from . import catalogue


def write(dataset: str, tracks: Sequence[catalogue.Track], skipped: Mapping[str, str]) -> list[Path]:
    """Write ``catalogue.jsonl``, ``ATTRIBUTION.csv`` and ``skipped.csv`` of a data set; returns the three paths."""
    if not tracks:
        most = ", ".join(f"{reason} ({count})" for reason, count in Counter(skipped.values()).most_common(3))
        raise UserError(f"{dataset}: no track is left{f'; left out: {most}' if most else ''}; choose more (genres, licences, limit)")
    path = catalogue.path_of(dataset)
    return [catalogue.write(path, tracks), attribution(path.parent, tracks), _skipped(path.parent, skipped)]


def attribution(folder: Path, tracks: Iterable[catalogue.Track]) -> Path:
    """Write ``ATTRIBUTION.csv``: a line a track, with what its licence asks to be said."""
    columns = ("id", "title", "artist", "licence", "attribution", "source")
    rows = sorted([getattr(track, column) for column in columns] for track in tracks)
    return files.write_text(folder / "ATTRIBUTION.csv", table(columns, rows))


def skipped_of(dataset: str) -> Path:
    """Where the reasons of the tracks that were left out lie."""
    return catalogue.path_of(dataset).parent / "skipped.csv"


def summary(tracks: Sequence[catalogue.Track], skipped: Mapping[str, str]) -> dict[str, Any]:
    """Counts for a stage's result: tracks, artists, hours, reasons."""
    return {
        "tracks": len(tracks),
        "artists": len({track.artist_id for track in tracks}),
        "hours": round(sum(track.duration for track in tracks) / 3600, 3),
        "licences": dict(Counter(track.licence for track in tracks).most_common(10)),
        "skipped": dict(Counter(skipped.values()).most_common()),
    }


def table(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """CSV text; a cell that a spreadsheet would run as a formula is quoted by an apostrophe."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(
        [f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@")) else cell for cell in row] for row in rows
    )
    return text.getvalue()


def _skipped(folder: Path, skipped: Mapping[str, str]) -> Path:
    return files.write_text(folder / "skipped.csv", table(("id", "reason"), sorted(skipped.items())))
