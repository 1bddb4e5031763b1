"""Files for clusters and images: they name what is there, and install what the set-up installs."""

import re
import shlex

import pytest
import yaml

from music_training import files, profiles

DEPLOYMENT = files.REPOSITORY / "deployment"
DOCKERFILE = DEPLOYMENT / "docker" / "Dockerfile.cuda"
SET_UP = (files.REPOSITORY / "scripts" / "startup_script.sh").read_text()
TASKS = sorted([*DEPLOYMENT.glob("*/*.yml"), *DEPLOYMENT.glob("*/*.yaml")])


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, continued lines joined, without comments."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(" ", 1)) for line in joined.splitlines() if line.strip()]


def test_the_image_installs_the_programs_that_the_set_up_installs():
    runs = " && ".join(text for word, text in instructions() if word == "RUN")
    listed = re.search(r"apt-get install -y --no-install-recommends ([^&]+)", runs)[1].split()
    wanted = set(re.findall(r"missing\+=\(([\w-]+)\)", SET_UP))
    assert wanted >= {"ffmpeg", "rsync", "libsndfile1"}  # the pattern finds them
    assert set(listed) == wanted | {"tini"}  # tini: the image's own first process


def test_the_image_takes_its_packages_from_the_requirements_alone():
    runs = [text for word, text in instructions() if word == "RUN"]
    assert not any(re.search(r"pip3? install|conda|uv ", text) for text in runs)  # nothing beside the set-up
    (set_up,) = [text for text in runs if "scripts/startup_script.sh" in text and "bash" in text]
    read = set(re.search(r"&& cat ([^)]*)\)", SET_UP)[1].split())  # what decides whether the set-up is up to date
    copied = {path for word, text in instructions() if word == "COPY" and "--from" not in text for path in text.split()[:-1]}
    assert read | {"requirements.txt", "requirements-nodeps.txt"} <= copied
    assert all((files.REPOSITORY / path).exists() for path in copied)
    version = re.search(r"FROM python:(3\.\d+)-", DOCKERFILE.read_text())[1]
    assert version in re.findall(r"3\.1\d", SET_UP) and f"MUSIC_PYTHON=/usr/local/bin/python{version}" in set_up


def test_the_image_does_not_run_as_root_unless_asked():
    last = [text for word, text in instructions() if word in ("USER", "ARG")]
    assert last == ["RUN_AS=music", "${RUN_AS}"]
    assert ".env" in (DEPLOYMENT / "docker" / "Dockerfile.cuda.dockerignore").read_text().splitlines()


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.name)
def test_a_task_starts_what_is_there(path):
    task = yaml.safe_load(path.read_text())
    text = "\n".join([*task.get("commands", ()), task.get("setup", ""), task.get("run", "")])
    words = shlex.split(text.replace("\\\n", " "))
    named = [word for word in words if word.startswith("scripts/")]
    assert named and all((files.REPOSITORY / word).is_file() for word in named)
    for option, value in zip(words, words[1:], strict=False):
        if option == "--profile":
            assert value in profiles.names()
    for group, name in re.findall(r"\b(solver|model)=(\w+)", text):
        assert (files.REPOSITORY / "model_config" / "audiocraft" / group / f"{name}.yaml").is_file()
    nodes = task.get("nodes") or task.get("num_nodes") or 1
    assert (nodes > 1) == ("scripts/launch.sh" in words)
    batch, gpus = re.search(r"dataset.batch_size=(\d+)", text), re.search(r"H200:(\d+)", path.read_text())
    if batch:  # AudioCraft shares a batch among all processes
        assert int(batch[1]) % (nodes * int(gpus[1])) == 0
    volumes = task["volumes"]
    assert "/workspace" in (volumes if isinstance(volumes, dict) else [volume["path"] for volume in volumes])
