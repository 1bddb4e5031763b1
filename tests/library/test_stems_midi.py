"""Stems and MIDI from one table of archives."""

import hashlib
import tarfile
import zipfile

import pytest
import yaml
from fault_server import FaultServer

from music_training import files
from music_training.errors import UserError
from music_training.library import catalogue, downloads
from music_training.library.sources import stems_midi

SONGS = [
    f"{part}/{song}/{stem}.wav"
    for part in ("train", "test")
    for song in ("A - One", "B - Two")
    for stem in ("mixture", "drums", "bass", "other", "vocals")
]
MIDI = b"MThd\x00\x00\x00\x06\x00\x01\x00\x01\x01\xe0MTrk\x00\x00\x00\x04\x00\xff\x2f\x00"


@pytest.fixture
def server(tmp_path):
    root = tmp_path / "served"
    root.mkdir()
    layouts = {
        "musdb18hq": ("musdb", "musdb18hq.zip", SONGS),
        "emopia": (
            "emopia",
            "EMOPIA_2.2.zip",
            ["EMOPIA_2.2/midis/Q1_abc_d_0.mid", "EMOPIA_2.2/midis/Q3_xyz_2.mid", "EMOPIA_2.2/label.csv"],
        ),
        "groove": (
            "groove",
            "groove.zip",
            ["groove/drummer1/session1/1_funk-fast_120_beat_4-4.mid", "groove/drummer1/session1/1_funk-fast_120_beat_4-4.wav"],
        ),
        "stemgmd": (
            "stemgmd",
            "part1.zip",
            ["kit/take1/mixture.wav", "kit/take1/kick.wav", "kit/take1/hh_closed.wav", "kit/take1/hh_open.wav"],
        ),
        "lakh": ("midi", "lmd.tar.gz", ["lmd/A/B/x.mid", "lmd/A/C/y.mid"]),
    }
    table = {}
    for name, (layout, file, members) in layouts.items():
        if file.endswith("zip"):
            with zipfile.ZipFile(root / file, "w") as archive:
                for member in members:
                    archive.writestr(member, MIDI)
        else:
            (tmp_path / "x.mid").write_bytes(MIDI)
            with tarfile.open(root / file, "w:gz") as archive:
                for member in members:
                    archive.add(tmp_path / "x.mid", member)
        content = (root / file).read_bytes()
        row = {"url": "http://127.0.0.1:9/" + file, "licence": "CC BY", "layout": layout, "bytes": len(content)}
        table[name] = {**row, "md5": hashlib.md5(content).hexdigest()}
    table["stemgmd"] = {"url": "http://127.0.0.1:9/", "licence": "CC BY", "layout": "stemgmd", "parts": []}
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(table))
    with FaultServer(root) as running:
        running.table = str(tmp_path / "table.yaml")
        yield running


def settings(server, *archives, **given):
    return stems_midi.StemsMidiSettings(archives=archives, table=server.table, base_url=server.url, **given)


def rows_of(dataset):
    return {row.id: row for row in catalogue.read(catalogue.path_of(dataset))}


def test_every_layout_becomes_rows(server):
    given = settings(server, "musdb18hq", "emopia", "groove", "stemgmd", "lakh", parts={"stemgmd": ("part1.zip",)})
    stems_midi.download("d", "s", given)
    rows = rows_of("d")
    song = rows["musdb18hq_A_-_One"]
    assert set(song.stems) == {"drums", "bass", "other", "vocals"} and song.artist == "A"
    assert all(files.absolute(path).is_file() for path in (song.path, *song.stems.values()))
    happy, sad = rows["emopia_Q1_abc_d_0"], rows["emopia_Q3_xyz_2"]
    assert happy.valence > 0 < happy.arousal and sad.valence < 0 > sad.arousal and files.absolute(happy.midi).is_file()
    groove = next(row for row in rows.values() if row.source == "groove")
    assert (groove.bpm, groove.genre, groove.artist_id) == (120.0, "funk", "drummer1") and groove.path.endswith(".wav")
    drums = next(row for row in rows.values() if row.source == "stemgmd")
    assert set(drums.stems) == {"kick", "hh_closed", "hh_open"}
    assert sum(row.source == "lakh" for row in rows.values()) == 2
    assert not list(files.outputs_root().rglob("*.zip")) and not list(files.outputs_root().rglob("*.tar.gz"))
    asked = len(server.requests)
    assert stems_midi.download("d", "s", given).skipped and len(server.requests) == asked


def test_a_wrong_archive_is_refused(server):
    (server.root / "EMOPIA_2.2.zip").write_bytes(b"x" * (server.root / "EMOPIA_2.2.zip").stat().st_size)
    with pytest.raises(downloads.DownloadError, match="md5 is"):
        stems_midi.download("d", "s", settings(server, "emopia"))


def test_mistakes_name_the_way_out(server):
    with pytest.raises(UserError, match=r"parts\.stemgmd=\[FILE"):
        stems_midi.download("d", "s", settings(server, "stemgmd"))
    with pytest.raises(UserError, match="'emopa' is not in table.yaml; did you mean 'emopia'"):
        stems_midi.download("d", "s", settings(server, "emopa"))


def test_the_published_table_is_sound(capsys):
    everything = stems_midi.StemsMidiSettings(archives=tuple(stems_midi.config.read_yaml(stems_midi.TABLE)))
    rows = stems_midi.table(everything)
    assert all(row.licence and row.url.startswith("http") for row in rows.values())
    assert all(len(row.sha256) in (0, 64) and len(row.md5) in (0, 32) for row in rows.values())
    assert stems_midi.main(["--dry-run"]) == 0
    assert "musdb18hq: 22.66 GB to fetch" in capsys.readouterr().out
