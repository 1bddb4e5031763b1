"""Small archives and tables in the exact published layouts, built from what is published alone; imports nothing of the product."""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import soundfile

TRACK_COLUMNS = {
    "album": "comments date_created date_released engineer favorites id information listens producer tags title tracks type",
    "artist": "active_year_begin active_year_end associated_labels bio comments date_created favorites id latitude location longitude "
    "members name related_projects tags website wikipedia_page",
    "set": "split subset",
    "track": "bit_rate comments composer date_created date_recorded duration favorites genre_top genres genres_all information interest "
    "language_code license listens lyricist number publisher tags title",
}
GENRES = """genre_id,#tracks,parent,title,top_level
15,34413,0,Electronic,15
21,8389,0,Hip-Hop,21
181,2140,15,Techno,15
182,1482,15,House,15
401,189,181,Bigbeat,15
337,500,15,Drum & Bass,15
"""
BROKEN_SMALL = (98565, 98567, 98569, 99134, 108925, 133297)


@functools.cache
def mp3(seed: int, seconds: float = 3.0, rate: int = 44100) -> bytes:
    """A short stereo mp3 of two tones and noise."""
    random = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    tone = sum(0.2 * np.sin(2 * np.pi * pitch * time) for pitch in random.uniform(80, 2000, 2))
    stereo = np.stack([tone, tone], axis=1) + 0.02 * random.standard_normal((len(time), 2))
    file = io.BytesIO()
    soundfile.write(file, stereo.astype("float32"), rate, format="MP3")
    return file.getvalue()


