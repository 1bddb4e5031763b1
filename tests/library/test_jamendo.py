"""MTG-Jamendo: tables, selection by tag, tar by tar, checksums."""

import published
import pytest
from fault_server import FaultServer

from music_training import files
from music_training.errors import UserError
from music_training.library import catalogue, downloads, manifests
from music_training.library.sources import jamendo


@pytest.fixture
def server(tmp_path):
    (tmp_path / "served").mkdir()
    published.jamendo(tmp_path / "served")
    with FaultServer(tmp_path / "served") as running:
        yield running


def settings(server, **given):
    return jamendo.JamendoSettings(base_url=server.url, tables_url=server.url + "data/", mirrors=(), **given)


def rows_of(dataset):
    return catalogue.read(catalogue.path_of(dataset))


def test_all_tars_one_after_the_other(server):
    jamendo.download("d", "s", settings(server))
    rows = rows_of("d")
    assert len(rows) == 24
    assert all(files.absolute(row.path).name.endswith(".low.mp3") and files.absolute(row.path).is_file() for row in rows)
    assert not list(files.outputs_root().rglob("*.tar"))
    assert all("jamendo.com/track/" in row.attribution and row.licence for row in rows)
    asked = len(server.requests)
    assert jamendo.download("d", "s", settings(server)).skipped
    assert len(server.requests) == asked


def test_selection_needs_only_its_tars(server):
    jamendo.download("d", "s", settings(server, tags=("house",), tars=2, limit=3))
    rows = rows_of("d")
    assert len(rows) == 3 and all(row.genre == "house" and row.moods == ("happy",) for row in rows)
    assert [name for name, _ in server.requests if name.endswith(".tar")] == ["raw_30s/audio-low/raw_30s_audio-low-01.tar"]
    assert rows[0].valence == pytest.approx(jamendo.read_moods()["happy"][0], abs=1e-4) and rows[0].arousal is not None
    with pytest.raises(UserError, match="'hause' is no tag.*did you mean 'house'"):
        jamendo.download("e", "s", settings(server, tags=("hause",)))


def test_a_stopped_run_does_not_fetch_finished_tars_again(server):
    server.plan["raw_30s/audio-low/raw_30s_audio-low-02.tar"] = [{"kind": "status", "code": 404}]
    with pytest.raises(downloads.DownloadError, match="404"):
        jamendo.download("d", "s", settings(server))
    jamendo.download("d", "s", settings(server))
    tars = [name[-6:-4] for name, _ in server.requests if name.endswith(".tar")]
    assert tars.count("00") == tars.count("01") == 1 and len(rows_of("d")) == 24


def test_faults_and_a_mirror(server, tmp_path):
    given = settings(server)
    broken = jamendo.JamendoSettings(**{**given.model_dump(), "base_url": server.url + "nowhere/", "mirrors": (server.url,)})
    server.plan["raw_30s/audio-low/raw_30s_audio-low-00.tar"] = [{"kind": "close", "at": 9000}, {"kind": "corrupt", "at": 5}]
    jamendo.download("d", "s", broken)
    assert len(rows_of("d")) == 24


def test_single_tracks(server, tmp_path):
    published.jamendo(tmp_path / "high", type_="audio")
    import tarfile

    for tar in (tmp_path / "high" / "raw_30s" / "audio").glob("*.tar"):
        with tarfile.open(tar) as archive:
            archive.extractall(tar.parent, filter="data")
    with FaultServer(tmp_path / "high") as high:
        jamendo.download("d", "s", settings(high, audio="audio", mode="tracks", limit=5))
    assert len(rows_of("d")) == 5


def test_bit_identical_tracks_are_dropped_with_their_reason(server):
    rows = jamendo.read_table(_table(server))
    hashes = {jamendo.member_of(row, "audio-low"): "same" for row in rows[:2]}
    kept, skipped = jamendo.select(rows, hashes, settings(server))
    assert len(kept) == 23 and len(skipped) == 1 and "bit-identical to" in next(iter(skipped.values()))


def _table(server):
    return server.root / "data" / "raw_30s.tsv"


def test_a_bad_row_is_named(server):
    path = _table(server)
    path.write_text(path.read_text() + "track_1\tartist_2\n")
    with pytest.raises(UserError, match=r"raw_30s\.tsv:26: not a row"):
        jamendo.read_table(path)


def test_real_tables_parse_completely(real_data):
    folder = real_data / "mtg_jamendo" / "data"
    tables = sorted((folder / "splits").rglob("*.tsv"))
    assert tables
    for path in tables:
        rows = jamendo.read_table(path)
        assert len(rows) == len(path.read_text().splitlines()) - 1
        assert all(row.path == f"{row.shelf}/{row.number}.mp3" and row.tags for row in rows)
    moods = jamendo.read_table(folder / "splits" / "split-0" / "autotagging_moodtheme-validation.tsv")
    assert len(moods) == 3802
    listed = {tag for row in moods for tag in row.named("mood/theme")}
    assert listed - set(jamendo.read_moods()) <= {"ambiental", "horror", "mellow"}
    for path in (folder / "download").glob("*.txt"):
        listing = jamendo.remote.parse_checksums(path.read_text())
        assert len(listing) == len(path.read_text().splitlines()) and all(len(value) == 64 for value in listing.values())


def test_artists_of_the_real_table_stand_on_one_side(real_data):
    rows = jamendo.read_table(real_data / "mtg_jamendo" / "data" / "splits" / "split-0" / "autotagging_moodtheme-validation.tsv")
    tracks = [jamendo.track_of(row, jamendo.JamendoSettings(), {}, {}) for row in rows]
    parts = [{"path": track.path, "track": track.id, "artist": track.artist_id, "duration": track.duration} for track in tracks]
    rule, place = manifests.divide(parts, {"train": 0.8, "valid": 0.1, "test": 0.1}, seed=0)
    sides = {split: {part["artist"] for part in parts if place[part["path"]] == split} for split in ("train", "valid", "test")}
    assert rule == "artist" and all(sides.values())
    assert sum(map(len, sides.values())) == len(set.union(*sides.values())) == len({row.artist for row in rows})
