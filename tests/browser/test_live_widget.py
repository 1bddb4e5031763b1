"""The live view in a real kernel, and in a real JupyterLab: the widget is drawn, follows the run, and can be had again."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time

import nbclient
import nbformat
import pytest

from music_training import files, live, runs

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CODE = "from music_training import live\nlive.watch('one', price=36)"
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CODE)], metadata=KERNEL)


@pytest.fixture
def environment(outputs, monkeypatch):
    """What a kernel is started with: it is looked on, and finds this repository."""
    monkeypatch.delenv("MUSIC_HEADLESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(files.REPOSITORY))
    return dict(os.environ)


@pytest.fixture
def run(outputs):
    """A run of 1000 steps that gains a row every 0.2 s, until the test ends."""
    folder = runs.create("musicgen", run_name="one")
    files.write_text(folder / "config.yaml", "optim: {epochs: 10, updates_per_epoch: 100}\n")
    runs.write_metadata(folder, status="running")
    ended = threading.Event()

    def grow() -> None:
        for step in range(1, 1001):
            row = {"step": step, "stage": "train", "seconds": 0.2, "ce": 5 - step / 1000, "grad_norm": 1.0}
            with open(folder / "metrics.jsonl", "a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
            if ended.wait(0.2):
                break
        runs.write_metadata(folder, status="finished")

    writer = threading.Thread(target=grow)
    writer.start()
    yield ended
    ended.set()
    writer.join()


def test_a_kernel_draws_the_widget(notebook, environment, run):
    threading.Timer(6, run.set).start()
    client = nbclient.NotebookClient(notebook, timeout=120, store_widget_state=True)
    client.execute(env=environment)
    states = notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"].values()
    shown = "".join(str(state["state"].get("value", "")) for state in states)
    assert 'aria-label="ce: ' in shown and 'aria-label="grad_norm: ' in shown
    assert "of 1000" in shown and "5 steps/s" in shown and "of about $2.00" in shown


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: JupyterLab is not tried in a browser")
def test_jupyterlab_shows_a_run_again_in_another_notebook(notebook, environment, run, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    for name in ("first", "second"):
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
    places = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    command = [sys.executable, "-m", "jupyterlab", "--allow-root", "--no-browser", "--port=18934", "--IdentityProvider.token=t"]
    log = tmp_path / "lab.log"
    with open(log, "w") as stream:
        lab = subprocess.Popen([*command, f"--ServerApp.root_dir={tmp_path}"], env={**environment, **places}, stdout=stream, stderr=stream)
    try:
        deadline = time.monotonic() + 120
        while "is running at" not in log.read_text():
            assert lab.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page()
            steps = [step_shown_by(page, name) for name in ("first", "second")]
            page.goto(live.page_of(runs.folder() / "one").as_uri())
            steps.append(step_of(page.get_attribute("svg", "aria-label")))
            browser.close()
    finally:
        lab.terminate()
        lab.wait(20)
    assert 0 < steps[0] < steps[1] and steps[2] > steps[0]


def step_shown_by(page, name: str) -> int:
    """Open a notebook, run its cell and return a step that its widget shows once it has gone on from the first."""
    page.goto(f"http://localhost:18934/lab/tree/{name}.ipynb?token=t", timeout=120_000)
    cell = page.locator(".jp-Notebook:visible .jp-CodeCell .cm-content").first
    cell.wait_for(timeout=120_000)
    page.wait_for_timeout(5000)  # the kernel starts
    cell.click()
    page.keyboard.press("Shift+Enter")
    picture = page.locator(".jp-OutputArea:visible svg[aria-label]").first
    picture.wait_for(timeout=120_000)
    first = step_of(picture.get_attribute("aria-label"))
    for _ in range(100):
        page.wait_for_timeout(300)
        if (step := step_of(picture.get_attribute("aria-label"))) > first:
            return step
    raise AssertionError("the widget does not go on")


def step_of(label: str) -> int:
    return int(label.partition("at step ")[2].partition(";")[0])
