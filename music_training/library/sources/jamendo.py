"""MTG-Jamendo: tables first, a selection by tag, then the tars that hold it, one after the other.

    python -m music_training.library.sources.jamendo --tags genre---house,genre---techno --tars 2 --limit 200

Each tar is fetched (resumed, checked by its SHA-256), the selected tracks are unpacked and checked by theirs, and the
tar is deleted, so that 508 GB of tars never lie on the disk at once. The tables name no licence: every track has its
own Creative Commons licence on its page, which ATTRIBUTION.csv gives.
"""

from __future__ import annotations

import csv
import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from ... import config, files, stages
from ...errors import UserError
from .. import archives, catalogue, downloads, forecast, records, remote

BASE_URL = "https://cdn.freesound.org/mtg-jamendo/"
MIRROR = "https://essentia.upf.edu/documentation/datasets/mtg-jamendo/"
TABLES_URL = "https://raw.githubusercontent.com/MTG/mtg-jamendo-dataset/master/data/"
TARS = 100
BYTES = {
    ("raw_30s", "audio"): 508e9,
    ("raw_30s", "audio-low"): 156e9,
    ("autotagging_moodtheme", "audio"): 152e9,
    ("autotagging_moodtheme", "audio-low"): 46e9,
}
TRACKS = {"raw_30s": 55_701, "autotagging_moodtheme": 17_982}
EDM_TAGS = tuple(f"genre---{name}" for name in ("techno", "house", "dance", "trance", "dubstep", "drumnbass", "deephouse", "edm"))
MOODS = files.REPOSITORY / "model_config" / "mood_valence_arousal.csv"
HEADER = ["TRACK_ID", "ARTIST_ID", "ALBUM_ID", "PATH", "DURATION", "TAGS"]


class JamendoSettings(config.Settings):
    """What of MTG-Jamendo to fetch.

    ``tags`` are full (``genre---house``) or bare (``house``), any of which suffices; ``table`` is a TSV below
    ``tables_url`` (a split, say), "": the collection's own; ``tars`` (0: all) takes only the first of the hundred;
    ``limit`` (0: all) takes the first tracks of an order by ``seed``. ``mode`` "tracks" fetches single files.
    """

    collection: Literal["raw_30s", "autotagging_moodtheme"] = "raw_30s"
    audio: Literal["audio", "audio-low"] = "audio-low"
    table: str = ""
    tags: tuple[str, ...] = ()
    min_seconds: float = Field(0.0, ge=0)
    max_seconds: float = Field(0.0, ge=0)
    tars: int = Field(0, ge=0, le=TARS)
    limit: int = Field(0, ge=0)
    seed: int = 0
    mode: Literal["tars", "tracks"] = "tars"
    keep_archive: bool = False
    dest: str = ""
    base_url: str = BASE_URL
    mirrors: tuple[str, ...] = (MIRROR,)
    tables_url: str = TABLES_URL
    workers: int = Field(4, ge=1, le=32)
    verify: bool = False


@dataclass(frozen=True)
class Row:
    """A line of a TSV; ``seconds`` is of the track, ``tags`` are full (``genre---house``)."""

    number: int
    artist: int
    album: int
    path: str
    seconds: float
    tags: tuple[str, ...]

    @property
    def shelf(self) -> str:
        """The last two digits of the number, which name folder and tar."""
        return f"{self.number % 100:02d}"

    def named(self, category: str) -> tuple[str, ...]:
        """The tags of a category (genre, instrument, mood/theme) without it."""
        return tuple(tag.split("---", 1)[1] for tag in self.tags if tag.startswith(f"{category}---"))


