"""The pipeline end to end on profile tiny: it ends with a page, repeats nothing, survives kills, and says what is wrong."""

import csv
import os
import random
import shutil
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import soundfile
from whole_runs import contents, environment, listing, pipeline, start, states, temporary_names

from music_training import files, runs

DATA = ("library", "segments", "egs")
SYSTEMS = {"codec", "musicgen", "cnn", "midigenerator", "spectocloud", "demucs", "lorademucs"}  # as run folders name them


class Players(HTMLParser):
    """The sources of a page's players."""

    def __init__(self, page: Path):
        super().__init__()
        self.paths: list[Path] = []
        self.folder = page.parent
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        if tag == "audio":
            self.paths.append(self.folder / unquote(dict(attributes)["src"]))


def run_folders(outputs: Path) -> dict[str, Path]:
    """The only run folder of each system; fails where there are several."""
    found: dict[str, Path] = {}
    for path in sorted((outputs / "training").iterdir()):
        system = runs.read_metadata(path)["system"]
        assert system not in found, f"two runs of {system}: {found[system].name}, {path.name}"
        found[system] = path
    return found


def complaint(ended: subprocess.CompletedProcess) -> str:
    """The line that says what is wrong; fails where there is a traceback or no such line."""
    assert ended.returncode in (1, 2), ended.stdout + ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
    lines = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, ended.stderr
    return lines[0]


# The shared run


def test_the_run_ends_with_a_page_whose_players_play(spine):
    assert spine.ended.returncode == 0, spine.ended.stderr
    assert set(states(spine.ended.stdout).values()) == {"ran"}
    page = spine.outputs / "samples" / "index.html"
    assert f"listen: {page}" in spine.ended.stdout
    paths = Players(page).paths
    assert len(paths) >= 8 and all(path.is_file() and path.stat().st_size > 1000 for path in paths)
    assert any(path.parent.name == "epoch_3" for path in paths) and any(path.parent.name == "reconstruction" for path in paths)
    assert set(run_folders(spine.outputs)) == SYSTEMS
    assert temporary_names(spine.outputs) == []


def test_a_second_run_says_so_and_writes_nothing(spine):
    before = listing(spine.outputs)
    again = pipeline(spine.outputs)
    assert again.returncode == 0, again.stderr
    assert set(states(again.stdout).values()) == {"up to date"}
    assert listing(spine.outputs) == before


def test_outputs_may_be_moved(spine, tmp_path):
    before = listing(spine.outputs)
    elsewhere = tmp_path / "another place" / "outputs"
    elsewhere.parent.mkdir()
    os.rename(spine.outputs, elsewhere)
    try:
        again = pipeline(elsewhere)
        after = listing(elsewhere)
    finally:
        os.rename(elsewhere, spine.outputs)
    assert again.returncode == 0, again.stderr
    assert set(states(again.stdout).values()) == {"up to date"}
    assert after == before


def test_the_stages_of_moved_outputs_are_up_to_date(spine, tmp_path):
    """A notebook that runs again (its executed copy is gone) makes no stage again."""
    elsewhere = tmp_path / "outputs"
    shutil.copytree(spine.outputs, elsewhere)  # new times, new inodes
    shutil.rmtree(elsewhere / "notebooks")
    before = contents(elsewhere, *DATA, "training", "samples")
    again = pipeline(elsewhere)
    assert again.returncode == 0, again.stderr
    assert set(states(again.stdout).values()) == {"ran"}
    for stage in ("compose_library", "segment_audio", "build_manifests", "train_codec", "train_musicgen", "sample"):
        assert f"  {stage}: up to date" in again.stdout
        assert f"  {stage}: done" not in again.stdout
    assert contents(elsewhere, *DATA, "training", "samples") == before


