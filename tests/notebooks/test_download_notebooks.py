"""Notebooks 02a to 02d and the batch script, against a local server with archives in the published layouts."""

import json
import os
import subprocess
import sys

import papermill
import pytest

from music_training import files
from music_training.library import catalogue

sys.path.insert(0, str(files.REPOSITORY / "tests" / "library"))

import published
from fault_server import FaultServer
from test_edm import served as edm_served  # noqa: F401
from test_stems_midi import server as stems_server  # noqa: F401

KERNEL = "python3"


@pytest.fixture
def fma_server(tmp_path):
    (tmp_path / "served").mkdir()
    digests = published.fma(tmp_path / "served")
    with FaultServer(tmp_path / "served") as server:
        yield server, digests


def run(name, tmp_path, **parameters):
    os.environ["MUSIC_HEADLESS"] = "1"
    os.environ["PYTHONPATH"] = str(files.REPOSITORY)
    target = tmp_path / f"{name}.ipynb"
    source = files.REPOSITORY / "notebooks" / f"{name}.ipynb"
    return papermill.execute_notebook(source, target, parameters, kernel_name=KERNEL, cwd=str(tmp_path), progress_bar=False)


def shown(notebook):
    return json.dumps([cell.get("outputs", []) for cell in notebook.cells])


def overrides(digests):
    return "sha1={" + ", ".join(f"{name}: {value}" for name, value in digests.items()) + "}"


def test_02a_end_to_end_and_again(fma_server, tmp_path):
    server, digests = fma_server
    given = {"overrides": [f"base_url={server.url}", overrides(digests)], "limit": 0}
    first = run("02a_download_fma", tmp_path, **given)
    rows = catalogue.read(catalogue.path_of("fma_small_mini"))
    assert len(rows) == 24 and "image/png" in shown(first) and "<audio" in shown(first) and "published as broken" in shown(first)
    asked = len(server.requests)
    assert "up to date" in shown(run("02a_download_fma", tmp_path, **given)) and len(server.requests) == asked


@pytest.mark.long
def test_02b(tmp_path):
    (tmp_path / "served").mkdir()
    published.jamendo(tmp_path / "served")
    with FaultServer(tmp_path / "served") as server:
        given = [f"base_url={server.url}", f"tables_url={server.url}data/", "mirrors=[]"]
        notebook = run("02b_download_jamendo", tmp_path, tags=["house"], tars=3, overrides=given)
    assert len(catalogue.read(catalogue.path_of("jamendo"))) == 6 and "jamendo.com/track" in shown(notebook)


@pytest.mark.long
def test_02c(edm_served, tmp_path):  # noqa: F811
    with FaultServer(edm_served[0]) as server:
        given = [
            f"github_url={server.url}",
            f"tempo_url={server.url}backup/",
            f"key_url={server.url}audio.zip",
            f"key_md5={edm_served[1]}",
            f"sets_urls.raveform={server.url}raveform.zip",
        ]
        audio = ["giantsteps_tempo", "giantsteps_key"]
        notebook = run("02c_download_edm", tmp_path, audio=audio, annotations=["raveform"], overrides=given)
    assert len(catalogue.read(catalogue.path_of("edm"))) == 10 and "cooldown" in shown(notebook)


@pytest.mark.long
def test_02d(stems_server, tmp_path):  # noqa: F811
    given = [f"base_url={stems_server.url}", f"table={stems_server.table}"]
    notebook = run("02d_download_stems_midi", tmp_path, archives=["emopia", "lakh"], overrides=given)
    assert len(catalogue.read(catalogue.path_of("stems_midi"))) == 4 and "image/png" in shown(notebook)


def script(*options, **environment):
    command = ["bash", str(files.REPOSITORY / "scripts" / "download_script.sh"), *options]
    given = {**os.environ, "MUSIC_PYTHON": sys.executable, "MUSIC_DOWNLOAD_WAIT": "0", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=given, check=False)


def test_the_script_tries_again_logs_and_does_nothing_the_second_time(fma_server, outputs):
    server, digests = fma_server
    server.plan["fma_metadata.zip"] = [{"kind": "status", "code": 404}]
    text = "{" + ", ".join(f"{name}: {value}" for name, value in digests.items()) + "}"
    options = ["--source", "fma", "--subset", "small", "--genres", "House", "--limit", "4", "--dest", str(outputs / "x")]
    options += ["--", "--base-url", server.url, "--sha1", text]
    done = script(*options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed with 2, again in 0 s (round 1 of 5)" in done.stdout and "tracks: 4" in done.stdout
    assert len(list((outputs / "x").rglob("*.mp3"))) == 4
    asked = len(server.requests)
    assert "up to date" in script(*options).stdout and len(server.requests) == asked
    assert "round 1" in (outputs / "logs" / "download_fma.log").read_text()


def test_the_script_names_mistakes():
    for options, said in (
        ([], "--source is missing"),
        (["--source", "napster"], "give fma, jamendo, edm or stems_midi"),
        (["--source", "fma", "--rounds", "x"], "whole number"),
        (["--nonsense"], "unknown option --nonsense"),
    ):
        done = script(*options)
        assert done.returncode == 2 and said in done.stderr
    mistake = script("--source", "fma", "--", "--subset", "huge")
    assert mistake.returncode == 2 and "subset" in mistake.stdout and "again in" not in mistake.stdout