def sha1(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def zipped(path: Path, members: dict[str, bytes]) -> str:
    """A zip as FMA has it: bzip2, no folder entries, mode 0444; returns its SHA-1."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name, (2017, 4, 1, 12, 0, 0))
            info.compress_type, info.external_attr, info.create_system = zipfile.ZIP_BZIP2, 0o100444 << 16, 3
            archive.writestr(info, content)
    return sha1(path.read_bytes())


def fma_row(number: int, artist: int, genres: list[int], subset: str, licence: str, seconds: int, top: str = "") -> dict:
    return {
        ("track", "title"): f"Title {number}",
        ("artist", "id"): artist,
        ("artist", "name"): f"Artist, the {artist}th",
        ("album", "title"): "Album\nin two lines",
        ("set", "subset"): subset,
        ("set", "split"): "training",
        ("track", "duration"): seconds,
        ("track", "genre_top"): top,
        ("track", "genres"): str(genres),
        ("track", "genres_all"): str(sorted({*genres, 15})),
        ("track", "license"): licence,
        ("track", "tags"): "['a tag']",
        ("track", "bit_rate"): 256000,
    }


def fma(folder: Path, subset: str = "small", numbers: range = range(2, 26), real_clip: Path | None = None) -> dict[str, str]:
    """``fma_metadata.zip`` and ``fma_<subset>.zip``; the six broken tracks are in both; returns name to SHA-1."""
    columns = [(group, name) for group, names in TRACK_COLUMNS.items() for name in names.split()]
    assert len(columns) == 52
    rows = {}
    for number in (*numbers, *BROKEN_SMALL):
        genre = [182, 181, 401, 337][number % 4]
        licence = ["Attribution", "Attribution-NonCommercial 3.0 International", "Attribution-ShareAlike 3.0", ""][number % 4]
        rows[number] = fma_row(number, number // 3, [genre], "small", licence, 100 + number, "Electronic" if number % 2 else "")
    rows[900] = fma_row(900, 300, [182], "large", "Attribution", 200)  # of a larger subset: not in this archive
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["", *(group for group, _ in columns)])
    writer.writerow(["", *(name for _, name in columns)])
    writer.writerow(["track_id", *[""] * 52])
    for number, row in sorted(rows.items()):
        writer.writerow([number, *(row.get(column, "") for column in columns)])
    raw = "track_id,license_title,license_url,track_duration\n"
    raw += "".join(f"{n},x,http://creativecommons.org/licenses/by/{n}/,02:48\n" for n in sorted(rows))
    metadata = {"README.txt": "x", "checksums": "x", "tracks.csv": text.getvalue(), "genres.csv": GENRES, "raw_tracks.csv": raw}
    audio = {f"{n // 1000:03d}/{n:06d}.mp3": mp3(n) for n in numbers}
    if real_clip:
        audio["000/000002.mp3"] = real_clip.read_bytes()
    audio |= {f"{n // 1000:03d}/{n:06d}.mp3": b"" for n in BROKEN_SMALL}
    listing = "".join(f"{sha1(content)}  {name}\n" for name, content in sorted(audio.items()))
    members = {"README.txt": b"readme", "checksums": listing.encode(), **audio}
    return {
        "fma_metadata.zip": zipped(folder / "fma_metadata.zip", {f"fma_metadata/{k}": v.encode() for k, v in metadata.items()}),
        f"fma_{subset}.zip": zipped(folder / f"fma_{subset}.zip", {f"fma_{subset}/{k}": v for k, v in members.items()}),
    }


JAMENDO_HEADER = "TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS\n"


def jamendo(folder: Path, dataset: str = "raw_30s", type_: str = "audio-low", numbers: range = range(1000, 1024), tars: int = 4) -> None:
    """TSV, checksum lists and tars (``tars`` of the hundred) below ``folder``, as the repository and the server have them."""
    audio = folder / dataset / type_
    audio.mkdir(parents=True)
    data = folder / "data" / "download"
    data.mkdir(parents=True)
    low = ".low" if type_ == "audio-low" else ""
    rows, tracks, hashes = [], [], []
    contents: dict[int, dict[str, bytes]] = {}
    for number in numbers:
        shelf = number % 100
        if shelf % 100 >= tars:
            shelf, number = shelf % tars, number // 100 * 100 + shelf % tars + 100 * shelf
        tags = ["genre---house", "mood/theme---happy", "instrument---piano"] if number % 2 else ["genre---ambient"]
        rows.append(
            f"track_{number:07d}\tartist_{number // 200:06d}\talbum_{number // 200:06d}\t{shelf:02d}/{number}.mp3\t30.0\t" + "\t".join(tags)
        )
        contents.setdefault(shelf, {})[f"{shelf:02d}/{number}{low}.mp3"] = mp3(number, 2.0)
    for shelf, members in sorted(contents.items()):
        name = f"{dataset}_{type_}-{shelf:02d}.tar"
        with tarfile.open(audio / name, "w") as archive:
            first = tarfile.TarInfo(f"{shelf:02d}")
            first.type, first.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(first)
            for member, content in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
                tracks.append(f"{sha256(content)} {member}")
        hashes.append(f"{sha256((audio / name).read_bytes())} {name}")
    (folder / "data" / f"{dataset}.tsv").write_text(JAMENDO_HEADER + "\n".join(rows) + "\n")
    (data / f"{dataset}_{type_}_sha256_tars.txt").write_text("\n".join(hashes) + "\n")
    (data / f"{dataset}_{type_}_sha256_tracks.txt").write_text("\n".join(tracks) + "\n")


def giantsteps(folder: Path, tempo: range = range(100, 106), key: range = range(200, 204)) -> str:
    """GiantSteps tempo (single mp3s, md5 and labels) and key (one zip and labels); returns the md5 of ``audio.zip``."""
    for name in (
        "backup",
        "tempo/md5",
        "tempo/annotations_v2/tempo",
        "tempo/annotations/genre",
        "key/annotations/key",
        "key/annotations/genre",
        "key/md5",
    ):
        (folder / name).mkdir(parents=True)
    for number in tempo:
        content = mp3(number)
        (folder / f"backup/{number}.LOFI.mp3").write_bytes(content)
        (folder / f"tempo/md5/{number}.LOFI.md5").write_text(hashlib.md5(content).hexdigest() + "\n")
        (folder / f"tempo/annotations_v2/tempo/{number}.LOFI.bpm").write_text("0.0" if number == tempo[0] else f"{120 + number % 20}.0")
        (folder / f"tempo/annotations/genre/{number}.LOFI.genre").write_text("techno")
    members = {f"audio/{number}.LOFI.mp3": mp3(number) for number in key}
    for number in key:
        (folder / f"key/annotations/key/{number}.LOFI.key").write_text("Eb minor")
        (folder / f"key/annotations/genre/{number}.LOFI.genre").write_text("house")
        (folder / f"key/md5/{number}.LOFI.md5").write_text(hashlib.md5(members[f"audio/{number}.LOFI.mp3"]).hexdigest() + "\n")
    with zipfile.ZipFile(folder / "audio.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return hashlib.md5((folder / "audio.zip").read_bytes()).hexdigest()


def raveform(path: Path, names: list[str]) -> str:
    """``structures/segments.json`` in a zip; returns its SHA-1."""
    tracks = {
        name: {
            "bpm": 126.0,
            "genre": "techno",
            "fold": 0,
            "sections": [
                {"name": "intro", "start": 0.0, "end": 30.0},
                {"name": "buildup", "start": 30.0, "end": 45.0},
                {"name": "drop", "start": 45.0, "end": 75.0},
                {"name": "cooldown", "start": 75.0, "end": 90.0},
                {"name": "altoutro", "start": 90.0, "end": 100.0},
            ],
        }
        for name in names
    }
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("structures/segments.json", json.dumps(tracks))
    return sha1(path.read_bytes())