def test_clips_of_one_checkpoint_and_seed_are_the_same_bits_in_every_process(spine, tmp_path):
    run = run_folders(spine.outputs)["musicgen"].name
    shutil.copytree(spine.outputs / "training", tmp_path / "training")
    command = [sys.executable, "-m", "training_checks.fixed_seed_sampler", "--profile", "tiny", "--run", run, "--epoch", "3"]
    folder = Path("samples") / run / "epoch_3"

    def clips(root: Path) -> dict[str, str]:
        return {path.name: files.digest(path) for path in (root / folder).glob("*.wav")}

    def sample(*settings: str) -> dict[str, str]:
        ended = subprocess.run([*command, *settings], cwd=files.REPOSITORY, env=environment(tmp_path), capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        return clips(tmp_path)

    here = sample()
    assert len(here) == 2 and here == clips(spine.outputs)
    # Another seed is another clip; the codec of this profile says nearly everything with one code, so the draw is a hot one.
    assert len(set(sample("temperature=5").values())) == 2


# What is wrong, in one line


@pytest.fixture
def folders(tmp_path) -> dict[str, str]:
    for name in ("empty", "hollow/in it", "text"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "text" / "notes.txt").write_text("no audio")
    return {name: str(tmp_path / name) for name in ("empty", "hollow", "text", "missing")}


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--profile", "tinny"], "profile 'tinny': unknown; did you mean 'tiny'?"),
        (["-p", "epohcs=3"], "parameter 'epohcs': no such parameter in "),
        (["--audio-dir", "{empty}"], "--audio-dir {empty}: the folder is empty"),
        (["--audio-dir", "{hollow}"], "--audio-dir {hollow}: the folder is empty"),
        (["--audio-dir", "{missing}"], "--audio-dir {missing}: no such folder"),
        (["--audio-dir", "{text}", "--only", "03"], "{text}"),
        (["--only", "04", "-p", "overrides=[epohcs=3]"], "did you mean 'epochs'?"),
        (["--only", "04", "-p", "epochs=three"], "epochs"),
        (["--only", "04"], "run 03_segment_audio first"),
        (["--only", "10"], "run 05_train_musicgen first"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_clear_line(outputs, folders, arguments, expected):
    ended = pipeline(outputs, *(argument.format(**folders) for argument in arguments))
    assert expected.format(**folders) in complaint(ended)
    assert not (outputs / "training").exists() and not (outputs / "segments").exists()


def test_a_second_run_beside_the_first_is_one_clear_line(outputs):
    with files.lock(outputs / ".stages" / "pipeline.lock", "the test"):
        ended = pipeline(outputs)
    assert complaint(ended) == f"error: the pipeline is already running as process {os.getpid()}; wait for it or stop it, then run again"


# Kills, a full disk, real audio


def victims(output: str) -> list[tuple[str, float]]:
    """Ten notebooks to be killed in, in their order, with the seconds that each took in an undisturbed run."""
    lines = output[output.index("notebook  ") :].splitlines()
    took = {line[:2]: (line[:24].strip(), float(line[36:].split()[0])) for line in lines if line[:2].isdigit()}
    return [took[number] for number in ("02", "02", "03", "04", "04", "04", "05", "05", "05", "10")]


def killed(outputs: Path, notebook: str, seconds: float) -> bool:
    """Start the pipeline and ``kill -9`` all of it some seconds into a notebook; whether it was still running then."""
    process = start(outputs)
    for line in process.stdout:
        if line.startswith(f"{notebook}: running"):
            break
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode in (0, -signal.SIGKILL)
    return process.returncode != 0


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_ten_kills_leave_what_an_undisturbed_run_leaves(spine, tmp_path):
    outputs = tmp_path / "outputs"
    moments = random.Random(2036)
    kills = sum(killed(outputs, name, moments.uniform(0.05, 0.6) * seconds) for name, seconds in victims(spine.ended.stdout))
    assert kills >= 6  # a continued notebook may end before its moment
    ended = pipeline(outputs)
    assert ended.returncode == 0, ended.stderr
    assert contents(outputs, *DATA) == contents(spine.outputs, *DATA)
    mine, undisturbed = run_folders(outputs), run_folders(spine.outputs)
    assert set(mine) == SYSTEMS
    for system, run in mine.items():
        weights = Path("ckpt") / "best" / "model.safetensors"
        assert files.digest(run / weights) == files.digest(undisturbed[system] / weights), system
        assert runs.read_metadata(run)["status"] == "finished"
        rows, others = (
            [{**row, "seconds": 0, "examples_per_second": 0} for row in runs.read_metrics(path)] for path in (run, undisturbed[system])
        )
        assert rows == others, system
    clips = sorted(path for path in (outputs / "samples").rglob("*.wav") if path.parent.name.startswith("epoch_"))
    others = sorted(path for path in (spine.outputs / "samples").rglob("*.wav") if path.parent.name.startswith("epoch_"))
    assert [files.digest(path) for path in clips] == [files.digest(path) for path in others]
    assert temporary_names(outputs) == []
    assert all(path.is_file() for path in Players(outputs / "samples" / "index.html").paths)


def used(folder: Path, pattern: str = "*") -> int:
    """What the files of a folder take on a disk with blocks of 4 KiB, in bytes."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob(pattern) if path.is_file())


# The full disk is met while composing, while segmenting, and while a checkpoint is written.
@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", ["library", "segments", "training"])
def test_a_full_disk_is_one_clear_line_and_with_room_the_same_command_goes_on(spine, small_disk, stage):
    folder, resize = small_disk
    outputs = folder / "outputs"
    library, segments = used(spine.outputs / "library"), used(spine.outputs / "segments")
    training = used(spine.outputs / "notebooks", "0[123]_*.ipynb") + used(run_folders(spine.outputs)["codec"]) // 2
    resize({"library": 12 * 2**20, "segments": library + segments // 2, "training": library + segments + training}[stage])
    last = "04" if stage == "training" else "03"
    line = complaint(pipeline(outputs, "--to", last))
    assert "the disk is full" in line or "make room" in line or "No space left on device" in line
    made, whole = contents(outputs, *DATA), contents(spine.outputs, *DATA)
    assert made.items() <= whole.items()
    resize(2 * 2**30)
    ended = pipeline(outputs, "--to", last)
    assert ended.returncode == 0, ended.stderr
    assert contents(outputs, *DATA) == whole
    assert temporary_names(outputs) == []
    if stage == "training":
        weights = Path("ckpt") / "best" / "model.safetensors"
        assert files.digest(run_folders(outputs)["codec"] / weights) == files.digest(run_folders(spine.outputs)["codec"] / weights)


@pytest.mark.long
@pytest.mark.real
@pytest.mark.timeout(1800)
def test_a_person_s_own_folder_ends_with_a_page_and_a_table_of_rejects(outputs, real_data):
    ended = pipeline(outputs, "--audio-dir", str(real_data))
    assert ended.returncode == 0, ended.stderr
    assert Players(outputs / "samples" / "index.html").paths
    table = next((outputs / "segments").glob("*/rejects.csv"))
    with open(table, newline="", encoding="utf-8") as stream:
        rejects = list(csv.DictReader(stream))
    audio = [path for path in real_data.rglob("*") if path.suffix in (".wav", ".mp3", ".ogg", ".flac", ".sph")]
    seconds = {str(path): len(samples) / rate for path in audio for samples, rate in [soundfile.read(path)]}  # headers of mp3 mislead
    assert {row["path"] for row in rejects if row["reason"] == "too short"} == {path for path, length in seconds.items() if length < 9.5}
    left_over = {row["path"]: float(row["seconds"]) for row in rejects if row["reason"] == "remainder"}
    assert left_over == pytest.approx({path: seconds[path] % 10 for path in left_over}, abs=0.001)
    assert {row["reason"] for row in rejects} == {"too short", "remainder"}
    again = pipeline(outputs, "--audio-dir", str(real_data))
    assert set(states(again.stdout).values()) == {"up to date"}, again.stdout
