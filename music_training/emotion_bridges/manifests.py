"""JSONL manifests of both models: rows ``{"audio_path", "midi_path", "emotion"}`` with what is known beside.

``spectocloud_{train,val}.jsonl`` and ``midi_{train,val}.jsonl``. Paths are relative to the outputs root where they lie
below it, else absolute. Optional keys: ``id``, ``artist``, ``start`` (s, where the clip of a precomputed cloud
begins), ``target_pointcloud_path``, ``key`` (``F# minor``) and ``synthetic``.
"""

from __future__ import annotations

import csv
import io
import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy

from .. import config, files, stages
from ..errors import UserError
from ..library import catalogue
from . import emotions, lexicon, pairs

NAMES = ("spectocloud_train", "spectocloud_val", "midi_train", "midi_val")


@dataclass(frozen=True)
class Entry:
    """A row: paths as in the manifest (see :func:`music_training.files.absolute`), ``emotion`` of 3 or 64 numbers."""

    emotion: list[float]
    audio_path: str = ""
    midi_path: str = ""
    id: str = ""
    artist: str = ""
    key: str = ""
    start: float = 0.0
    target_pointcloud_path: str = ""
    synthetic: bool = False


class ManifestSettings(config.Settings):
    """What building manifests is told; see ``scripts/build_manifests.py --help``."""

    audio_root: str
    midi_root: str
    out_dir: str | None = None
    val_split: float = 0.05
    seed: int = 42
    emotions: str | None = None
    norms: str | None = None
    keep_unlabelled: bool = False
    generate_clouds: bool = False
    clouds_dir: str | None = None
    workers: int = 0


def folder(out_dir: str | Path | None = None) -> Path:
    """Where manifests lie: ``outputs/data/manifests``, or the folder that a person names."""
    return Path(out_dir).expanduser().resolve() if out_dir else files.outputs_root() / "data" / "manifests"


def build(settings: ManifestSettings, *, scope: str = "manifests", force: bool = False) -> stages.StageResult:
    """Find the pairs of two folders and write the four manifests, ``report.csv`` and, by choice, clouds: the stage ``manifests``."""
    if not 0 <= settings.val_split < 1:
        raise UserError(f"--val-split {settings.val_split:g}: a share of the pairs, from 0 to below 1")
    target = folder(settings.out_dir)
    audio_root, midi_root = (Path(text).expanduser().resolve() for text in (settings.audio_root, settings.midi_root))
    extra = [Path(text).expanduser() for text in (settings.emotions, settings.norms) if text]
    params = {**settings.model_dump(exclude={"workers"}), "target": files.relative(target)}

    def make(draft: stages.Draft) -> stages.Made:
        from .. import parallel

        workers = settings.workers or parallel.cores()
        found, report = pairs.find(
            audio_root, midi_root, overrides=pairs.read_overrides(Path(settings.emotions) if settings.emotions else None),
            norms=lexicon.read_norms(Path(settings.norms)) if settings.norms else None,
            keep_unlabelled=settings.keep_unlabelled, workers=workers,
        )  # fmt: skip
        entries = [Entry(pair.emotion, files.relative(pair.audio), files.relative(pair.midi), pair.key) for pair in found]
        if settings.generate_clouds:
            from .spectocloud import clouds

            entries = clouds.precompute(entries, settings.clouds_dir, workers=workers)
        train, val = divide(entries, [pair.group for pair in found], settings.val_split, settings.seed)
        outputs = write_all(target, train, val)
        outputs.append(_write_report(target / "report.csv", found, report))
        summary = {"pairs": report.pairs, "train": len(train), "val": len(val), "emotion from": dict(report.sources)}
        return stages.Made(outputs, {**summary, "left out": report.counts(), "folder": str(target)})

    return stages.run("manifests", make, scope=scope, params=params, inputs=[audio_root, midi_root, *extra], force=force)


