"""EDM: GiantSteps, the annotation sets, pairing, and the union of sources."""

import zipfile

import numpy as np
import published
import pytest
import soundfile
from fault_server import FaultServer

from music_training import files
from music_training.errors import UserError
from music_training.library import annotations, catalogue
from music_training.library.sources import edm, fma, jamendo


def folded(path, folder, root):
    """A folder as a zip with one root, as repositories are served."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, f"{root}/{file.relative_to(folder).as_posix()}")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("edm")
    md5 = published.giantsteps(folder)
    folded(folder / edm.TEMPO_REPOSITORY, folder / "tempo", "giantsteps-tempo-dataset-x")
    folded(folder / edm.KEY_REPOSITORY, folder / "key", "giantsteps-key-dataset-x")
    published.raveform(folder / "raveform.zip", ["Track One", "two", "three"])
    published.jamendo(folder / "jamendo")
    return folder, md5, published.fma(folder)


@pytest.fixture
def server(served):
    with FaultServer(served[0]) as running:
        yield running


def settings(server, served, **given):
    base = {
        "audio": ("giantsteps_tempo", "giantsteps_key"),
        "annotations": (),
        "github_url": server.url,
        "tempo_url": server.url + "backup/",
        "key_url": server.url + "audio.zip",
        "key_md5": served[1],
        "sets_urls": {"raveform": server.url + "raveform.zip"},
    }
    return edm.EdmSettings(**{**base, **given})


def rows_of(dataset):
    return {row.id: row for row in catalogue.read(catalogue.path_of(dataset))}


def test_giantsteps_with_tempo_and_key(server, served):
    edm.download("d", "s", settings(server, served))
    rows = rows_of("d")
    assert len(rows) == 10 and all(files.absolute(row.path).is_file() for row in rows.values())
    assert rows["giantsteps_100"].bpm is None and rows["giantsteps_101"].bpm == 121.0
    assert rows["giantsteps_200"].key == "Eb minor" and rows["giantsteps_101"].genre == "techno"
    assert all(row.licence == "CC BY-SA 4.0" and row.attribution for row in rows.values())
    asked = len(server.requests)
    assert edm.download("d", "s", settings(server, served)).skipped and len(server.requests) == asked


def test_a_preview_that_is_gone_is_reported_and_not_fatal(server, served):
    server.plan["backup/103.LOFI.mp3"] = [{"kind": "status", "code": 404}]
    edm.download("d", "s", settings(server, served))
    assert len(rows_of("d")) == 9
    assert "giantsteps_103" in (catalogue.path_of("d").parent / "skipped.csv").read_text()


def test_the_sources_come_together(server, served):
    both = settings(
        server,
        served,
        audio=("giantsteps_tempo", "fma", "jamendo"),
        fma=fma.FmaSettings(base_url=server.url, sha1=served[2], genres=("Techno", "House")),
        jamendo=jamendo.JamendoSettings(
            base_url=server.url + "jamendo/", tables_url=server.url + "jamendo/data/", mirrors=(), tags=("house",)
        ),
    )
    result = edm.download("d", "s", both).result
    sources = {row.source for row in rows_of("d").values()}
    assert sources == {"giantsteps", "fma_small", "jamendo_raw_30s"} and result["tracks"] == len(rows_of("d"))


def test_annotation_sets_fetched_local_and_paired(server, served, tmp_path, real_data, capsys):
    own = tmp_path / "own"
    own.mkdir()
    soundfile.write(own / "Track One.wav", np.zeros(22050 * 100, "float32"), 22050)
    given = settings(
        server,
        served,
        audio=(),
        annotations=("raveform", "harmonix"),
        local={"harmonix": str(real_data / "harmonixset")},
        own_audio=str(own),
    )
    result = edm.download("d", "s", given).result
    row = rows_of("d")["raveform_Track_One"]
    assert annotations.read(files.absolute(row.annotation)).audio.file == str(own / "Track One.wav")
    assert result["annotations"]["harmonix"]["tracks"] == 86 and result["annotations"]["raveform"]["paired"] == 1
    root = catalogue.path_of("d").parent / "annotations"
    assert len(list((root / "harmonix" / "yaml").iterdir())) == len(list((root / "harmonix" / "jams").iterdir())) == 86
    assert "harmonix,chorus,unlabelled,301" in (root / "labels.csv").read_text()
    assert "harmonix: 86 tracks" in capsys.readouterr().out


def test_a_set_without_an_address_says_what_to_do(server, served):
    with pytest.raises(UserError, match=r"edm_cue has no known address.*local\.edm_cue=PATH"):
        edm.download("d", "s", settings(server, served, audio=(), annotations=("edm_cue",)))


def test_the_command(server, served, capsys):
    options = ["--github-url", server.url, "--tempo-url", server.url + "backup/", "--audio", "giantsteps_tempo", "--annotations", ""]
    assert edm.main([*options, "--limit", "2", "--dataset", "x"]) == 0
    assert len(rows_of("x")) == 2
    assert edm.main([*options, "--dry-run"]) == 0
    assert "GiantSteps tempo, 664 tracks" in capsys.readouterr().out
