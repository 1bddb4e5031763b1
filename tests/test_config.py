"""Strict configuration: every fault at once with its place, numbers as people write them, overrides, the round trip."""

from typing import Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from music_training import config
from music_training.errors import UserError


class Optimizer(config.Settings):
    lr: float = Field(1e-3, gt=0)
    name: Literal["adam", "sgd"] = "adam"


class Settings(config.Settings):
    epochs: int = Field(1, ge=1)
    text: str = "x"
    flag: bool = False
    optimizer: Optimizer = Optimizer()
    second: Optimizer | None = None
    names: list[str] = []


class Needy(config.Settings):
    path: str


def faults(source, overrides=(), cls=Settings, **options):
    with pytest.raises(config.ConfigError) as caught:
        config.load(cls, source, overrides, **options)
    assert isinstance(caught.value, UserError)
    assert str(caught.value).splitlines() == caught.value.errors
    return caught.value.errors


def test_all_faults_at_once_with_file_key_value_and_suggestion(tmp_path):
    path = tmp_path / "codec.yaml"
    path.write_text("epochs: 0\noptimzer: {}\noptimizer:\n  lr_: 1\n  name: adm\n")
    found = faults(path)
    assert len(found) == 4
    text = "\n".join(found)
    assert f"{path}: optimzer: unknown key; did you mean 'optimizer'?" in text
    assert f"{path}: optimizer.lr_: unknown key; did you mean 'lr'?" in text
    assert "epochs: input should be greater than or equal to 1 (got 0)" in text
    assert "optimizer.name" in text and "'adm'" in text


def test_a_key_like_nothing_lists_what_is_known():
    assert faults({"zzzz": 1})[0].endswith("; known: epochs, flag, names, optimizer, second, text")


def test_suggestion_inside_an_optional_section():
    assert faults({"second": {"nam": "adam"}}, name="f")[0] == "f: second.nam: unknown key; did you mean 'name'?"


def test_missing_key_is_named():
    assert faults({}, cls=Needy, name="f") == ["f: path: missing"]


@pytest.mark.parametrize("text, value", [("1e-4", 1e-4), ("1E5", 1e5), ("-2e+3", -2e3), (".5e1", 5.0), ("1.5e-3", 1.5e-3), ("3", 3)])
def test_numbers_as_people_write_them(text, value):
    assert config.parse_yaml(f"x: {text}", "f") == {"x": value}
    assert isinstance(config.parse_yaml(text, "f"), type(value))


@pytest.mark.parametrize("text", ["1e", "e4", "1e-4x", "'1e-4'", "abc", "1-4"])
def test_texts_stay_texts(text):
    assert isinstance(config.parse_yaml(text, "f"), str)


def test_a_key_may_stand_only_once():
    with pytest.raises(config.ConfigError, match=r"f.yaml:3: not valid YAML: key 'a' stands twice"):
        config.parse_yaml("a: 1\nb: 2\na: 3\n", "f.yaml")


@pytest.mark.parametrize("content, words", [("a: [1", "not valid YAML"), ("- 1\n- 2\n", "expected a mapping"), ("7", "expected a mapping")])
def test_what_is_no_mapping_is_refused(tmp_path, content, words):
    path = tmp_path / "f.yaml"
    path.write_text(content)
    assert words in faults(path)[0] and str(path) in faults(path)[0]


def test_empty_file_is_all_defaults_and_a_missing_one_is_an_error(tmp_path):
    (tmp_path / "empty.yaml").write_text("")
    assert config.load(Settings, tmp_path / "empty.yaml") == Settings()
    assert faults(tmp_path / "none.yaml") == [f"{tmp_path / 'none.yaml'}: no such file"]


def test_overrides_are_dotted_yaml_and_leave_the_source_alone():
    source = {"optimizer": {"lr": 0.5}, "epochs": 2}
    made = config.load(Settings, source, ["optimizer.lr=1e-4", "second.name=sgd", "names=[a, b]", "text='7'"])
    assert (made.optimizer.lr, made.second.name, made.names, made.text, made.epochs) == (1e-4, "sgd", ["a", "b"], "7", 2)
    assert source == {"optimizer": {"lr": 0.5}, "epochs": 2}


def test_an_override_adds_to_a_list():
    source = {"names": ["a"]}
    assert config.load(Settings, source, ["names+=[b, c]", "names+=[d]"]).names == ["a", "b", "c", "d"]
    assert config.load(Settings, {}, ["names+=[b]"]).names == ["b"] and source == {"names": ["a"]}
    for text in ("names+=b", "epochs+=[3]"):
        assert "adds a list to a list; write it as" in faults({"names": ["a"], "epochs": 2}, [text])[0]


@pytest.mark.parametrize("text", ["epochs", "=3", ""])
def test_an_override_without_key_or_value_is_refused(text):
    assert "write it as key.sub=value" in faults({}, [text])[0]


def test_a_wrong_override_has_the_same_message_as_a_wrong_key():
    assert "did you mean 'epochs'?" in faults({}, ["epoch=3"])[0]


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        Settings().epochs = 3


def test_text_does_not_become_a_list_nor_a_mapping():
    assert faults({"names": "a"}) and faults({"optimizer": "adam"}) and faults({"epochs": 1.5})


settings = st.builds(
    Settings,
    epochs=st.integers(1, 10**9),
    text=st.text(st.characters(blacklist_categories=["Cs"])),
    flag=st.booleans(),
    optimizer=st.builds(Optimizer, lr=st.floats(1e-30, 1e30), name=st.sampled_from(["adam", "sgd"])),
    second=st.none() | st.builds(Optimizer),
    names=st.lists(st.text("ab:-# '\"\n{}[]&*!|>%@`0123456789.eE_", max_size=8), max_size=4),
)


@given(settings)
def test_what_is_saved_is_what_is_loaded(made):
    text = config.dump(made.model_dump(mode="json"))
    assert config.load(Settings, config.parse_yaml(text, "f")) == made
    assert yaml.safe_load(text) is not None


def test_save_writes_a_file_that_loads(tmp_path):
    made = Settings(epochs=7, text="ä: b", optimizer=Optimizer(lr=1e-5))
    config.save(made, tmp_path / "deep" / "config.yaml")
    assert config.load(Settings, tmp_path / "deep" / "config.yaml") == made