def divide(items: Sequence, groups: Sequence[str], share: float, seed: int) -> tuple[list, list]:
    """Training and validation items; what is of one group (an artist, the same score) stays on one side.

    Groups go to the validation side in the order of a hash of seed and group until they hold ``share`` of the items;
    at least one goes there where there are two, unless the share is 0.
    """
    sizes: dict[str, int] = {}
    for group in groups:
        sizes[group] = sizes.get(group, 0) + 1
    held: set[str] = set()
    count = 0
    for group in sorted(sizes, key=lambda name: (zlib.crc32(f"{seed}{name}".encode()), name)):
        enough = count >= share * len(items) if held else share == 0
        if enough or len(held) + 1 >= len(sizes):
            break
        held.add(group)
        count += sizes[group]
    sides: tuple[list, list] = ([], [])
    for item, group in zip(items, groups, strict=True):
        sides[group in held].append(item)
    return sides


def write_all(target: Path, train: Iterable[Entry], val: Iterable[Entry]) -> list[Path]:
    """Write the four manifests of a folder; rows without audio go into the MIDI manifests only, and the other way round."""
    written = []
    for part, entries in (("train", list(train)), ("val", list(val))):
        written.append(write(target / f"spectocloud_{part}.jsonl", (entry for entry in entries if entry.audio_path)))
        bare = [{**asdict(entry), "audio_path": "", "target_pointcloud_path": "", "start": 0.0} for entry in entries if entry.midi_path]
        written.append(write(target / f"midi_{part}.jsonl", (Entry(**row) for row in bare)))
    return written


def write(path: Path, entries: Iterable[Entry]) -> Path:
    """Write a manifest (atomically); keys that say nothing are left out."""
    rows = ({key: value for key, value in asdict(entry).items() if value or key == "emotion"} for entry in entries)
    return files.write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read(path: Path, needs: str = "") -> list[Entry]:
    """Read a manifest; every fault of it in one UserError, with line numbers. ``needs`` is a key that each row must have."""
    entries, faults = [], []
    known = set(Entry.__dataclass_fields__)
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
            row["emotion"] = emotions.checked(row["emotion"], where)
            if needs and not row.get(needs):
                raise UserError(f"{where}: {needs} is missing")
            entries.append(Entry(**{key: value for key, value in row.items() if key in known}))
        except UserError as error:
            faults.append(str(error))
        except (ValueError, KeyError, TypeError):
            faults.append(f"{where}: not a manifest row: it needs an emotion and paths")
    if faults:
        raise config.ConfigError(faults[:20])
    return entries


def from_catalogue(dataset: str) -> list[Entry]:
    """The tracks of a library that have an emotion, with their audio, MIDI, artist and key."""
    rows = [track for track in catalogue.read(catalogue.path_of(dataset)) if track.valence is not None and track.arousal is not None]
    if not rows:
        raise UserError(f"{dataset}: no track of this library has valence and arousal")
    return [
        Entry(
            [row.valence, row.arousal, emotions.strength(row.valence, row.arousal) if row.intensity is None else row.intensity],
            row.path, row.midi, row.id, row.artist_id, row.key, synthetic=row.synthetic,
        )
        for row in rows
    ]  # fmt: skip


def table(entries: Sequence[Entry]):
    """What the rows hold, as a table: files, artists, and the spread of the emotion."""
    import pandas

    felt = numpy.array([entry.emotion[:3] for entry in entries])
    spread = {name: f"{felt[:, i].min():.2f} ... {felt[:, i].max():.2f}" for i, name in enumerate(emotions.DIMENSIONS)}
    counts = {
        "rows": len(entries),
        "artists": len({entry.artist for entry in entries}),
        "with audio": sum(bool(e.audio_path) for e in entries),
    }
    return pandas.DataFrame({**counts, **spread}, index=["manifests"]).T


def _write_report(path: Path, found: Sequence[pairs.Pair], report: pairs.Report) -> Path:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file", "state", "about"))
    writer.writerows((str(pair.audio), "used", pair.source) for pair in found)
    writer.writerows((name, "left out", reason) for name, reason in report.left_out)
    return files.write_text(path, text.getvalue())
