"""Turns the tracks of a catalogue into training segments: ``python -m music_training.library.segments --profile mini``.

Every track is decoded once, averaged to mono, resampled, checked, and cut into segments (32 kHz, 10 s, PCM16) under
``outputs/segments/<dataset>/audio/<2 hex>/<track id>_<number>.wav``, each with the sidecar ``.json`` that AudioCraft
reads. Beside them: ``segments.jsonl`` (one line a segment), ``rejects.csv`` (what was not used, why, with figures) and
``summary.json``. A track's segments take their places together, and then its row goes to a journal: a run that was
killed, or a catalogue that has grown, costs only the tracks that are not there yet.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from .. import files, parallel, stages
from ..config import Settings
from ..errors import UserError
from ..progress import Progress
from . import catalogue, duplicates
from .manifests import ManifestSettings, index_of
from .tracks import segment_track

VERSION = 1
BATCH_SECONDS = 1.0  # between two syncs: the workers go on meanwhile, and little is left to wait for at the end
FIGURES = ("reason", "path", "track", "artist", "start", "seconds", "figures")


class SegmentSettings(Settings):
    """How tracks become segments, and what a track has to be like to be used.

    Levels are in dB of full scale over the whole track (or segment); ``workers`` 0 is one per core.
    """

    sample_rate: int = Field(32000, ge=8000, le=192000)  # Hz
    segment_seconds: float = Field(10.0, gt=0)
    format: Literal["wav", "flac"] = "wav"
    keep_remainder: float = Field(0.95, gt=0, le=1)  # of a segment: a shorter last one is not used
    silence_db: float = Field(-60.0, lt=0)  # RMS below it is silence
    antiphase_db: float = Field(-15.0, lt=0)  # power of the mean of the channels against the channels' own
    dc_offset: float = Field(0.05, gt=0)  # mean of the samples, full scale 1
    truncated_share: float = Field(0.98, gt=0, le=1)  # of the declared length that has to be there
    workers: int = Field(0, ge=0)
    split: ManifestSettings = ManifestSettings()


def segment(
    dataset: str,
    scope: str,
    settings: SegmentSettings,
    scheduler: str = "",
    originals: Iterable[Path] = (),
    force: bool = False,
) -> stages.StageResult:
    """Segment the catalogue of a data set; the result is what ``summary.json`` says.

    ``originals`` are folders whose listing is an input too (a person's own audio may change under an unchanged
    catalogue). ``scheduler`` is the address of a dask scheduler, whose workers then do the work (they have to see the
    same files and have the same code installed); what is made is the same. Raises UserError where no segment can be made.
    """
    path = catalogue.path_of(dataset)
    params = {"dataset": dataset, **settings.model_dump(exclude={"workers", "split"})}
    inputs = [path, *originals]
    return stages.run(
        "segment_audio",
        lambda draft: _make(dataset, scope, settings, params, draft.forced, scheduler),
        scope=scope,
        params=params,
        inputs=inputs,
        version=VERSION,
        force=force,
    )


def rejects_of(dataset: str) -> Path:
    """The table of what was not used."""
    return index_of(dataset).with_name("rejects.csv")


def summary_of(dataset: str) -> Path:
    """The figures of a segmented data set."""
    return index_of(dataset).with_name("summary.json")


def _make(dataset: str, scope: str, settings: SegmentSettings, params: dict[str, Any], forced: bool, scheduler: str) -> stages.Made:
    folder = index_of(dataset).parent
    staging = folder / ".staging.tmp"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    tracks = {track.id: track for track in catalogue.read(catalogue.path_of(dataset))}
    _check_room(folder, tracks.values(), settings)
    journal = Journal(stages.stamp_file("segment_audio", scope, params, VERSION).with_suffix(".tracks.jsonl"), forced)
    jobs = {name: _job(track, folder, params) for name, track in tracks.items()}
    while True:
        rows = {name: row for name, job in jobs.items() if (row := journal.row(job)) is not None}
        todo = [job for name, job in sorted(jobs.items()) if name not in rows]
        _work(todo, journal, rows, settings.workers or parallel.cores(), scheduler, resumed=len(rows))
        segments, rejects = _select([rows[name] for name in sorted(rows)])
        wanted = {row["path"] for row in segments}
        present = _present(folder)
        lost = {row["track"] for row in segments if row["path"] not in present}
        if not lost:
            break
        journal.forget(lost)
    for path in present - wanted:  # duplicates, other settings, tracks that left the catalogue
        files.absolute(path).unlink()
        files.absolute(path).with_suffix(".json").unlink(missing_ok=True)
    shutil.rmtree(staging)
    journal.close(rows)
    summary = _summary(dataset, settings, tracks.values(), rows.values(), segments, rejects)
    outputs = [
        files.write_text(index_of(dataset), "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in segments)),
        files.write_text(rejects_of(dataset), _csv(rejects)),
        files.write_json(summary_of(dataset), summary),
    ]
    if not segments:
        reasons = ", ".join(f"{reason} {count}" for reason, count in summary["rejects"].items())
        raise UserError(
            f"{dataset}: not one segment of {settings.segment_seconds:g} s in {len(tracks)} tracks ({reasons}); see {outputs[1]}"
        )
    return stages.Made(outputs, summary, sorted(path for path in (folder / "audio").iterdir() if path.is_dir()))


def _work(todo: list[dict[str, Any]], journal: Journal, rows: dict[str, Any], workers: int, scheduler: str, resumed: int) -> None:
    """Segment the tracks that are still to do.

    A row in the journal promises that the track's files outlive a power cut. One ``fsync`` for each of 300,000 files
    takes hours on a network volume, so the files of a few seconds are made durable by one ``sync`` before their rows
    are written; what was not promised is made again.
    """
    if not todo:
        return
    batch, since = [], time.monotonic()
    workers = max(1, min(workers, len(todo)))
    spread = parallel.map_dask(segment_track, todo, scheduler) if scheduler else parallel.map_processes(segment_track, todo, workers)
    who = scheduler or f"{workers} processes"
    with Progress(len(todo), f"segments ({who}{f', {resumed} tracks done before' if resumed else ''})", "track") as shown:
        for job, row in zip(todo, spread, strict=True):
            rows[row["track"]] = row
            batch.append({"key": job["key"], **row})
            if time.monotonic() - since > BATCH_SECONDS:
                os.sync()
                journal.add(batch)
                batch, since = [], time.monotonic()
            shown.update()
    os.sync()
    journal.add(batch)


class Journal:
    """The finished tracks of a stage, a JSON line each; the later line of a track holds.

    A row counts only for the same job: file, size, mtime and catalogue row.
    """

    def __init__(self, path: Path, forced: bool):
        self._path, self._rows = path, {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if forced:
            path.unlink(missing_ok=True)
        if path.is_file():
            for line in path.read_bytes().splitlines():
                try:
                    row = json.loads(line)
                    self._rows[row["track"]] = row
                except (ValueError, KeyError):  # the line that a killed run did not finish
                    continue

    def row(self, job: dict[str, Any]) -> dict[str, Any] | None:
        """The row of a job that is done."""
        known = self._rows.get(job["track"])
        return {name: value for name, value in known.items() if name != "key"} if known and known["key"] == job["key"] else None

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append rows, durably."""
        with open(self._path, "ab") as stream:
            stream.write(b"\n" if stream.tell() else b"")  # closes a line that a killed run left open
            for row in rows:
                self._rows[row["track"]] = row
                stream.write(json.dumps(row).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())

    def forget(self, tracks: Iterable[str]) -> None:
        """Drop tracks whose files are gone."""
        for name in tracks:
            self._rows.pop(name, None)

    def close(self, kept: Iterable[str]) -> None:
        """Keep the rows of these tracks for the next time the catalogue changes."""
        files.write_text(self._path, "".join(json.dumps(self._rows[name]) + "\n" for name in sorted(kept)))


