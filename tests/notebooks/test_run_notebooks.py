"""The notebook runner on toy notebooks: what runs, what is skipped, how it fails, and that nothing is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from music_training import config, files, notebooks
from music_training.errors import UserError

RUNNER = files.REPOSITORY / "scripts" / "run_notebooks.py"
STAGE = """
from music_training import files, stages
root = files.outputs_root()
make = lambda draft: stages.Made([files.write_text(root / "made.txt", f"epochs {epochs}")])
done = stages.run("make", make, scope="toy", params={"epochs": epochs}, inputs=[root / "in.txt"])
"""


def write(folder: Path, name: str, *cells: str, parameters: str = "") -> Path:
    notebook = new_notebook(cells=[new_code_cell(source) for source in cells])
    if parameters:
        notebook.cells.insert(0, new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path


@pytest.fixture
def toys(tmp_path, outputs):
    """Two notebooks under names of the profile tiny: one without a stage, one with."""
    folder = tmp_path / "toys"
    write(folder, "01_setup", "print('hello from', profile)", parameters='profile: str = "mini"')
    write(folder, "02_compose_library", STAGE, parameters='profile: str = "mini"\nepochs: int = 1\naudio_dir: str = ""')
    files.write_text(outputs / "in.txt", "input")
    return folder


def command(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, str(RUNNER), "--notebooks-dir", str(folder), "--profile", "tiny", *arguments]


def run(folder: Path, *arguments: str, options: tuple[str, ...] = ()):
    program, *rest = command(folder, *arguments)
    return subprocess.run([program, *options, *rest], capture_output=True, text=True)


def states(output: str) -> dict[str, str]:
    """The state of every notebook in the summary table."""
    table = output[output.index("notebook  ") :].splitlines()[1:]
    return {line[:24].strip(): line[24:36].strip() for line in table if line[:2].isdigit()}


def snapshot(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def test_runs_in_order_then_skips_without_a_kernel_and_writes_nothing(toys, outputs):
    first = run(toys, "--to", "02", "-p", "epochs=3")
    assert first.returncode == 0, first.stderr
    assert states(first.stdout) == {"01_setup": "ran", "02_compose_library": "ran"}
    assert "  hello from tiny\n" in first.stdout and "make: done" in first.stdout
    assert (outputs / "made.txt").read_text() == "epochs 3"
    executed = nbformat.read(outputs / "notebooks" / "tiny" / "01_setup.ipynb", as_version=4)
    assert executed.cells[-1].outputs[0].text == "hello from tiny\n"
    assert "hello from tiny" in next((outputs / "logs").rglob("01_setup-*.log")).read_text()

    before = snapshot(outputs)
    second = run(toys, "--to", "02", "-p", "epochs=3", options=("-X", "importtime"))
    assert second.returncode == 0
    assert set(states(second.stdout).values()) == {"up to date"}
    assert snapshot(outputs) == before
    loaded = {line.rpartition("|")[2].strip() for line in second.stderr.splitlines()}
    assert loaded & {"papermill", "jupyter_client", "nbformat", "pandas"} == set()

    (outputs / "made.txt").unlink()
    assert (
        "02_compose_library       would run: an output of stage make is gone or changed"
        in run(toys, "--to", "02", "-p", "epochs=3", "--dry-run").stdout
    )
    third = run(toys, "--to", "02", "-p", "epochs=3", "--price-per-hour", "3600")
    assert states(third.stdout) == {"01_setup": "up to date", "02_compose_library": "ran"}
    assert (outputs / "made.txt").read_text() == "epochs 3"
    row = next(line for line in third.stdout.splitlines() if line.startswith("total")).split()
    assert float(row[-1]) == pytest.approx(float(row[1]), abs=0.06)


def test_a_person_s_mistake_in_a_cell_is_its_line_and_stops_the_run(toys):
    write(toys, "01_setup", "1 + 1", "from music_training.errors import UserError", "raise UserError('songs: no audio in it')")
    ended = run(toys, "--to", "02")
    assert ended.returncode == 1
    assert states(ended.stdout) == {"01_setup": "FAILED", "02_compose_library": "not run"}
    first, *rest = ended.stderr.splitlines()
    assert first == "error: 01_setup: cell [3]: songs: no audio in it"
    assert [line.split(":")[0].strip() for line in rest] == ["executed copy", "log"]
    for line in rest:
        assert Path(line.partition(": ")[2]).is_file()


def test_a_fault_of_a_cell_is_in_one_place_with_its_traceback_in_the_log(toys, outputs):
    write(toys, "01_setup", "print('before')", "def deep():\n    return 1 // 0\ndeep()", "print('after')")
    ended = run(toys, "--only", "1")
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[0] == "error: 01_setup: cell [2]: ZeroDivisionError: integer division or modulo by zero"
    assert "Traceback" not in ended.stderr + ended.stdout and "after" not in ended.stdout
    assert "return 1 // 0" in next((outputs / "logs").rglob("*.log")).read_text()
    write(toys, "01_setup", "print('mended')")
    assert states(run(toys, "--only", "1").stdout) == {"01_setup": "ran"}


@pytest.mark.parametrize(
    "source, words",
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "its kernel died; out of memory is the usual cause"),
        ("raise SystemExit(0)", "raised SystemExit: the cells after it did not run"),
    ],
)
def test_a_kernel_that_ends_early_is_no_success(toys, source, words):
    write(toys, "01_setup", source, "print('never')")
    ended = run(toys, "--only", "1")
    assert ended.returncode == 1 and words in ended.stderr.splitlines()[0]
    assert "Traceback" not in ended.stderr


CHILDREN = """
import os, subprocess, sys
command = [sys.executable, "-c", "import time; time.sleep(300)"]
children = [subprocess.Popen(command), subprocess.Popen(command, start_new_session=True)]
from music_training import files
files.write_json(files.outputs_root() / "processes.json", [os.getpid(), *(child.pid for child in children)])
while True:
    pass
