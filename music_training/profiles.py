"""Profiles: a YAML of parameters per notebook, ``model_config/profiles/<name>.yaml``.

A notebook's parameters cell holds ``profile`` and its knobs, each ``None`` ("what the profile says"); :func:`settings`
resolves them: the settings class's own defaults, then the profile, then what the notebook or the command line gives.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, TypeVar

from . import config, files
from .errors import UserError

FOLDER = files.REPOSITORY / "model_config" / "profiles"
S = TypeVar("S", bound=config.Settings)


class Profile(config.Settings):
    """One profile: what it is for, the data set that it trains on, and its notebooks in order with their parameters.

    ``seconds`` is what each notebook may take on the machine that the profile is meant for, where that is known.
    """

    description: str
    dataset: str
    notebooks: dict[str, dict[str, Any] | None]
    seconds: dict[str, float] = {}


def names() -> list[str]:
    """The profiles there are."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read(name: str) -> Profile:
    """Read a profile by its name; UserError with the known names otherwise."""
    if name not in names():
        raise UserError(f"profile {name!r}: unknown{config.suggest(name, names())}")
    return config.load(Profile, FOLDER / f"{name}.yaml")


def settings(cls: type[S], notebook: str, profile: str, overrides: list[str] | None = None, **given: Any) -> S:
    """The settings of a notebook: ``given`` values that are not None, over the profile's, over the class's defaults.

    ``overrides`` are dotted ``key.sub=value`` texts and win over all.
    """
    content = dict(read(profile).notebooks.get(notebook) or {})
    content.update({name: value for name, value in given.items() if value is not None})
    return config.load(cls, content, overrides or (), name=f"{FOLDER.name}/{profile}.yaml, {notebook}")


def dataset(profile: str, audio_dir: str | None = None) -> str:
    """The name of the data set that 03-05 and 10 work on: the profile's, or one made from a person's own folder."""
    if not audio_dir:
        return read(profile).dataset
    folder = Path(audio_dir).expanduser().resolve()
    slug = re.sub(r"[^a-z0-9]+", "-", folder.name.lower()).strip("-") or "audio"
    return f"{slug}-{hashlib.sha256(str(folder).encode()).hexdigest()[:6]}"


def scope(profile: str, audio_dir: str | None = None) -> str:
    """Where the stamps of a profile on a data set lie, below ``outputs/.stages``."""
    return f"{profile}/{dataset(profile, audio_dir)}"
