"""Several pods: what launch.sh makes of a cluster's variables, and (long) network namespaces of this machine as pods."""

import os
import subprocess
import sys
import time

import psutil
import pytest
from namespaces import LAUNCH, environment, on_one_pod, together

from music_training import files, runs
from music_training.trainer import checkpoints

TOY = files.REPOSITORY / "tests" / "trainer" / "toy.py"


def plan(*words: str, **given: object) -> subprocess.CompletedProcess:
    command = ["bash", str(LAUNCH), "--dry-run", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment(**given))


RUNPOD = {"NUM_NODES": 2, "NODE_RANK": 1, "MASTER_ADDR": "10.65.0.2", "MASTER_PORT": 29400, "NODE_ADDR": "10.65.0.3", "NUM_TRAINERS": 8}
SKYPILOT = {
    "SKYPILOT_NUM_NODES": 2,
    "SKYPILOT_NODE_RANK": 1,
    "SKYPILOT_NODE_IPS": "10.65.0.2\n10.65.0.3",
    "SKYPILOT_NUM_GPUS_PER_NODE": 8,
    "NODE_ADDR": "10.65.0.3",
    "MASTER_PORT": 29400,
}
DSTACK = {
    "DSTACK_NODES_NUM": 2,
    "DSTACK_NODE_RANK": 1,
    "DSTACK_MASTER_NODE_IP": "10.65.0.2",
    "DSTACK_GPUS_PER_NODE": 8,
    "NODE_ADDR": "10.65.0.3",
    "MASTER_PORT": 29400,
}


@pytest.mark.parametrize("cluster", [RUNPOD, SKYPILOT, DSTACK], ids=["runpod", "skypilot", "dstack"])
def test_every_cluster_says_the_same_in_its_own_words(cluster):
    said = plan("train.py", "a=b c", **cluster)
    assert said.returncode == 0, said.stderr
    words = f"{sys.prefix}/bin/python -m torch.distributed.run --nnodes 2 --nproc-per-node 8 --max-restarts 3 --rdzv-backend c10d"
    assert said.stdout.startswith(words) and "--rdzv-endpoint 10.65.0.2:29400" in said.stdout and "is_host=0" in said.stdout
    assert "--local-addr 10.65.0.3 train.py a=b\\ c" in said.stdout


def test_without_a_cluster_it_is_this_pod(tmp_path):
    nvidia = files.write_text(tmp_path / "nvidia-smi", "#!/bin/sh\necho 'GPU 0: NVIDIA H200'\necho 'GPU 1: NVIDIA H200'\n")
    nvidia.chmod(0o755)
    said = plan("train.py", PATH=f"{tmp_path}:{os.environ['PATH']}").stdout
    assert "--nnodes 1 --nproc-per-node 2" in said and "--standalone train.py" in said
    assert "--nproc-per-node 3 --max-restarts 0" in plan("--gpus", "3", "--restarts", "0", "train.py").stdout


@pytest.mark.parametrize(
    ("words", "given", "line"),
    [
        ([], {}, "start what?"),
        (["--gpu", "3", "x"], {}, "unknown option --gpu"),
        (["--gpus", "many", "x"], {}, "--gpus: a number is expected"),
        (["x"], {"NUM_NODES": 2}, "NUM_NODES=2, but MASTER_ADDR is not set"),
        (["x"], {"NUM_NODES": 2, "NODE_RANK": 2, "MASTER_ADDR": "a"}, "NODE_RANK=2: with NUM_NODES=2 it is at most 1"),
        (["x"], {"MUSIC_VENV": "/none"}, "/none: no virtual environment there"),
    ],
)
def test_bad_input_is_one_line(words, given, line):
    said = plan(*words, **given)
    assert said.returncode == 2 and line in said.stderr and len(said.stderr.splitlines()) == 1


# Network namespaces as pods


def weights(run: str) -> bytes:
    return (runs.find(run) / "ckpt" / "last" / "model.safetensors").read_bytes()


@pytest.mark.long
def test_two_pods_give_the_bits_of_one(pods):
    together(pods, "bash", LAUNCH, "--gpus", "1", TOY, "two")
    on_one_pod("bash", LAUNCH, "--gpus", "2", TOY, "one")
    assert weights("two") == weights("one")
    assert {name: torch_rows("two")[name] for name in ("step", "val_loss")} == {
        name: torch_rows("one")[name] for name in ("step", "val_loss")
    }


def torch_rows(run: str) -> dict:
    return [row for row in runs.read_metrics(runs.find(run)) if "val_loss" in row][-1]


@pytest.mark.long
@pytest.mark.parametrize("lost", [0, 1], ids=["first", "second"])
def test_a_pod_that_is_lost_comes_back_and_training_goes_on(pods, lost):
    on_one_pod("bash", LAUNCH, "--gpus", "2", TOY, "whole", "training.checkpoint.interval=2")
    command = ["bash", LAUNCH, "--gpus", "1", TOY, "killed", "training.checkpoint.interval=2"]
    processes = [pod.start(*command, supervised=True, TOY_SLEEP=0.6) for pod in pods]
    folder = runs.folder() / "killed" / "ckpt"
    while not (newest := checkpoints.newest(folder)) or files.read_json(newest / "checkpoint.json")["step"] < 4:
        assert all(process.poll() is None for process in processes), "\n".join(pod.log() for pod in pods)
        time.sleep(0.1)
    pods[lost].kill()
    processes[lost].wait()
    assert runs.read_metadata(runs.find("killed"))["status"] != "finished"
    processes[lost] = pods[lost].start(*command, supervised=True)
    assert [process.wait(300) for process in processes] == [0, 0], "\n".join(pod.log() for pod in pods)
    assert weights("killed") == weights("whole")


SEGMENT = """
import sys
from music_training import files
from music_training.library import segments
segments.segment("d", "s", segments.SegmentSettings(segment_seconds=5, workers=1), *sys.argv[1:])
"""


@pytest.mark.long
def test_dask_over_pods_makes_the_same_segments(pods, outputs, monkeypatch):
    sys.path.insert(0, str(files.REPOSITORY / "tests" / "library"))
    from test_dask import make_catalogue, tree

    make_catalogue()
    on_one_pod(sys.executable, "-c", SEGMENT)
    here = tree(outputs / "segments")
    (outputs / "segments").rename(outputs / "before")
    clusters = [pod.start("bash", LAUNCH, "dask", DASK_PORT=18786) for pod in pods]
    done = pods[1].start(sys.executable, "-c", SEGMENT, "tcp://10.213.77.1:18786")
    assert done.wait(300) == 0, "\n".join(pod.log() for pod in pods)
    assert tree(outputs / "segments") == here
    assert all(process.poll() is None for process in clusters)
    inside = [set(subprocess.run(["ip", "netns", "pids", pod.name], capture_output=True, text=True).stdout.split()) for pod in pods]
    assert all(any("dask_worker" in " ".join(psutil.Process(int(pid)).cmdline()) for pid in pids) for pids in inside)
    for process in clusters:
        process.terminate()
    assert {process.wait(60) for process in clusters} == {143}