"""


@pytest.mark.parametrize("number, code", [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_no_process_outlives_the_runner(toys, outputs, number, code):
    write(toys, "01_setup", CHILDREN)
    runner = subprocess.Popen(command(toys, "--only", "1"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (outputs / "processes.json").is_file():
        time.sleep(0.05)
        assert runner.poll() is None, runner.stderr.read()
    started = [psutil.Process(pid) for pid in files.read_json(outputs / "processes.json")]
    runner.send_signal(number)
    _, errors = runner.communicate(timeout=60)
    assert runner.returncode == code
    assert "Traceback" not in errors
    gone, alive = psutil.wait_procs(started, timeout=20)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
    assert not (outputs / "notebooks" / "tiny" / "01_setup.ipynb").exists()
    write(toys, "01_setup", "print('again')")
    assert run(toys, "--only", "1").returncode == 0
    assert os.listdir(outputs / "notebooks" / "tiny") == ["01_setup.ipynb"]


CHECKPOINT = """
import signal, sys, time
from music_training import files
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
files.write_text(files.outputs_root() / "begun.txt", "")
while not asked:
    time.sleep(0.05)
time.sleep(0.5)
files.write_text(files.outputs_root() / "checkpoint.txt", "")
raise SystemExit(75)
"""


def test_a_sigterm_leaves_a_training_the_time_for_its_checkpoint(toys, outputs):
    write(toys, "01_setup", CHECKPOINT)
    runner = subprocess.Popen(command(toys, "--only", "1"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (outputs / "begun.txt").is_file():
        time.sleep(0.05)
        assert runner.poll() is None, runner.stderr.read()
    runner.terminate()
    _, errors = runner.communicate(timeout=60)
    assert runner.returncode == 143 and "Traceback" not in errors
    assert (outputs / "checkpoint.txt").is_file()
    assert not (outputs / "notebooks" / "tiny" / "01_setup.ipynb").exists()


def test_retry_starts_again_and_the_summary_says_what_it_cost(toys, outputs):
    write(
        toys,
        "01_setup",
        """
import os, signal
from music_training import files
if not (files.outputs_root() / "died.txt").exists():
    files.write_text(files.outputs_root() / "died.txt", "")
    os.kill(os.getpid(), signal.SIGKILL)