def download(dataset: str, scope: str, settings: JamendoSettings, force: bool = False) -> stages.StageResult:
    """Fetch tables and the selected audio, and write the catalogue of ``dataset``."""
    params = {"dataset": dataset, **settings.model_dump(mode="json", exclude={"workers", "verify", "mirrors"})}

    def make(_: stages.Draft) -> stages.Made:
        rows, hashes = tables(settings)
        chosen, skipped = select(rows, hashes, settings)
        ahead = [_audio_row(settings, len(chosen), len({row.shelf for row in chosen}))]
        forecast.refuse(ahead, folder_of(settings))
        print("\n".join(forecast.lines(ahead)), flush=True)
        skipped |= fetch_audio(chosen, hashes, settings)
        names, moods = _names(settings), read_moods()
        tracks = [track_of(row, settings, names, moods) for row in chosen if str(row.number) not in skipped]
        unmapped = Counter(mood for row in chosen for mood in row.named("mood/theme") if mood not in moods)
        result = {**records.summary(tracks, skipped), "moods without valence and arousal": dict(unmapped)}
        return stages.Made(records.write(dataset, tracks, skipped), result)

    return stages.run("download_jamendo", make, scope=scope, params=params, force=force or settings.verify)


def folder_of(settings: JamendoSettings) -> Path:
    """Where Jamendo lies: ``dest``, else ``outputs/downloads/jamendo``."""
    return Path(settings.dest).expanduser().resolve() if settings.dest else files.outputs_root() / "downloads" / "jamendo"


def forecast_rows(settings: JamendoSettings) -> list[forecast.Row]:
    """What a download will take; exact in its number of tracks once the tables are there, else at most."""
    table = folder_of(settings) / "tables" / _table(settings)
    if table.exists():
        chosen, _ = select(read_table(table), {}, settings)
        return [_audio_row(settings, len(chosen), len({row.shelf for row in chosen}))]
    tars = settings.tars or TARS
    count = TRACKS[settings.collection] * tars // TARS
    return [_audio_row(settings, min(settings.limit or count, count), tars, "at most: the tables are not here yet")]


def _audio_row(settings: JamendoSettings, count: int, tars: int, note: str = "") -> forecast.Row:
    total = BYTES[settings.collection, settings.audio]
    disk = total / TRACKS[settings.collection] * count
    fetched = disk if settings.mode == "tracks" else total / TARS * tars
    peak = disk + (0 if settings.mode == "tracks" else fetched if settings.keep_archive else total / TARS)
    note = note or ("single files" if settings.mode == "tracks" else f"{tars} tars, each deleted after unpacking")
    return forecast.row(
        f"Jamendo {settings.collection} {settings.audio}, {count} tracks", fetched, disk, count + tars, peak=peak, note=note
    )


# Tables


def _table(settings: JamendoSettings) -> str:
    return settings.table or f"{settings.collection}.tsv"


def tables(settings: JamendoSettings) -> tuple[list[Row], dict[str, str]]:
    """The rows of the table, and the SHA-256 of tars and tracks by name; fetched if need be."""
    folder = folder_of(settings) / "tables"
    lists = [f"download/{settings.collection}_{settings.audio}_sha256_{kind}.txt" for kind in ("tars", "tracks")]
    names = [_table(settings), *lists]
    base = settings.tables_url.rstrip("/")
    wanted = [downloads.Wanted((f"{base}/{name}",), folder / name) for name in names]
    downloads.fetch_all(wanted, label="Jamendo tables", verify=settings.verify)
    meta = downloads.Wanted((f"{base}/raw.meta.tsv",), folder / "raw.meta.tsv")
    if downloads.fetch_all([meta], label="Jamendo names", tolerate=True):
        print("Jamendo: no table of artists' names (raw.meta.tsv); the attribution gives their numbers", flush=True)
    hashes: dict[str, str] = {}
    for name in lists:
        hashes |= remote.parse_checksums((folder / name).read_text(encoding="utf-8"))
    return read_table(folder / names[0]), hashes


def read_table(path: Path) -> list[Row]:
    """Read a TSV with its variable number of tags; UserError names file and line of a bad row."""
    rows = []
    with open(path, encoding="utf-8", newline="") as stream:
        lines = (line.rstrip("\r\n").split("\t") for line in stream)
        if next(lines, None) != HEADER:
            raise UserError(f"{path}: not a table of MTG-Jamendo (its first line should be {' '.join(HEADER)})")
        for number, line in enumerate(lines, start=2):
            try:
                track, artist, album, place, seconds, *tags = line
                rows.append(Row(_number(track), _number(artist), _number(album), place, float(seconds), tuple(tag for tag in tags if tag)))
            except ValueError as error:
                raise UserError(f"{path}:{number}: not a row of MTG-Jamendo ({error}); fetch the table again") from None
    return rows


