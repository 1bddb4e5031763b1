"""The Free Music Archive: metadata first, a selection from it, then only the audio that was selected.

    python -m music_training.library.sources.fma --subset small --genres House,Techno --limit 100

A selection below half of a subset is picked out of the archive on the server (where it sends parts of files); for
more, the archive is fetched, verified and consumed while it is unpacked. Every file is checked against the SHA-1
list in the archive. Tracks published as broken are reported with their reason and not tried.
"""

from __future__ import annotations

import ast
import csv
import hashlib
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from ... import config, files, stages
from ...errors import UserError
from .. import archives, catalogue, downloads, forecast, licences, records, remote

BASE_URL = "https://os.unil.cloud.switch.ch/fma/"
METADATA = ("tracks.csv", "genres.csv", "raw_tracks.csv")
SUBSETS = ("small", "medium", "large", "full")
GIB = 1 << 30
SHA1 = {
    "fma_metadata.zip": "f0df49ffe5f2a6008d7dc83c6915b31835dfe733",
    "fma_small.zip": "ade154f733639d52e35e32f5593efe5be76c6d70",
    "fma_medium.zip": "c67b69ea232021025fca9231fc1c7c1a063ab50b",
    "fma_large.zip": "497109f4dd721066b5ce5e5f250ec604dc78939e",
    "fma_full.zip": "0f0ace23fbe9ba30ecb7e95f763e435ea802b8ab",
}
SIZES = {"small": (7.2 * GIB, 8000), "medium": (22 * GIB, 25000), "large": (93 * GIB, 106_574), "full": (879 * GIB, 106_574)}
METADATA_BYTES = 342 << 20
EDM_GENRES = (
    "Techno",
    "House",
    "Dance",
    "Dubstep",
    "Minimal Electronic",
    "Drum & Bass",
    "Breakcore - Hard",
    "Jungle",
    "Bigbeat",
    "Breakbeat",
)

_SHORT = {98565: 1.6, 98567: 0.5, 98569: 1.5, 98566: 6.2, 98568: 6.6, 108924: 27.4}
_EMPTY = (99134, 108925, 133297, 1486, 5574, 65753, 80391, 98558, 98559, 98560, 98571, 105247, 126981, 127336, 143992)
_SILENT = (110736, 119979, 130169)
BROKEN = {
    **{number: f"published as broken: only {seconds} s of audio" for number, seconds in _SHORT.items()},
    **{number: "published as broken: no audio" for number in _EMPTY},
    **{number: "published as broken: nearly silent" for number in _SILENT},
    2624: "published as broken: cannot be decoded although its SHA-1 matches",
}


class FmaSettings(config.Settings):
    """What of FMA to fetch: see the fields.

    ``genres`` are ids or titles, with all their sub-genres; ``min_seconds`` and ``max_seconds`` (0: no bound) are of
    the whole track, of which small, medium and large hold 30 s; ``licences`` is an allow-list of texts, "any" or
    "commercial"; ``limit`` (0: all) takes the first tracks of an order by ``seed``.
    """

    subset: Literal["small", "medium", "large", "full"] = "small"
    genres: tuple[int | str, ...] = ()
    licences: tuple[str, ...] = ("any",)
    min_seconds: float = Field(0.0, ge=0)
    max_seconds: float = Field(0.0, ge=0)
    limit: int = Field(0, ge=0)
    seed: int = 0
    mode: Literal["auto", "pick", "archive"] = "auto"
    keep_archive: bool = False
    dest: str = ""
    base_url: str = BASE_URL
    mirrors: tuple[str, ...] = ()
    sha1: dict[str, str] = {}
    workers: int = Field(4, ge=1, le=32)
    verify: bool = False


@dataclass(frozen=True)
class Row:
    """A track of the metadata, as far as it is used here; ``seconds`` is of the whole track."""

    number: int
    title: str
    artist_id: str
    artist: str
    album: str
    subset: str
    seconds: float
    genre: str
    genres: tuple[int, ...]
    licence: str
    licence_url: str
    tags: tuple[str, ...]