""",
    )
    ended = run(toys, "--only", "1", "--retry", "1", "--max-hours", "1", "--price-per-hour", "2 x H200")
    assert ended.returncode == 0, ended.stderr
    assert "supervise: exit code 1; starting again in 5 s (retry 1 of 1)" in ended.stdout
    summary = ended.stdout[ended.stdout.rindex("notebook  ") :].splitlines()
    seconds, cost = summary[1].split()[-3], summary[1].split()[-1]
    price = float(summary[3].split()[4])
    assert summary[3] == f"cost in USD, at {price:g} an hour (2 x H200)"
    assert float(cost) == pytest.approx(float(seconds) / 3600 * price, abs=2e-4)


def test_a_second_run_gets_one_line(toys, outputs):
    program = "import sys; from music_training import files\nwith files.lock(sys.argv[1], 'x'):\n    print(1, flush=True); sys.stdin.read()"
    lock = outputs / ".stages" / "pipeline.lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", program, lock], cwd=files.REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    holder.stdout.readline()
    ended = run(toys, "--only", "1")
    holder.communicate()
    assert ended.returncode == 2
    assert ended.stderr == f"error: the pipeline is already running as process {holder.pid}; wait for it or stop it, then run again\n"


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["--profile", "minni"], "error: profile 'minni': unknown; did you mean 'mini'?"),
        (["--only", "01", "-p", "profil=x"], "error: parameter 'profil': no such parameter in 01_setup; did you mean 'profile'?"),
        (["--only", "1,2", "-p", "01.epochs=3"], "error: parameter 'epochs': no such parameter in 01_setup; known: profile"),
        (["--only", "02", "-p", "epochs"], "error: parameter 'epochs': write it as name=value"),
        (["--only", "02", "-p", "epochs=[1"], "error: parameter epochs:1: not valid YAML: "),
        (["--only", "77"], "error: notebook '77': not in this profile; known: "),
        (["--from", "03", "--to", "02"], "error: --from 03 comes after --to 02; the order is "),
        (["--only", "03"], "error: {toys}/03_segment_audio.ipynb: no such notebook"),
        (["--only", "01", "--audio-dir", "none"], "error: --audio-dir none: no such folder"),
        (["--only", "02", "--audio-dir", "{empty}"], "error: --audio-dir {empty}: the folder is empty"),
        (["--only", "01", "--audio-dir", "{toys}"], "error: --audio-dir: none of 01_setup takes one"),
    ],
)
def test_bad_input_is_one_line_before_anything_starts(toys, outputs, tmp_path, arguments, line):
    (tmp_path / "empty").mkdir()
    places = {"toys": toys, "empty": tmp_path / "empty"}
    ended = run(toys, *(argument.format(**places) for argument in arguments))
    assert ended.returncode == 2
    assert ended.stderr.startswith(line.format(**places)) and len(ended.stderr.splitlines()) == 1, ended.stderr
    assert list(outputs.iterdir()) == [outputs / "in.txt"]


# The parts, without a process


def test_selection():
    names = ["01_setup", "02_compose_library", "02a_download", "04_train", "10_listen"]
    assert notebooks.select(names) == names
    assert notebooks.select(names, first="2", last="04") == names[1:4]
    assert notebooks.select(names, only=["10", "02a", "1"]) == ["01_setup", "02a_download", "10_listen"]
    assert notebooks.select(names, only=["04_train.ipynb"]) == ["04_train"]
    with pytest.raises(UserError, match=r"'04_tran': not in this profile; did you mean '04_train'\?"):
        notebooks.select(names, only=["04_tran"])
    with pytest.raises(UserError, match="no notebook of --only lies between"):
        notebooks.select(names, only=["1"], first="04")


def test_parameters_are_yaml_and_go_where_they_belong(toys):
    chosen = [notebooks.read(name, toys) for name in ("01_setup", "02_compose_library")]
    assert notebooks.parse_parameters(["epochs=1e-4", "profile=x", "02.profile=[a, 1]"], chosen) == {
        "01_setup": {"profile": "x"},
        "02_compose_library": {"epochs": 1e-4, "profile": ["a", 1]},
    }
    with pytest.raises(config.ConfigError) as caught:
        notebooks.parse_parameters(["epocs=1", "day=2024-01-01", "x", "44.epochs=1"], chosen)
    assert len(caught.value.errors) == 4
    assert "did you mean 'epochs'?" in caught.value.errors[0] and "put it in quotes" in caught.value.errors[1]


def test_outputs_and_ids_do_not_make_a_notebook_another(toys):
    path = toys / "01_setup.ipynb"
    before = notebooks.read("01_setup", toys)
    content = json.loads(path.read_text())
    content["metadata"]["x"] = 1
    content["cells"][1].update(id="other", execution_count=7)
    path.write_text(json.dumps(content))
    assert notebooks.read("01_setup", toys).source == before.source
    content["cells"][1]["source"] = "print(2)"
    path.write_text(json.dumps(content))
    assert notebooks.read("01_setup", toys).source != before.source


@pytest.mark.parametrize("text", ["", "[]", '{"cells": [1]}', "no json"])
def test_what_is_no_notebook_is_said(tmp_path, text):
    (tmp_path / "a.ipynb").write_text(text)
    with pytest.raises(UserError, match="a.ipynb: not a Jupyter notebook"):
        notebooks.read("a", tmp_path)


def test_the_code_digest_sees_code_and_configuration_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "REPOSITORY", tmp_path)

    def digest():
        notebooks.code_digest.cache_clear()
        return notebooks.code_digest()

    seen = {digest()}
    try:
        for name in ("music_training/a/b.py", "training_checks/c.py", "scripts/d.py", "model_config/audiocraft/e.yaml"):
            files.write_text(tmp_path / name, "1")
            seen.add(digest())
            files.write_text(tmp_path / name, "2")
            seen.add(digest())
        assert len(seen) == 9
        for name in ("music_training/__pycache__/b.pyc", "README.md", "tests/test_a.py", "outputs/x", "scripts/run.sh"):
            files.write_text(tmp_path / name, "1")
        assert digest() in seen
    finally:
        notebooks.code_digest.cache_clear()


def test_every_reason_to_run_is_named(toys, outputs, tmp_path):
    notebook = notebooks.read("02_compose_library", toys)
    parameters = {"epochs": 1}

    def why(given=parameters, of=notebook):
        return notebooks.why_run(of, "tiny/x", "tiny", given)

    assert why() == "never ran to its end"
    executed = files.write_text(notebooks.executed_path("tiny", notebook.name), "{}")
    stage = files.write_json(
        outputs / ".stages" / "s.json",
        {
            "stage": "s",
            "inputs": {"in.txt": files.fingerprint(outputs / "in.txt")},
            "outputs": {"out.txt": files.fingerprint(files.write_text(outputs / "out.txt", "out"))},
        },
    )
    listing = files.write_text(tmp_path / "list", f"{files.relative(stage)}\n" * 2)
    notebooks.save_stamp(notebook, "tiny/x", "tiny", parameters, listing, 3.0)
    assert why() == "" and notebooks.last_seconds("tiny/x", notebook.name) == 3.0
    assert why(given={"epochs": 2}) == "its parameters changed"
    files.write_text(outputs / "in.txt", "other")
    assert why() == "an input of stage s changed"
    files.write_text(outputs / "in.txt", "input")
    files.write_text(outputs / "out.txt", "OUT")
    assert why() == "an output of stage s is gone or changed"
    files.write_text(outputs / "out.txt", "out")
    assert why() == ""
    content = files.read_json(stage)
    files.write_json(stage, {**content, "seconds": 2})
    assert why() == "a stage was made again (s)"
    stage.unlink()
    assert why() == "a stage was made again (s)"
    files.write_json(stage, content)
    assert why() == ""
    executed.write_text("{ }")
    assert why() == "its executed copy is gone or of another run"
    write(toys, "02_compose_library", "other")
    assert why(of=notebooks.read("02_compose_library", toys)) == "the notebook changed"
