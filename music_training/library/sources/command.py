"""The command that every download source has: its settings as options, a forecast, and the download itself."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import yaml

from ... import config, profiles, stages
from .. import forecast


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


def _value(cls: type[config.Settings], field: str, text: str) -> Any:
    """An option's text as its field wants it: lists by commas, the rest as YAML reads it."""
    if str(cls.model_fields[field].annotation).startswith("tuple"):
        return [config.parse_yaml(item.strip(), field) for item in text.split(",") if item.strip()]
    if cls.model_fields[field].annotation is str:
        return text
    return yaml.safe_load(text) if text.startswith("{") else config.parse_yaml(text, field)