def _number(text: str) -> int:
    return int(text.rsplit("_", 1)[1]) if "_" in text else int(text)


def read_moods(path: Path = MOODS) -> dict[str, tuple[float, float]]:
    """Mood tag to valence and arousal in [-1, 1] (the table's scale is 1 to 9)."""
    with open(path, encoding="utf-8") as stream:
        rows = csv.DictReader(line for line in stream if not line.startswith("#"))
        return {row["MoodTag"]: ((float(row["Valence"]) - 5) / 4, (float(row["Arousal"]) - 5) / 4) for row in rows}


def _names(settings: JamendoSettings) -> dict[int, tuple[str, str, str]]:
    """Track number to title, artist and album, where the table of names could be had."""
    path = folder_of(settings) / "tables" / "raw.meta.tsv"
    if not path.exists():
        return {}
    with open(path, encoding="utf-8", newline="") as stream:
        rows = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        keys = ("TRACK_NAME", "ARTIST_NAME", "ALBUM_NAME")
        return {_number(row["TRACK_ID"]): tuple(row.get(key) or "" for key in keys) for row in rows}


# Selection


def select(rows: list[Row], hashes: Mapping[str, str], settings: JamendoSettings) -> tuple[list[Row], dict[str, str]]:
    """The tracks that are wanted, by number; bit-identical ones among them are left out after the first (id to reason)."""
    known = {tag for row in rows for tag in row.tags}
    wanted = set()
    for tag in settings.tags:
        full = {name for name in known if name == tag or name.split("---", 1)[-1] == tag}
        if not full:
            raise UserError(f"tags: {tag!r} is no tag of {_table(settings)}{_suggest(tag, known)}")
        wanted |= full
    found = [
        row
        for row in rows
        if (not wanted or wanted & set(row.tags))
        and row.seconds >= settings.min_seconds
        and (not settings.max_seconds or row.seconds <= settings.max_seconds)
        and (not settings.tars or int(row.shelf) < settings.tars)
    ]
    found.sort(key=lambda row: row.number)
    skipped, first, kept = {}, {}, []
    for row in found:
        digest = hashes.get(member_of(row, settings.audio))
        if digest and digest in first:
            skipped[str(row.number)] = f"bit-identical to {first[digest]}"
        else:
            kept.append(row)
            first[digest] = row.number
    if settings.limit and settings.limit < len(kept):
        order = random.Random(settings.seed).sample(range(len(kept)), len(kept))
        kept = [kept[place] for place in sorted(order[: settings.limit])]
    return kept, skipped


def _suggest(tag: str, known: Iterable[str]) -> str:
    bare = sorted({name.split("---", 1)[-1] for name in known})
    return config.suggest(tag.split("---", 1)[-1], bare)[:400]


# Audio


def member_of(row: Row, audio: str) -> str:
    """``46/3346.mp3``, or ``46/3346.low.mp3`` in audio-low."""
    return row.path.removesuffix(".mp3") + ".low.mp3" if audio == "audio-low" else row.path


def audio_folder(settings: JamendoSettings) -> Path:
    """Where the tracks lie: below it their members' paths."""
    return folder_of(settings) / settings.collection / settings.audio


def fetch_audio(chosen: list[Row], hashes: Mapping[str, str], settings: JamendoSettings) -> dict[str, str]:
    """Bring the audio of the chosen tracks here; returns those that could not be had (id to reason)."""
    if settings.mode == "tracks":
        return _fetch_tracks(chosen, hashes, settings)
    shelves: dict[str, list[Row]] = defaultdict(list)
    for row in chosen:
        shelves[row.shelf].append(row)
    skipped: dict[str, str] = {}
    for number, shelf in enumerate(sorted(shelves), start=1):
        print(f"tar {number} of {len(shelves)}", flush=True)
        skipped |= _fetch_tar(shelf, shelves[shelf], hashes, settings)
    return skipped


