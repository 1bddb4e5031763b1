"""FMA: selection, archive or picking, broken tracks, attribution, reruns."""

import csv
import io
import json
import os
import subprocess
import sys

import published
import pytest
from fault_server import FaultServer

from music_training import files
from music_training.errors import UserError
from music_training.library import catalogue, downloads, manifests, segments
from music_training.library.sources import fma


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fma")
    return folder, published.fma(folder)


@pytest.fixture
def server(served):
    with FaultServer(served[0]) as running:
        yield running


def settings(server, served, **given):
    return fma.FmaSettings(base_url=server.url, sha1=served[1], **given)


def rows_of(dataset):
    return catalogue.read(catalogue.path_of(dataset))


@pytest.mark.parametrize("mode", ["archive", "pick"])
def test_all_of_small_but_the_broken_six(server, served, mode):
    result = fma.download("d", "s", settings(server, served, mode=mode)).result
    rows = rows_of("d")
    assert [row.id for row in rows] == [f"fma_{number:06d}" for number in range(2, 26)]
    assert all(files.absolute(row.path).is_file() and row.artist_id and row.attribution and row.licence for row in rows)
    skipped = (catalogue.path_of("d").parent / "skipped.csv").read_text()
    assert all(str(number) in skipped for number in published.BROKEN_SMALL) and result["tracks"] == 24
    assert not any(
        str(number) in path.name for number in published.BROKEN_SMALL for path in fma.folder_of(fma.FmaSettings()).rglob("*.mp3")
    )
    assert not (files.outputs_root() / "downloads" / "fma" / "fma_small.zip").exists()


def test_a_second_run_asks_nothing_and_writes_nothing(server, served):
    fma.download("d", "s", settings(server, served))
    before = {path: path.stat().st_mtime_ns for path in files.outputs_root().rglob("*")}
    asked = len(server.requests)
    assert fma.download("d", "s", settings(server, served)).skipped
    assert len(server.requests) == asked
    assert {path: path.stat().st_mtime_ns for path in files.outputs_root().rglob("*")} == before


def test_verify_finds_and_replaces_a_spoilt_clip(server, served):
    fma.download("d", "s", settings(server, served, limit=3))
    path = files.absolute(rows_of("d")[0].path)
    content = path.read_bytes()
    path.write_bytes(b"x" + content[1:])
    with pytest.raises(downloads.DownloadError, match="1 files differ from the SHA-1 list"):
        fma.download("d", "s", settings(server, served, limit=3, verify=True))
    fma.download("d", "s", settings(server, served, limit=3, verify=True))
    assert path.read_bytes() == content


def test_a_few_are_picked_without_the_archive(server, served):
    fma.download("d", "s", settings(server, served, limit=4, seed=3))
    assert len(rows_of("d")) == 4
    assert not any(asked is None and "small" in name for name, asked in server.requests)


def test_a_server_without_ranges_gives_the_same(server, served):
    fma.download("a", "s", settings(server, served, limit=4, seed=3))
    first = catalogue.path_of("a").read_bytes()
    server.ranges = False
    fma.download("b", "s", settings(server, served, limit=4, seed=3, dest=str(files.outputs_root() / "other")))
    assert [row.id for row in rows_of("b")] == [row.id for row in rows_of("a")]
    assert catalogue.path_of("a").read_bytes() == first


def test_selection_by_genre_licence_length_and_count(server, served):
    rows, genres = fma.metadata(settings(server, served))

    def chosen(**given):
        return {row.number for row in fma.select(rows, genres, settings(server, served, **given))[0]}

    everything = set(range(2, 26))
    assert chosen() == everything
    assert chosen(subset="large") == everything | {900}  # subsets are cumulative
    assert chosen(genres=("House",)) == chosen(genres=(182,)) == {n for n in everything if n % 4 == 0}
    assert chosen(genres=("techno",)) == {n for n in everything if n % 4 in (1, 2)}  # with Bigbeat below it
    assert chosen(licences=("commercial",)) == {n for n in everything if n % 4 in (0, 2)}
    assert chosen(licences=("attribution",)) == {n for n in everything if n % 4 == 0}
    assert chosen(min_seconds=105, max_seconds=110) == {n for n in everything if 5 <= n <= 10}
    few = chosen(limit=5, seed=1)
    assert len(few) == 5 and few == chosen(limit=5, seed=1) != chosen(limit=5, seed=2) and few < chosen(limit=9, seed=1)
    with pytest.raises(UserError, match="'Hause' is no genre of FMA; did you mean 'House'"):
        chosen(genres=("Hause",))
    with pytest.raises(UserError, match="no track is left"):
        fma.download("d", "s", settings(server, served, min_seconds=10_000))


