"""``python -m training_checks.listening_page write`` and ``analyse FILE...``: the page, and what its ratings say."""

from __future__ import annotations

import argparse

from music_training import files
from music_training.errors import run_command

from . import analysis
from .page import write_index


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m training_checks.listening_page", description="The listening page.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("write", help="gather all cards below outputs/samples into index.html")
    analyse = commands.add_parser("analyse", help="what exported ratings say, with confidence intervals and p-values")
    analyse.add_argument("files", nargs="*", metavar="FILE", help="exports, JSON or CSV (default: those in outputs/samples/ratings)")
    analyse.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.command == "write":
        print(write_index(files.outputs_root() / "samples"))
        return 0
    return analysis.analyse_files(args.files or None).print(args.json)


if __name__ == "__main__":
    run_command(main)
