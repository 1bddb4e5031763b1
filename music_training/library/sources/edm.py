"""Electronic dance music: GiantSteps audio, the EDM of FMA and Jamendo, and open structure annotations.

    python -m music_training.library.sources.edm --audio giantsteps_tempo,fma --annotations harmonix,raveform

No set has open audio together with drop labels. So audio comes with tempo and key labels (GiantSteps) or genres (FMA,
Jamendo), and the annotation sets are converted into our YAML and JAMS and paired with a person's own audio
(``own_audio``). An annotation set that a person has already is read from ``local`` instead of being fetched.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ... import config, files, stages
from ...errors import UserError
from .. import annotation_sets, annotations, archives, catalogue, downloads, forecast, records
from . import fma, jamendo
from .fma import EDM_GENRES, FmaSettings
from .jamendo import EDM_TAGS, JamendoSettings

GITHUB = "https://github.com/"
TEMPO_REPOSITORY = "GiantSteps/giantsteps-tempo-dataset/archive/d51ab2422e76abacfaa86616a57054bc222ec9fd.zip"
KEY_REPOSITORY = "GiantSteps/giantsteps-key-dataset/archive/6bcd492c825ac9b8597bc650a5f6fd18b6c43d2b.zip"
KEY_MD5 = "8ec9ade888d5a88ce435d7fda031929b"
LICENCE = "CC BY-SA 4.0"
SETS = {  # where each set comes from, and where below its archive (or which file) the reader looks
    "harmonix": ("https://github.com/urinieto/harmonixset/archive/e35da7accdf6155c87640160ddf9199da6d10493.zip", "metadata.csv"),
    "salami": ("https://github.com/DDMAL/salami-data-public/archive/8e4f95d18a3ab628c53011fa5a43e9d3be27965d.zip", "metadata"),
    "edm98": ("https://github.com/25ohms/EDM-98/archive/HEAD.zip", ".jsonl"),
    "raveform": ("https://huggingface.co/datasets/taejunkim/raveform/resolve/main/raveform.zip", "structures/segments.json"),
    "edm_cue": ("", ".json"),  # the names of its files are not known: give a local copy
}
BYTES = {"giantsteps_tempo": (1.0e9, 664), "giantsteps_key": (0.92e9, 604)}  # previews of two minutes


class EdmSettings(config.Settings):
    """What of EDM to fetch.

    ``audio`` names the sources of audio, ``annotations`` the sets to convert, ``local`` (set to path) copies of sets
    that are here already, ``own_audio`` a folder to pair them with; ``limit`` (0: all) bounds each GiantSteps set.
    """

    audio: tuple[Literal["giantsteps_tempo", "giantsteps_key", "fma", "jamendo"], ...] = (
        "giantsteps_tempo",
        "giantsteps_key",
        "fma",
        "jamendo",
    )
    annotations: tuple[Literal["harmonix", "raveform", "edm98", "edm_cue", "salami"], ...] = ("harmonix", "raveform", "edm98", "salami")
    local: dict[str, str] = {}
    own_audio: str = ""
    limit: int = Field(0, ge=0)
    dest: str = ""
    github_url: str = GITHUB
    tempo_url: str = "https://www.cp.jku.at/datasets/giantsteps/backup/"
    key_url: str = "https://zenodo.org/records/1095691/files/audio.zip"
    key_md5: str = KEY_MD5
    sets_urls: dict[str, str] = {}
    fma: FmaSettings = FmaSettings(subset="large", genres=EDM_GENRES, limit=4000)
    jamendo: JamendoSettings = JamendoSettings(tags=EDM_TAGS, tars=10)
    workers: int = Field(4, ge=1, le=32)
    verify: bool = False


def download(dataset: str, scope: str, settings: EdmSettings, force: bool = False) -> stages.StageResult:
    """Fetch audio and annotations, and write the catalogue of ``dataset`` over all of them."""
    parts = {"fma": fma, "jamendo": jamendo}
    for name, source in parts.items():
        if name in settings.audio:
            part = getattr(settings, name)
            dest = part.dest or (str(folder_of(settings) / name) if settings.dest else "")
            part = part.model_copy(update={"dest": dest, "verify": settings.verify or part.verify})
            source.download(f"{dataset}_{name}", scope, part, force=force)
    inputs = [catalogue.path_of(f"{dataset}_{name}") for name in parts if name in settings.audio]
    params = {"dataset": dataset, **settings.model_dump(mode="json", exclude={"workers", "verify"})}
    own = [Path(settings.own_audio).expanduser()] if settings.own_audio else []

    def make(_: stages.Draft) -> stages.Made:
        forecast.refuse([row for row in forecast_rows(settings) if row.step.startswith("GiantSteps")], folder_of(settings))
        tracks, skipped = giantsteps(settings)
        for path in inputs:
            tracks += catalogue.read(path)
        sections, paired = convert(dataset, settings)
        tracks += paired
        outputs = records.write(dataset, tracks, skipped)
        return stages.Made([*outputs, sections["report"]], {**records.summary(tracks, skipped), "annotations": sections["counts"]})

    return stages.run("download_edm", make, scope=scope, params=params, inputs=[*inputs, *own], force=force or settings.verify)


def folder_of(settings: EdmSettings) -> Path:
    """Where the audio and the sets lie: ``dest``, else ``outputs/downloads/edm``."""
    return Path(settings.dest).expanduser().resolve() if settings.dest else files.outputs_root() / "downloads" / "edm"


def forecast_rows(settings: EdmSettings) -> list[forecast.Row]:
    """What a download will take."""
    rows = []
    for name, (size, number) in BYTES.items():
        if name in settings.audio:
            count = min(settings.limit or number, number)
            fetched = size if name.endswith("key") else size / number * count
            rows.append(
                forecast.row(
                    f"GiantSteps {name[11:]}, {count} tracks", fetched, size / number * count, count, peak=fetched + size / number * count
                )
            )
    if settings.annotations:
        rows.append(forecast.row("annotation sets", 60e6, 60e6, 6000, note="an estimate"))
    rows += fma.forecast_rows(settings.fma) if "fma" in settings.audio else []
    return rows + (jamendo.forecast_rows(settings.jamendo) if "jamendo" in settings.audio else [])


# GiantSteps


def giantsteps(settings: EdmSettings) -> tuple[list[catalogue.Track], dict[str, str]]:
    """The tracks of the tempo and the key set (a track in both has both labels), and those that could not be had."""
    rows: dict[str, dict[str, Any]] = {}
    skipped: dict[str, str] = {}
    if "giantsteps_tempo" in settings.audio:
        labels = _repository(TEMPO_REPOSITORY, "giantsteps_tempo", settings)
        numbers = _first(labels / "md5", settings.limit)
        wanted = {number: _tempo_wanted(number, labels, settings) for number in numbers}
        faults = downloads.fetch_all(
            wanted.values(), label="GiantSteps tempo", workers=settings.workers, verify=settings.verify, tolerate=True
        )
        for number, job in wanted.items():
            if job.path in faults:
                skipped[f"giantsteps_{number}"] = faults[job.path]
            else:
                bpm = float(_text(labels / f"annotations_v2/tempo/{number}.LOFI.bpm") or 0)  # 0.0: no steady tempo was heard
                rows[number] = {"path": job.path, "genre": _text(labels / f"annotations/genre/{number}.LOFI.genre"), "bpm": bpm or None}
    if "giantsteps_key" in settings.audio:
        labels = _repository(KEY_REPOSITORY, "giantsteps_key", settings)
        for number, path in _key_audio(labels, settings).items():
            found = rows.setdefault(number, {"path": path, "genre": _text(labels / f"annotations/genre/{number}.LOFI.genre")})
            found["key"] = _text(labels / f"annotations/key/{number}.LOFI.key")
    return [_track(number, **row) for number, row in sorted(rows.items())], skipped


def _tempo_wanted(number: str, labels: Path, settings: EdmSettings) -> downloads.Wanted:
    name = f"{number}.LOFI.mp3"
    digest = _text(labels / f"md5/{number}.LOFI.md5").split()
    url = f"{settings.tempo_url.rstrip('/')}/{name}"
    return downloads.Wanted((url,), folder_of(settings) / "giantsteps" / name, digests={"md5": digest[0]} if digest else {})


def _key_audio(labels: Path, settings: EdmSettings) -> dict[str, Path]:
    folder = folder_of(settings) / "giantsteps_key_audio"
    wanted = downloads.Wanted((settings.key_url,), folder / "audio.zip", digests={"md5": settings.key_md5})
    numbers = _first(labels / "md5", settings.limit)
    choose = lambda name: name.rsplit("/", 1)[-1].split(".")[0] in set(numbers)  # noqa: E731
    key = f"first{settings.limit}" if settings.limit else "all"
    got = archives.fetch_and_extract(wanted, folder, choose=choose, key=key, delete=True, verify=settings.verify)
    found = {Path(name).name.split(".")[0]: folder / name for name in got.names if name.endswith(".mp3")}
    for number, path in found.items():
        digest = _text(labels / f"md5/{number}.LOFI.md5").split()
        if digest and downloads.digest_of(path, "md5") != digest[0]:
            raise downloads.DownloadError(f"{path}: its md5 differs from the published one; remove {folder} and run it again")
    return found


def _first(folder: Path, limit: int) -> list[str]:
    numbers = sorted((path.name.split(".")[0] for path in folder.glob("*.md5")), key=int)
    return numbers[:limit] if limit else numbers


def _track(number: str, path: Path, genre: str = "", bpm: float | None = None, key: str = "") -> catalogue.Track:
    return catalogue.Track(
        id=f"giantsteps_{number}",
        path=files.relative(path),
        source="giantsteps",
        artist_id=f"giantsteps_{number}",  # the set names no artists: each track stands for its own
        title=f"GiantSteps {number}",
        genre=genre,
        bpm=bpm,
        key=key,
        licence=LICENCE,
        attribution=f"Beatport preview {number} of the GiantSteps data sets (Knees et al., ISMIR 2015), {LICENCE}",
        duration=120.0,
    )


def _repository(name: str, folder: str, settings: EdmSettings) -> Path:
    """Fetch a repository of labels as a zip; returns the folder in it."""
    return _archive(f"{settings.github_url.rstrip('/')}/{name}", folder_of(settings) / "sets" / folder, settings)


def _archive(url: str, folder: Path, settings: EdmSettings) -> Path:
    wanted = downloads.Wanted((url,), folder.parent / f"{folder.name}.zip")
    archives.fetch_and_extract(wanted, folder, delete=True, verify=settings.verify)
    inner = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return inner[0] if len(inner) == 1 and not [path for path in folder.iterdir() if path.is_file()] else folder


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


# Annotations


def convert(dataset: str, settings: EdmSettings) -> tuple[dict[str, Any], list[catalogue.Track]]:
    """Convert the sets into ``outputs/library/<dataset>/annotations/<set>/{yaml,jams}`` and pair them with own audio."""
    root = catalogue.path_of(dataset).parent / "annotations"
    counts, lines, tracks = {}, [], []
    for name in settings.annotations:
        converted = annotation_sets.READERS[name](_set_folder(name, settings))
        annotation_sets.write(converted, root / name)
        mapped, unlabelled = converted.mapped()
        counts[name] = {"tracks": len(converted.tracks), "labelled": mapped, "unlabelled": unlabelled}
        lines += [(name, *line) for line in converted.table()]
        print(f"{name}: {len(converted.tracks)} tracks, {mapped} sections with one of our labels, {unlabelled} without", flush=True)
        if settings.own_audio:
            pairs = annotation_sets.pair(converted, Path(settings.own_audio).expanduser())
            counts[name]["paired"] = len(pairs.found)
            tracks += [_own(name, key, path, converted.tracks[key], root) for key, path in pairs.found.items()]
    report = files.write_text(root / "labels.csv", records.table(("set", "original", "ours", "count"), lines))
    return {"report": report, "counts": counts}, tracks


def _set_folder(name: str, settings: EdmSettings) -> Path:
    url, inner = settings.sets_urls.get(name) or SETS[name][0], SETS[name][1]
    if name in settings.local:
        folder = Path(settings.local[name]).expanduser()
        if not folder.exists():
            raise UserError(f"local.{name}: {folder}: no such file or folder")
    elif url:
        folder = _archive(url, folder_of(settings) / "sets" / name, settings)
    else:
        raise UserError(f"annotations: {name} has no known address; fetch it yourself and give local.{name}=PATH")
    if folder.is_file() or name in ("harmonix", "salami"):
        place = next((path.parent for path in sorted(folder.rglob("metadata.csv"))), folder) if name == "harmonix" else folder
        return place / "dataset" if (place / "dataset" / "segments").is_dir() else place
    if name == "edm98":
        return folder
    found = sorted(path for path in folder.rglob("*") if path.as_posix().endswith(inner) or (inner == ".json" and path.suffix == ".jsonl"))
    if not found:
        raise UserError(f"{folder}: no {inner} of {name} in it; fetch the set again")
    return found[0]


def _own(name: str, key: str, path: Path, track: annotations.Annotation, root: Path) -> catalogue.Track:
    """A person's own recording with an annotation: the YAML names it."""
    placed = track.model_copy(update={"audio": track.audio.model_copy(update={"file": str(path.resolve())})})
    annotation = annotations.write(placed, root / "paired" / f"{name}_{path.stem}.yaml")
    about = track.metadata
    return catalogue.Track(
        id=re.sub(r"[^\w.-]+", "_", f"{name}_{key}"),
        path=files.relative(path.resolve()),
        source=name,
        artist_id=f"own_{about.artist or key}".lower(),
        artist=about.artist,
        title=about.title or path.stem,
        bpm=track.audio.bpm,
        licence="own copy",
        attribution=f'"{about.title or path.stem}" by {about.artist or "unknown"}, own copy; annotation: {about.source}',
        duration=track.audio.duration,
        annotation=files.relative(annotation),
    )


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    from . import command

    return command.run(__doc__, "edm", EdmSettings, download, forecast_rows, arguments)


if __name__ == "__main__":
    from ...errors import run_command

    run_command(main)