def download(dataset: str, scope: str, settings: FmaSettings, force: bool = False) -> stages.StageResult:
    """Fetch metadata and the selected audio, and write the catalogue of ``dataset``."""
    params = {"dataset": dataset, **settings.model_dump(mode="json", exclude={"workers", "verify", "mirrors"})}

    def make(_: stages.Draft) -> stages.Made:
        folder = folder_of(settings)
        chosen, skipped = select(*metadata(settings), settings)
        rows = [_audio_row(settings, len(chosen))]
        forecast.refuse(rows, folder, there=archive_of(settings).stat().st_size if archive_of(settings).exists() else 0)
        print("\n".join(forecast.lines(rows)), flush=True)
        skipped |= fetch_audio(chosen, settings)
        tracks = [track_of(row, settings) for row in chosen if str(row.number) not in skipped]
        return stages.Made(records.write(dataset, tracks, skipped), records.summary(tracks, skipped))

    return stages.run("download_fma", make, scope=scope, params=params, force=force or settings.verify)


def folder_of(settings: FmaSettings) -> Path:
    """Where FMA lies: ``dest``, else ``outputs/downloads/fma``."""
    return Path(settings.dest).expanduser().resolve() if settings.dest else files.outputs_root() / "downloads" / "fma"


def archive_of(settings: FmaSettings) -> Path:
    """Where the archive of the subset lies while it is needed."""
    return folder_of(settings) / f"fma_{settings.subset}.zip"


def forecast_rows(settings: FmaSettings) -> list[forecast.Row]:
    """What a download will take; exact in its number of tracks once the metadata is there, else at most."""
    rows = []
    if archives.finished(folder_of(settings) / "fma_metadata.zip", folder_of(settings), "tables"):
        chosen, _ = select(*metadata(settings), settings)
        count, note = len(chosen), ""
    else:
        rows.append(forecast.row("FMA metadata", METADATA_BYTES, 3.0 * METADATA_BYTES, 4, peak=4.0 * METADATA_BYTES))
        count = min(settings.limit or SIZES[settings.subset][1], SIZES[settings.subset][1])
        note = "at most: the metadata is not here yet"
    return [*rows, _audio_row(settings, count, note)]


