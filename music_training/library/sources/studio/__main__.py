"""Command of the studio library."""

from __future__ import annotations

import argparse

from .... import config, errors, profiles
from . import StudioSettings, compose_library

NOTEBOOK = "02_compose_library"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m music_training.library.sources.studio",
        description="Compose the studio library: synthetic electronic music with ground truth, and dialogues.",
    )
    parser.add_argument("--profile", default="mini", help="whose settings to take (default: mini)")
    parser.add_argument("--dataset", help="name of the data set (default: the profile's)")
    parser.add_argument("--workers", type=int, help="processes (default: all cores)")
    parser.add_argument("--force", action="store_true", help="compose everything again")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=f"settings: {', '.join(StudioSettings.model_fields)}")
    given = parser.parse_args()
    settings = profiles.settings(StudioSettings, NOTEBOOK, given.profile, given.overrides, workers=given.workers)
    result = compose_library(settings, given.dataset or profiles.dataset(given.profile), profiles.scope(given.profile), given.force)
    print(config.dump({name: result.result[name] for name in ("tracks", "dialogues", "minutes")}).replace("\n", ", ").rstrip(", "))


if __name__ == "__main__":
    errors.run_command(main)