def test_attribution_names_everyone(server, served):
    fma.download("d", "s", settings(server, served, limit=6))
    table = list(csv.DictReader(io.StringIO((catalogue.path_of("d").parent / "ATTRIBUTION.csv").read_text())))
    assert len(table) == 6 and all(row["artist"] and row["title"] in row["attribution"] for row in table)
    assert all("creativecommons.org" in row["attribution"] for row in table)


def test_real_tables_parse(real_data):
    rows = fma.read_tracks(real_data / "fma" / "fma_metadata" / "tracks.head5.csv")
    assert [(row.number, row.artist_id, row.artist) for row in rows][:2] == [(2, "1", "AWOL"), (3, "1", "AWOL")]
    assert rows[4].genres == (17, 10, 76, 103) and rows[4].genre == ""
    genres = fma.read_genres(real_data / "fma" / "fma_metadata" / "genres.csv")
    assert len(genres) == 163
    assert fma.genre_ids(["Electronic"], genres) >= fma.genre_ids([181, 182, 296, 468, 184, 337, 185, 695, 401], genres)
    assert fma.genre_ids(fma.EDM_GENRES, genres) >= {181, 182, 296, 468, 184, 337, 185, 695, 401, 542}


def test_the_command(server, served, capsys):
    sha1 = "{" + ", ".join(f"{name}: {value}" for name, value in served[1].items()) + "}"
    options = ["--base-url", server.url, "--sha1", sha1, "--genres", "House,337", "--limit", "5", "--dataset", "x"]
    assert fma.main(["--dry-run", *options]) == 0
    assert "5 tracks" in capsys.readouterr().out and not server.requests
    assert fma.main(options) == 0
    assert len(rows_of("x")) == 5 and {row.genre for row in rows_of("x")} <= {"House", "Drum & Bass", "Electronic"}


def test_faults_under_way_change_nothing(server, served):
    fma.download("a", "s", settings(server, served, mode="archive", dest=str(files.outputs_root() / "one")))
    server.plan = {
        "fma_metadata.zip": [{"kind": "close", "at": 500}, {"kind": "status", "code": 503, "retry_after": 0}],
        "fma_small.zip": [{"kind": "drop", "at": 100_000}, {"kind": "corrupt", "at": 7}, {"kind": "ignore_range"}],
    }
    fma.download("b", "s", settings(server, served, mode="archive", dest=str(files.outputs_root() / "two")))
    one, two = (
        {path.relative_to(files.outputs_root() / name): path.read_bytes() for path in (files.outputs_root() / name).rglob("*.mp3")}
        for name in ("one", "two")
    )
    assert one == two and len(one) == 24


def test_the_real_clip_gives_three_segments(real_data, tmp_path):
    (tmp_path / "served").mkdir()
    digests = published.fma(tmp_path / "served", numbers=range(2, 3), real_clip=real_data / "fma" / "fma_small" / "000" / "000002.mp3")
    with FaultServer(tmp_path / "served") as server:
        fma.download("real", "s", fma.FmaSettings(base_url=server.url, sha1=digests))
    segments.segment("real", "s", segments.SegmentSettings(workers=1))
    rows = manifests.read_lines(manifests.index_of("real"))
    assert [round(row["duration"], 3) for row in rows] == [10.0, 10.0, 9.977]


FETCHER = """
import json, sys
from music_training.library.sources import fma
fma.download("d", "s", fma.FmaSettings(**json.loads(sys.argv[1])))
"""


@pytest.mark.long
def test_killed_again_and_again_the_end_state_is_the_same(tmp_path, monkeypatch):
    (tmp_path / "served").mkdir()
    digests = published.fma(tmp_path / "served", numbers=range(2, 202))

    def tree(root):
        return {
            p.relative_to(root): p.read_bytes()
            for p in root.rglob("*")
            if p.is_file() and "." not in str(p.relative_to(root))[0] and ".stages" not in p.parts
        }

    def run(root, kill):
        given = json.dumps({"base_url": server.url, "sha1": digests, "mode": "archive"})
        process = subprocess.Popen(
            [sys.executable, "-c", FETCHER, given], env={**os.environ, "MUSIC_OUTPUTS": str(root)}, stdout=subprocess.DEVNULL
        )
        try:
            return process.wait(kill)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return None

    with FaultServer(tmp_path / "served") as server:
        assert run(tmp_path / "calm", 120) == 0
        kills, patience = 0, 1.0
        while True:
            server.plan["fma_small.zip"] = [{"kind": "slow", "delay": 0.02, "piece": 1 << 15}]
            if run(tmp_path / "killed", patience) == 0:
                break
            kills, patience = kills + 1, patience + 0.3
    drop = {".downloads.jsonl"}
    calm, killed = (
        {k: v for k, v in tree(tmp_path / name).items() if k.name not in drop and "seconds" not in k.name} for name in ("calm", "killed")
    )
    assert kills >= 3 and calm == killed and sum(str(path).endswith(".mp3") for path in calm) == 200