def _audio_row(settings: FmaSettings, count: int, note: str = "") -> forecast.Row:
    total, number = SIZES[settings.subset]
    disk = total / number * count
    picked = _picks(settings, count)
    fetched = disk if picked else total
    peak = disk if picked else total + (disk if settings.keep_archive or count < number else 0)
    note = note or ("picked from the archive on the server" if picked else "whole archive, consumed while it is unpacked")
    return forecast.row(f"FMA {settings.subset}, {count} tracks", fetched, disk, count + count // 1000 + 1, peak=peak, note=note)


def _picks(settings: FmaSettings, count: int) -> bool:
    if settings.mode != "auto":
        return settings.mode == "pick"
    there = archive_of(settings)
    return count < 0.5 * SIZES[settings.subset][1] and not there.exists() and not downloads.part_of(there).exists()


# Metadata and selection


def metadata(settings: FmaSettings) -> tuple[list[Row], dict[int, tuple[str, int]]]:
    """The tracks and the genres (id to title and parent) of the metadata archive, fetched if need be."""
    folder = folder_of(settings)
    archives.fetch_and_extract(
        _wanted("fma_metadata.zip", settings),
        folder,
        choose=lambda name: name.rsplit("/", 1)[-1] in METADATA,
        key="tables",
        delete=not settings.keep_archive,
        verify=settings.verify,
    )
    tables = folder / "fma_metadata"
    return read_tracks(tables / "tracks.csv", tables / "raw_tracks.csv"), read_genres(tables / "genres.csv")


def _wanted(name: str, settings: FmaSettings) -> downloads.Wanted:
    urls = tuple(f"{base.rstrip('/')}/{name}" for base in (settings.base_url, *settings.mirrors))
    return downloads.Wanted(urls, folder_of(settings) / name, digests={"sha1": {**SHA1, **settings.sha1}[name]})


def read_tracks(path: Path, raw: Path | None = None) -> list[Row]:
    """Read ``tracks.csv`` (two header rows and one that names the index); licence addresses come from ``raw_tracks.csv``."""
    addresses = _licence_addresses(raw) if raw and raw.exists() else {}
    rows = []
    csv.field_size_limit(1 << 24)
    with open(path, encoding="utf-8", newline="") as stream:
        lines = csv.reader(stream)
        groups, names, third = next(lines), next(lines), next(lines)
        place = {key: number for number, key in enumerate(zip(groups, names, strict=True))}
        if not third or third[0] != "track_id" or ("track", "genres_all") not in place:
            raise UserError(f"{path}: not FMA's tracks.csv (its third row should begin with track_id); fetch the metadata again")
        for line in lines:
            if line:
                rows.append(_row(line, place, addresses))
    return rows


def _row(line: list[str], place: Mapping[tuple[str, str], int], addresses: Mapping[int, str]) -> Row:
    def cell(group: str, name: str) -> str:
        return line[place[group, name]].strip()

    number = int(line[0])
    return Row(
        number=number,
        title=cell("track", "title"),
        artist_id=cell("artist", "id"),
        artist=cell("artist", "name"),
        album=cell("album", "title"),
        subset=cell("set", "subset"),
        seconds=float(cell("track", "duration") or 0),
        genre=cell("track", "genre_top"),
        genres=tuple(ast.literal_eval(cell("track", "genres_all") or "[]")) or tuple(ast.literal_eval(cell("track", "genres") or "[]")),
        licence=cell("track", "license"),
        licence_url=addresses.get(number, ""),
        tags=tuple(str(tag) for tag in ast.literal_eval(cell("track", "tags") or "[]")),
    )


def _licence_addresses(path: Path) -> dict[int, str]:
    csv.field_size_limit(1 << 24)
    with open(path, encoding="utf-8", newline="") as stream:
        return {int(row["track_id"]): row.get("license_url") or "" for row in csv.DictReader(stream)}


def read_genres(path: Path) -> dict[int, tuple[str, int]]:
    """Read ``genres.csv``: id to title and parent (0 for a root)."""
    with open(path, encoding="utf-8", newline="") as stream:
        return {int(row["genre_id"]): (row["title"], int(row["parent"])) for row in csv.DictReader(stream)}


def genre_ids(wanted: Iterable[int | str], genres: Mapping[int, tuple[str, int]]) -> set[int]:
    """The ids of genres given as ids or titles, and of everything below them in the tree."""
    titles = {title.lower(): number for number, (title, _) in genres.items()}
    found = set()
    for item in wanted:
        number = int(item) if str(item).isdigit() else titles.get(str(item).lower())
        if number not in genres:
            raise UserError(f"genres: {item!r} is no genre of FMA{config.suggest(str(item), [title for title, _ in genres.values()])}")
        found.add(number)
    while more := {number for number, (_, parent) in genres.items() if parent in found} - found:
        found |= more
    return found


def select(rows: list[Row], genres: Mapping[int, tuple[str, int]], settings: FmaSettings) -> tuple[list[Row], dict[str, str]]:
    """The tracks that are wanted, by number, and why broken ones among them are left out (id to reason)."""
    licences.check(settings.licences)
    wanted = genre_ids(settings.genres, genres)
    level = SUBSETS.index(settings.subset)
    found, skipped = [], {}
    for row in rows:
        if SUBSETS.index(row.subset or "full") > level or (wanted and not wanted & set(row.genres)):
            continue
        if not licences.allowed(row.licence, settings.licences):
            continue
        if row.seconds < settings.min_seconds or (settings.max_seconds and row.seconds > settings.max_seconds):
            continue
        if row.number in BROKEN:
            skipped[str(row.number)] = BROKEN[row.number]
            continue
        found.append(row)
    found.sort(key=lambda row: row.number)
    if settings.limit and settings.limit < len(found):
        order = random.Random(settings.seed).sample(range(len(found)), len(found))
        found = [found[place] for place in sorted(order[: settings.limit])]
    titles = {number: title for number, (title, _) in genres.items()}
    return [row if row.genre else _with_genre(row, titles, wanted) for row in found], skipped


def _with_genre(row: Row, titles: Mapping[int, str], wanted: set[int]) -> Row:
    """Name the genre of a track without a top genre: the first that was asked for, else its first."""
    first = next((number for number in row.genres if number in wanted), row.genres[0] if row.genres else None)
    return Row(**{**row.__dict__, "genre": titles.get(first, "")})


# Audio


def member_of(number: int, subset: str) -> str:
    """``fma_small/000/000002.mp3``."""
    return f"fma_{subset}/{number // 1000:03d}/{number:06d}.mp3"


def fetch_audio(chosen: list[Row], settings: FmaSettings) -> dict[str, str]:
    """Bring the audio of the chosen tracks here; returns those that the archive lacks or spoils (id to reason)."""
    folder, listing = folder_of(settings), f"fma_{settings.subset}/checksums"
    members = {member_of(row.number, settings.subset): row.number for row in chosen}
    wanted = _wanted(f"fma_{settings.subset}.zip", settings)
    key = hashlib.sha256("\n".join(sorted(members)).encode()).hexdigest()[:12]
    names = {*members, listing}
    if _picks(settings, len(chosen)) and not archives.finished(wanted.path, folder, key):
        try:
            remote.pick(wanted.urls[0], folder, names.__contains__, checksums=listing, workers=settings.workers)
        except remote.NoRanges:
            print(f"{wanted.urls[0]}: the server sends whole files only; the archive is fetched", flush=True)
            _unpack(wanted, folder, names, key, settings)
    else:
        _unpack(wanted, folder, names, key, settings)
    return _check(members, folder, remote.parse_checksums((folder / listing).read_text(), f"fma_{settings.subset}/"))


def _unpack(wanted: downloads.Wanted, folder: Path, names: set[str], key: str, settings: FmaSettings) -> None:
    choose = names.__contains__
    archives.fetch_and_extract(wanted, folder, choose=choose, key=key, consume=not settings.keep_archive, verify=settings.verify)


def _check(members: Mapping[str, int], folder: Path, listed: Mapping[str, str]) -> dict[str, str]:
    """Compare every file with the SHA-1 list; a spoilt one is removed, so that the next run brings it again."""
    missing = {str(number): "not in the archive" for name, number in members.items() if not (folder / name).is_file()}
    spoilt = []
    for name in members:
        path = folder / name
        if path.is_file() and name in listed and downloads.digest_of(path, "sha1") != listed[name]:
            path.unlink()
            spoilt.append(name)
    if spoilt:
        for receipt in (folder / ".extracted").glob("fma_*.zip.*.json"):
            receipt.unlink()
        raise downloads.DownloadError(f"{folder}: {len(spoilt)} files differ from the SHA-1 list ({', '.join(spoilt[:3])}); run it again")
    return missing


def track_of(row: Row, settings: FmaSettings) -> catalogue.Track:
    """The catalogue's row of a track; its duration is that of the clip."""
    licence = f"{row.licence or 'licence unknown'}{f' ({row.licence_url})' if row.licence_url else ''}"
    return catalogue.Track(
        id=f"fma_{row.number:06d}",
        path=files.relative(folder_of(settings) / member_of(row.number, settings.subset)),
        source=f"fma_{settings.subset}",
        artist_id=f"fma_{row.artist_id}" if row.artist_id else f"fma_track_{row.number}",
        artist=row.artist,
        title=row.title,
        album=row.album,
        genre=row.genre,
        tags=row.tags,
        licence=row.licence or "unknown",
        attribution=f'"{row.title}" by {row.artist or "unknown"}, Free Music Archive track {row.number}, {licence}',
        duration=row.seconds if settings.subset == "full" else min(row.seconds, 30.0),
    )


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    from . import command

    return command.run(__doc__, "fma", FmaSettings, download, forecast_rows, arguments)


if __name__ == "__main__":
    from ...errors import run_command

    run_command(main)
