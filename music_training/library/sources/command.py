"""The command that every download source has: its settings as options, a forecast, and the download itself.

:func:`forecast_of` gives the same forecast for a notebook of a profile, for a dry run of the whole pipeline.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from ... import config, parallel, profiles, stages
from .. import catalogue, forecast


def run(
    description: str,
    name: str,
    cls: type[config.Settings],
    download: Callable[..., stages.StageResult],
    rows: Callable[[Any], list[forecast.Row]],
    arguments: list[str] | None = None,
) -> int:
    """Parse the options (one per field of ``cls``; lists by commas), show the forecast, then download unless ``--dry-run``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--dataset", default="", help="name of the catalogue (default: the profile's, else the source's)")
    parser.add_argument("--profile", default="", help="take what is not given here from this profile")
    parser.add_argument("--dry-run", action="store_true", help="show bytes, files and hours, and stop")
    parser.add_argument("--force", action="store_true", help="do it although it is up to date")
    for field, info in cls.model_fields.items():
        option = f"--{field.replace('_', '-')}"
        if info.annotation is bool:
            parser.add_argument(option, dest=field, action="store_const", const="true", help=f"default: {info.default}")
        else:
            shown = ",".join(map(str, info.default)) if isinstance(info.default, tuple) else info.default
            parser.add_argument(option, dest=field, metavar=field.upper(), help=f"default: {shown!r}")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings as dotted overrides")
    given = vars(parser.parse_args(arguments))
    content = {field: _value(cls, field, given[field]) for field in cls.model_fields if given[field] is not None}
    if given["profile"]:
        settings = profiles.settings(cls, NOTEBOOKS[name], given["profile"], given["overrides"], **content)
    else:
        settings = config.load(cls, content, given["overrides"], name="the command line")
    dataset = given["dataset"] or (profiles.read(given["profile"]).dataset if given["profile"] else name)
    scope = f"{given['profile']}/{dataset}" if given["profile"] else f"download/{dataset}"
    if given["dry_run"]:
        print("\n".join(forecast.lines(rows(settings))))
        return 0
    result = download(dataset, scope, settings, force=given["force"])
    print(", ".join(f"{key}: {value}" for key, value in result.result.items() if not isinstance(value, dict)))
    return 0


NOTEBOOKS = {
    "fma": "02a_download_fma",
    "jamendo": "02b_download_jamendo",
    "edm": "02c_download_edm",
    "stems_midi": "02d_download_stems_midi",
}


def forecast_of(notebook: str, profile: str, given: Mapping[str, Any] | None = None) -> list[forecast.Row]:
    """What a notebook of a profile will fetch and leave, for a dry run; empty for one that neither downloads nor segments.

    ``given`` are the notebook's parameters as they would be passed to it (None: as the profile says). Nothing is
    fetched for it: without metadata or a catalogue the figures are upper bounds, or missing.
    """
    given = dict(given or {})
    overrides = given.pop("overrides", None)
    if notebook == "03_segment_audio":
        path = catalogue.path_of(profiles.dataset(profile, given.get("audio_dir")))
        tracks = catalogue.read(path) if path.is_file() else []
        return [forecast.segmentation(sum(track.duration for track in tracks), len(tracks), parallel.cores())] if tracks else []
    if notebook not in NOTEBOOKS.values():
        return []
    name = next(source for source, known in NOTEBOOKS.items() if known == notebook)
    module = importlib.import_module(f"{__package__}.{name}")
    cls = getattr(module, f"{name.title().replace('_', '')}Settings")
    known = {key: value for key, value in given.items() if key in cls.model_fields}
    return module.forecast_rows(profiles.settings(cls, notebook, profile, overrides, **known))


def _value(cls: type[config.Settings], field: str, text: str) -> Any:
    """An option's text as its field wants it: lists by commas, the rest as YAML reads it."""
    if str(cls.model_fields[field].annotation).startswith("tuple"):
        return [config.parse_yaml(item.strip(), field) for item in text.split(",") if item.strip()]
    if cls.model_fields[field].annotation is str:
        return text
    return yaml.safe_load(text) if text.startswith("{") else config.parse_yaml(text, field)