def _job(track: catalogue.Track, folder: Path, params: dict[str, Any]) -> dict[str, Any]:
    """All that a worker needs to know, in plain values: it may run in another process or on another machine."""
    if not track.id or "/" in track.id or track.id.startswith("."):
        raise UserError(f"catalogue: the id {track.id!r} cannot be a file name; ids are letters, digits, '-' and '_'")
    path = files.absolute(track.path)
    sidecar = {
        "title": track.title,
        "artist": track.artist or track.artist_id,
        "album": track.album,
        "key": track.key,
        "bpm": "" if track.bpm is None else track.bpm,
        "genre": track.genre,
        "moods": list(track.moods),
        "keywords": list(track.tags),
        "description": track.description,
        "instrument": ", ".join(track.instruments) or "Mix",
    }
    identity = {"track": track.id, "artist": track.artist_id or track.id, "source": track.path, "sidecar": sidecar}
    try:
        status = os.stat(path)
        key = [status.st_size, status.st_mtime_ns, duplicates.joined_digest([json.dumps(identity)])]
    except OSError:
        key = []
    return {**identity, "file": str(path), "root": str(files.outputs_root()), "folder": str(folder), "settings": params, "key": key}


def _select(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The segments to use and the rejects, of rows sorted by track: of equal audio the first by id stays."""
    rejects = [reject for row in rows for reject in row["rejects"]]
    same = duplicates.exact((row["track"], row["sha256"]) for row in rows if row["sha256"])
    for row in rows:
        if row["track"] in same:
            rejects = [reject for reject in rejects if reject["track"] != row["track"]]
            rejects.append(_duplicate(row, same[row["track"]], row["source"], seconds=row["seconds"]))
    segments = [item for row in rows if row["track"] not in same for item in row["segments"]]
    same = duplicates.exact((item["path"], item["sha256"]) for item in segments)
    sources = {row["track"]: row["source"] for row in rows}
    for item in segments:
        if item["path"] in same:
            first = Path(same[item["path"]]).stem
            rejects.append(_duplicate(item, first, sources[item["track"]], start=item["start"], seconds=item["duration"]))
    rejects.sort(key=lambda reject: (reject["track"], reject.get("start", -1.0), reject["reason"]))
    return [item for item in segments if item["path"] not in same], rejects


def _duplicate(row: dict[str, Any], first: str, source: str, **more: Any) -> dict[str, Any]:
    return {"reason": f"duplicate of {first}", "path": source, "track": row["track"], "artist": row["artist"], "figures": {}, **more}


def _present(folder: Path) -> set[str]:
    """Segments that lie in their places with their sidecars, as the index names them."""
    found = set()
    for root, _, names in os.walk(folder / "audio"):
        place, names = files.relative(root), set(names)
        found.update(f"{place}/{name}" for name in names if not name.endswith(".json") and f"{os.path.splitext(name)[0]}.json" in names)
    return found


def _check_room(folder: Path, tracks: Iterable[catalogue.Track], settings: SegmentSettings) -> None:
    """Refuse before the first byte where the segments cannot fit (what lies there already is counted as room)."""
    seconds = sum(track.duration for track in tracks)
    needed = seconds * settings.sample_rate * 2
    there = sum(1 for _ in (folder / "audio").glob("*/*")) if (folder / "audio").is_dir() else 0
    free = shutil.disk_usage(folder).free + there / 2 * settings.segment_seconds * settings.sample_rate * 2
    if needed > free:
        raise UserError(f"{folder}: {seconds / 3600:.3g} h of segments take {needed / 1e9:.3f} GB, {free / 1e9:.3f} GB are free; make room")
    inodes, entries = os.statvfs(folder), 2 * seconds / settings.segment_seconds - there
    if inodes.f_files and entries > inodes.f_favail:
        raise UserError(f"{folder}: {entries:.0f} files are needed, the file system has room for {inodes.f_favail}; make room")


def _csv(rejects: list[dict[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, FIGURES, lineterminator="\n")
    writer.writeheader()
    for reject in rejects:
        figures = " ".join(f"{name}={value}" for name, value in reject["figures"].items())
        writer.writerow({**reject, "figures": figures})
    return stream.getvalue()


def _summary(dataset, settings, tracks, rows, segments, rejects) -> dict[str, Any]:
    tracks, rows = list(tracks), list(rows)
    used = {item["track"] for item in segments}
    return {
        "dataset": dataset,
        "synthetic": any(track.synthetic for track in tracks),
        "tracks": len(tracks),
        "tracks_used": len(used),
        "artists": len({item["artist"] for item in segments}),
        "segments": len(segments),
        "segment_seconds": settings.segment_seconds,
        "sample_rate": settings.sample_rate,
        "hours": round(sum(item["duration"] for item in segments) / 3600, 4),
        "source_hours": round(sum(row["seconds"] for row in rows) / 3600, 4),
        "scaled_tracks": sum(row["gain"] < 1 for row in rows if row["track"] in used),
        "rejects": dict(sorted(Counter(kind(reject["reason"]) for reject in rejects).items())),
    }


def kind(reason: str) -> str:
    """The reason without the name of the other one: "duplicate of X" is "duplicate"."""
    return reason.partition(" of ")[0]


def _main() -> None:
    import argparse

    from .. import profiles
    from . import manifests
    from .sources import folder

    parser = argparse.ArgumentParser(prog="python -m music_training.library.segments", description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="mini")
    parser.add_argument("--audio-dir", default="", help="a folder of your own audio in place of the profile's data set")
    parser.add_argument("--scheduler", default="", metavar="tcp://HOST:PORT", help="let the workers of a dask scheduler do it")
    parser.add_argument("--force", action="store_true", help="make it again even if it is up to date")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, e.g. segment_seconds=20 split.test=0.1")
    arguments = parser.parse_args()
    settings = profiles.settings(SegmentSettings, "03_segment_audio", arguments.profile, arguments.overrides)
    dataset = profiles.dataset(arguments.profile, arguments.audio_dir)
    scope = profiles.scope(arguments.profile, arguments.audio_dir)
    if arguments.audio_dir:
        folder.catalogue_folder(arguments.audio_dir, dataset, scope)
    roots = folder.roots(arguments.audio_dir)
    made = segment(dataset, scope, settings, arguments.scheduler, originals=roots, force=arguments.force)
    divided = manifests.build(dataset, scope, settings.split)
    for name, value in {**made.result, "divided by": divided.result["rule"], **divided.result["splits"]}.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    from ..errors import run_command

    run_command(_main)
