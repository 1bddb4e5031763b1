"""Stems and MIDI from one table of archives (``model_config/archives.yaml``), unpacked for notebooks 07 and 08.

    python -m music_training.library.sources.stems_midi --archives musdb18hq,maestro_midi,emopia

Each archive is fetched, checked against its published checksum, consumed while it is unpacked, and read by its layout:
stems become ``outputs/library/<dataset>/`` catalogue rows with ``stems`` (mixture, drums, bass, other, vocals, or the
nine drum stems of StemGMD), MIDI becomes rows with ``midi``, EMOPIA's quadrants valence and arousal. A ``folders.json``
beside the catalogue says where each layout lies.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ... import config, files, stages
from ...errors import UserError
from .. import archives, catalogue, downloads, forecast, records

TABLE = files.REPOSITORY / "model_config" / "archives.yaml"
MIDI = (".mid", ".midi")
QUADRANTS = {"Q1": (0.5, 0.5), "Q2": (-0.5, 0.5), "Q3": (-0.5, -0.5), "Q4": (0.5, -0.5)}  # signs are EMOPIA's, sizes are ours


class Archive(config.Settings):
    """A row of the table: where an archive is, what is known of it, and by which layout it is read.

    ``parts`` are file names below ``url`` (a folder) for a set of many archives; ``expanded`` and ``files`` are estimates.
    """

    url: str
    bytes: int = Field(0, ge=0)
    expanded: int = Field(0, ge=0)
    files: int = Field(0, ge=0)
    sha1: str = ""
    sha256: str = ""
    md5: str = ""
    licence: str
    layout: Literal["musdb", "stemgmd", "emopia", "midi", "groove"]
    parts: tuple[str, ...] = ()


class StemsMidiSettings(config.Settings):
    """``archives`` are names of the table; ``parts`` (archive to file names) chooses of those that come in parts."""

    archives: tuple[str, ...] = ("musdb18hq", "maestro_midi", "emopia")
    parts: dict[str, tuple[str, ...]] = {}
    table: str = str(TABLE.relative_to(files.REPOSITORY))
    limit: int = Field(0, ge=0)
    keep_archive: bool = False
    dest: str = ""
    base_url: str = ""
    workers: int = Field(4, ge=1, le=32)
    verify: bool = False


def table(settings: StemsMidiSettings) -> dict[str, Archive]:
    """The rows of the table that are wanted; UserError names an unknown one."""
    path = files.REPOSITORY / settings.table
    content = config.read_yaml(path)
    for name in settings.archives:
        if name not in content:
            raise UserError(f"archives: {name!r} is not in {path.name}{config.suggest(name, content)}")
    return {name: config.load(Archive, content[name] or {}, name=f"{path}: {name}") for name in settings.archives}


def download(dataset: str, scope: str, settings: StemsMidiSettings, force: bool = False) -> stages.StageResult:
    """Fetch and unpack the archives, and write the catalogue of ``dataset`` over what they hold."""
    rows = table(settings)
    params = {"dataset": dataset, **settings.model_dump(mode="json", exclude={"workers", "verify"})}
    params["rows"] = {name: row.model_dump(mode="json") for name, row in rows.items()}

    def make(_: stages.Draft) -> stages.Made:
        forecast.refuse(forecast_rows(settings), folder_of(settings))
        tracks, counts, folders = [], {}, {}
        for name, row in rows.items():
            folder = folder_of(settings) / name
            for wanted in _wanted(name, row, settings):
                archives.fetch_and_extract(wanted, folder, consume=not settings.keep_archive, verify=settings.verify)
            found = _read(name, row, folder, settings.limit)
            counts[name], folders[name] = len(found), {"layout": row.layout, "folder": files.relative(folder)}
            tracks += found
        listing = files.write_json(catalogue.path_of(dataset).with_name("folders.json"), folders)
        return stages.Made([*records.write(dataset, tracks, {}), listing], {"archives": counts, "tracks": len(tracks)})

    return stages.run("download_stems_midi", make, scope=scope, params=params, force=force or settings.verify)


def folder_of(settings: StemsMidiSettings) -> Path:
    """Where the archives are unpacked, a folder each: ``dest``, else ``outputs/downloads/stems_midi``."""
    return Path(settings.dest).expanduser().resolve() if settings.dest else files.outputs_root() / "downloads" / "stems_midi"


def forecast_rows(settings: StemsMidiSettings) -> list[forecast.Row]:
    """What a download will take; for an archive whose size is not published the expanded one stands."""
    rows = []
    for name, row in table(settings).items():
        note = "size estimated" if not row.bytes else ""
        if not archives.finished(folder_of(settings) / name / _name(row.url), folder_of(settings) / name):
            rows.append(
                forecast.row(name, row.bytes or row.expanded, row.expanded, row.files, peak=row.expanded + row.bytes / 10, note=note)
            )
    return rows


def _name(url: str) -> str:
    return url.split("?")[0].rstrip("/").rsplit("/", 1)[-1]


def _wanted(name: str, row: Archive, settings: StemsMidiSettings) -> list[downloads.Wanted]:
    parts = settings.parts.get(name, row.parts)
    if row.url.endswith("/") and not parts:
        raise UserError(f"archives: {name} comes in parts; choose some with parts.{name}=[FILE, ...] (files of {row.url})")
    urls = [f"{row.url}{part}" for part in parts] if parts else [row.url]
    if settings.base_url:
        urls = [f"{settings.base_url.rstrip('/')}/{_name(url)}" for url in urls]
    known = {"sha1": row.sha1, "sha256": row.sha256, "md5": row.md5}
    digests = {} if parts else {digest: value for digest, value in known.items() if value}
    size = None if parts else row.bytes or None
    return [downloads.Wanted((url,), folder_of(settings) / name / _name(url), size, digests) for url in urls]


# Layouts


def _read(name: str, row: Archive, folder: Path, limit: int) -> list[catalogue.Track]:
    found = LAYOUTS[row.layout](folder)
    if not found:
        raise UserError(f"{folder}: nothing of the layout {row.layout!r} in {name}; check the row in {TABLE.name}")
    chosen = sorted(found.items())[: limit or None]
    about = {"source": name, "licence": row.licence, "attribution": f"{name}, {_name(row.url)}, {row.licence}"}
    return [catalogue.Track(id=f"{name}_{_safe(key)}", **about, **{"title": key, **fields}) for key, fields in chosen]


def _safe(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text).strip("._")


def _songs(folder: Path, mixture: str, kinds: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Folders that hold ``<mixture>.wav`` and stems: song to path, stems and artist ("Artist - Title")."""
    songs = {}
    for mix in sorted(folder.rglob(f"{mixture}.wav")):
        stems = {
            ours: files.relative(mix.with_name(f"{theirs}.wav"))
            for theirs, ours in kinds.items()
            if mix.with_name(f"{theirs}.wav").exists()
        }
        artist, dash, _ = mix.parent.name.partition(" - ")
        songs[mix.parent.name] = {
            "path": files.relative(mix),
            "stems": stems,
            "artist": artist if dash else "",
            "artist_id": _safe(artist.lower()) if dash else _safe(mix.parent.name.lower()),
            "tags": (mix.parent.parent.name,),
        }
    return songs


