"""Profiles: all of them can be read, name known notebooks, and resolve into settings in the right order."""

import re

import pytest
import yaml

from music_training import config, files, notebooks, pipeline, profiles
from music_training.errors import UserError


class Training(config.Settings):
    epochs: int = 1
    lr: float = 1e-3
    name: str = "default"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(profiles, "FOLDER", tmp_path / "profiles")
    text = "description: d\ndataset: songs\nnotebooks:\n  01_setup:\n  04_train: {epochs: 5, lr: 1e-4}\n"
    files.write_text(tmp_path / "profiles" / "mine.yaml", text)
    return tmp_path / "profiles"


def test_the_profiles_there_are():
    assert profiles.names() == ["edm", "fma_large", "fma_small", "fma_small_mini", "mini", "tiny"]


@pytest.mark.parametrize("name", profiles.names())
def test_every_profile_can_be_read(name):
    profile = profiles.read(name)
    assert profile.description and profile.dataset
    order = list(profile.notebooks)
    assert order == sorted(order) and order[0] == "01_setup" and order[-1] == "10_listen"
    assert set(profile.seconds) <= set(order)
    assert list(pipeline.table(name).index) == order


def test_given_wins_over_profile_over_default(folder):
    made = profiles.settings(Training, "04_train", "mine", ["name=last"], epochs=None, lr=0.5)
    assert made == Training(epochs=5, lr=0.5, name="last")
    assert profiles.settings(Training, "04_train", "mine", ["epochs=9"], epochs=7).epochs == 9
    assert profiles.settings(Training, "01_setup", "mine") == Training()
    assert profiles.settings(Training, "99_other", "mine") == Training()


def test_a_false_or_zero_value_is_given(folder):
    assert profiles.settings(Training, "04_train", "mine", lr=0.0).lr == 0.0


def test_a_misspelt_key_of_a_profile_is_named_with_its_file_and_notebook(folder):
    (folder / "mine.yaml").write_text("description: d\ndataset: x\nnotebooks:\n  04_train: {epocs: 5}\n")
    with pytest.raises(UserError, match=r"profiles/mine.yaml, 04_train: epocs: unknown key; did you mean 'epochs'\?"):
        profiles.settings(Training, "04_train", "mine")


def test_an_unknown_profile_has_a_suggestion():
    with pytest.raises(UserError, match=r"profile 'minni': unknown; did you mean 'mini'\?"):
        profiles.read("minni")
    with pytest.raises(UserError, match="unknown"):
        profiles.read("../profiles/mini")


def test_a_folder_of_ones_own_is_a_data_set_of_its_own(tmp_path):
    assert profiles.dataset("mini") == profiles.dataset("mini", "") == "studio_mini"
    one, two = tmp_path / "a" / "My Songs!", tmp_path / "b" / "My Songs!"
    names = {profiles.dataset("mini", str(folder)) for folder in (one, two)}
    assert len(names) == 2 and all(name.startswith("my-songs-") for name in names)
    assert profiles.dataset("mini", f"{one}/") == profiles.dataset("mini", str(one))
    assert profiles.scope("mini", str(one)) != profiles.scope("tiny", str(one))


def test_the_picture_marks_what_the_profile_runs():
    figure = pipeline.draw("mini")
    texts = {text.get_text(): text.get_color() for text in figure.axes[0].texts if text.get_text()}
    assert texts["codec\n(04)"] == "black"
    assert len(texts) == len(pipeline.BOXES)


def test_the_notebooks_of_the_default_profile_that_are_there_can_be_read():
    there = [name for name in profiles.read("mini").notebooks if (notebooks.FOLDER / f"{name}.ipynb").is_file()]
    assert "01_setup" in there
    for name in there:
        assert "profile" in notebooks.read(name).parameters


def test_every_parameter_that_the_readme_sets_is_one():
    from music_training.musicgen.training import CodecSettings, LanguageModelSettings

    text = (files.REPOSITORY / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"""-p\s+(?:"(\d\w+)\.(\w+)=([^"]*)"|'(\d\w+)\.(\w+)=([^']*)'|(\d\w+)\.(\w+)=([^\s`,]*))""", text)
    named = [tuple(part for part in match if part) for match in found]
    assert len(named) == len(re.findall(r"-p\s+['\"]?\d", text)) > 9
    for number, parameter, value in named:
        (path,) = (files.REPOSITORY / "notebooks").glob(f"{number}_*.ipynb")
        assert parameter in notebooks.read(path.stem).parameters, f"-p {number}.{parameter}"
        if parameter == "overrides":
            kind = {"04": CodecSettings, "05": LanguageModelSettings}[number]
            assert profiles.settings(kind, path.stem, "mini", yaml.safe_load(value)) != profiles.settings(kind, path.stem, "mini")