def _urls(settings: JamendoSettings, name: str) -> tuple[str, ...]:
    return tuple(f"{base.rstrip('/')}/{settings.collection}/{settings.audio}/{name}" for base in (settings.base_url, *settings.mirrors))


def _fetch_tar(shelf: str, rows: Iterable[Row], hashes: Mapping[str, str], settings: JamendoSettings) -> dict[str, str]:
    name, folder = f"{settings.collection}_{settings.audio}-{shelf}.tar", audio_folder(settings)
    members = {member_of(row, settings.audio): row.number for row in rows}
    if name not in hashes:
        raise UserError(f"{name}: no SHA-256 is published for it; give another collection or audio")
    wanted = downloads.Wanted(_urls(settings, name), folder / name, digests={"sha256": hashes[name]})
    key = hashlib.sha256("\n".join(sorted(members)).encode()).hexdigest()[:12]
    delete = not settings.keep_archive
    again = settings.verify or not archives.finished(wanted.path, folder, key)
    archives.fetch_and_extract(wanted, folder, choose=members.__contains__, key=key, delete=delete, verify=settings.verify)
    spoilt = [member for member in members if again and _spoilt(folder / member, hashes.get(member))]
    if spoilt:
        for member in spoilt:
            (folder / member).unlink()
        for receipt in (folder / ".extracted").glob(f"{name}.*.json"):
            receipt.unlink()
        raise downloads.DownloadError(f"{folder}: {len(spoilt)} files differ from the SHA-256 list ({', '.join(spoilt[:3])}); run it again")
    return {str(number): "not in its tar" for member, number in members.items() if not (folder / member).exists()}


def _spoilt(path: Path, expected: str | None) -> bool:
    return bool(expected) and path.exists() and downloads.digest_of(path, "sha256") != expected


def _fetch_tracks(chosen: list[Row], hashes: Mapping[str, str], settings: JamendoSettings) -> dict[str, str]:
    folder, wanted = audio_folder(settings), {}
    for row in chosen:
        member = member_of(row, settings.audio)
        digests = {"sha256": hashes[member]} if member in hashes else {}
        wanted[folder / member] = (row.number, downloads.Wanted(_urls(settings, member), folder / member, digests=digests))
    jobs = [job for _, job in wanted.values()]
    faults = downloads.fetch_all(jobs, label="Jamendo tracks", workers=settings.workers, verify=settings.verify, tolerate=True)
    return {str(wanted[path][0]): reason for path, reason in faults.items()}


def track_of(
    row: Row, settings: JamendoSettings, names: Mapping[int, tuple[str, str, str]], moods: Mapping[str, tuple[float, float]]
) -> catalogue.Track:
    """The catalogue's row of a track; valence and arousal are the means over its mood tags that have them."""
    title, artist, album = names.get(row.number, ("", "", ""))
    felt = [moods[mood] for mood in row.named("mood/theme") if mood in moods]
    page = f"https://www.jamendo.com/track/{row.number}"
    genres = row.named("genre")
    return catalogue.Track(
        id=f"jamendo_{row.number:07d}",
        path=files.relative(audio_folder(settings) / member_of(row, settings.audio)),
        source=f"jamendo_{settings.collection}",
        artist_id=f"jamendo_{row.artist}",
        artist=artist or f"Jamendo artist {row.artist}",
        title=title or f"Jamendo track {row.number}",
        album=album,
        genre=genres[0] if genres else "",
        tags=row.tags,
        moods=row.named("mood/theme"),
        instruments=row.named("instrument"),
        licence="Creative Commons, per track: see its page",
        attribution=f'"{title or row.number}" by {artist or f"Jamendo artist {row.artist}"}, {page}',
        duration=row.seconds,
        valence=round(sum(v for v, _ in felt) / len(felt), 4) if felt else None,
        arousal=round(sum(a for _, a in felt) / len(felt), 4) if felt else None,
    )


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    from . import command

    return command.run(__doc__, "jamendo", JamendoSettings, download, forecast_rows, arguments)


if __name__ == "__main__":
    from ...errors import run_command

    run_command(main)