def _musdb(folder: Path) -> dict[str, dict[str, Any]]:
    return _songs(folder, "mixture", {name: name for name in ("drums", "bass", "other", "vocals")})


STEMGMD = ("kick", "snare", "lo_tom", "mid_tom", "hi_tom", "hh_closed", "hh_open", "crash", "ride")


def _stemgmd(folder: Path) -> dict[str, dict[str, Any]]:
    """Drum takes: any folder with wav files of which one is the mixture and others are named by drums."""
    takes = {}
    for mix in sorted(path for path in folder.rglob("*.wav") if re.search(r"(^|_)mix(ture)?$", path.stem.lower())):
        stems = {}
        for path in sorted(mix.parent.glob("*.wav")):
            plain = path.stem.lower().replace("-", "_")
            drum = next((name for name in STEMGMD if plain == name or plain.endswith(f"_{name}")), None)
            if drum:
                stems[drum] = files.relative(path)
        key = mix.parent.relative_to(folder).as_posix()
        takes[key] = {"path": files.relative(mix), "stems": stems, "artist_id": f"stemgmd_{_safe(key.split('/')[0])}"}
    return takes


def _midi(folder: Path) -> dict[str, dict[str, Any]]:
    """Every MIDI file, by its path without suffix; the folder above it stands for the artist."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in MIDI and not path.name.startswith(".")):
        key = path.relative_to(folder).with_suffix("").as_posix()
        found[key] = {"path": "", "midi": files.relative(path), "artist_id": _safe(path.parent.name or key)}
    return found


def _emopia(folder: Path) -> dict[str, dict[str, Any]]:
    """``midis/Q1_<youtube id>_<n>.mid``: the quadrant gives the signs of valence and arousal; clips of a video stay together."""
    found = {}
    for key, fields in _midi(folder).items():
        match = re.fullmatch(r"(Q[1-4])_(.+)_(\d+)", key.rsplit("/", 1)[-1])
        if match:
            valence, arousal = QUADRANTS[match[1]]
            found[match[0]] = {
                **fields,
                "artist_id": f"emopia_{_safe(match[2])}",
                "valence": valence,
                "arousal": arousal,
                "tags": (match[1],),
            }
    return found


def _groove(folder: Path) -> dict[str, dict[str, Any]]:
    """Drum takes with audio beside the MIDI: ``drummer1/session1/1_rock_120_beat_4-4.mid`` names style and tempo."""
    found = {}
    for key, fields in _midi(folder).items():
        audio = folder / f"{key}.wav"
        match = re.match(r"\d+_([^_]+)_(\d+)_", key.rsplit("/", 1)[-1])
        drummer = next((part for part in key.split("/") if part.startswith("drummer")), "drummer")
        found[key] = {**fields, "artist_id": drummer, "path": files.relative(audio) if audio.exists() else ""}
        if match:
            found[key] |= {"genre": match[1].split("-")[0], "bpm": float(match[2])}
    return found


LAYOUTS: dict[str, Callable[[Path], dict[str, dict[str, Any]]]] = {
    "musdb": _musdb,
    "stemgmd": _stemgmd,
    "emopia": _emopia,
    "midi": _midi,
    "groove": _groove,
}


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    from . import command

    return command.run(__doc__, "stems_midi", StemsMidiSettings, download, forecast_rows, arguments)


if __name__ == "__main__":
    from ...errors import run_command

    run_command(main)
