"""A guard comes by an import path, and a wrong path is one line."""

import sys
import types

import pytest

from music_training import guard
from music_training.errors import UserError


def test_a_guard_is_made_by_the_factory_that_a_path_names(tmp_path, monkeypatch):
    made = []
    module = types.SimpleNamespace(make=lambda run, **options: made.append((run, options)) or "the guard")
    monkeypatch.setitem(sys.modules, "somewhere.watching", module)
    monkeypatch.setitem(sys.modules, "somewhere", types.SimpleNamespace(watching=module))
    assert guard.load("somewhere.watching:make", tmp_path, {"limit": 3}) == "the guard"
    assert made == [(tmp_path, {"limit": 3})]


@pytest.mark.parametrize("path", ["nowhere.at_all:make", "music_training.guard:nothing", "music_training.guard", ""])
def test_a_wrong_path_says_how_to_write_it(tmp_path, path):
    with pytest.raises(UserError, match=r"guard '.*': .*; write it as package.module:function"):
        guard.load(path, tmp_path)


def test_by_default_an_update_is_made():
    assert guard.Decision() == guard.Decision("step", None, 1.0, "")
