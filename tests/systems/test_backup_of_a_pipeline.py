"""A whole pipeline is backed up, with a kill on the way, and restored in an empty folder of another checkout: nothing is left to do."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from hub_server import Hub
from whole_runs import environment, pipeline, states

from music_training import files

SCRIPT = files.REPOSITORY / "scripts" / "backup_outputs.py"


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("way", ["rsync", "hub"])
def test_a_restored_pipeline_is_up_to_date(spine, outputs, tmp_path, way):
    there, back = tmp_path / "there", tmp_path / "back"
    hub = Hub()
    settings = {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    slow = files.write_text(tmp_path / "bin" / "rsync", '#!/bin/sh\nexec /usr/bin/rsync --bwlimit=20000 "$@"\n')
    slow.chmod(0o755)
    place = ["--hub", "me/x"] if way == "hub" else ["--rsync", str(there)]

    def command(action: str, root, **more: str) -> subprocess.Popen:
        known = {**environment(root), **settings, **more}
        words = [sys.executable, str(SCRIPT), action, *place]
        return subprocess.Popen(words, env=known, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)

    def killed(process: subprocess.Popen, begun) -> None:
        while not begun():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()

    def run(action: str, root) -> None:
        process = command(action, root)
        assert process.communicate()[1] == "" and process.returncode == 0

    shutil.copytree(spine.outputs, outputs)
    hub.delay = 0.05
    narrow = {"PATH": f"{slow.parent}:{os.environ['PATH']}"}
    killed(command("backup", outputs, **narrow), lambda: len(hub.uploads) > 5 or list(there.rglob(".~tmp~/*")))
    hub.delay = 0.0
    run("backup", outputs)
    killed(command("restore", back, **narrow), lambda: len(list((back / ".restore").rglob("*.*"))) > 5)
    run("restore", back)
    hub.close()
    assert hub.unknown == []
    shutil.rmtree(outputs)
    checkout = tmp_path / "checkout"  # a new pod has the repository somewhere else
    leave = shutil.ignore_patterns(".*", "outputs", "__pycache__", "*.egg-info")
    shutil.copytree(files.REPOSITORY, checkout, ignore=leave)
    ended = pipeline(back, repository=checkout)
    assert ended.returncode == 0 and set(states(ended.stdout).values()) == {"up to date"}, ended.stdout + ended.stderr
