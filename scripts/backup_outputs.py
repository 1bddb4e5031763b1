#!/usr/bin/env python
"""Bring finished outputs to another place, and back on a new pod, so that the pipeline goes on there.

python scripts/backup_outputs.py backup --hub me/my-music          # a private repository of the Hugging Face hub ($HF_TOKEN)
python scripts/backup_outputs.py backup --rsync nas:backups/music  # or a folder, here or by ssh
python scripts/backup_outputs.py restore --hub me/my-music
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from music_training import backup
from music_training.errors import run_command


def main(argv: list[str] | None = None) -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["backup", "restore"])
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--hub", metavar="USER/NAME", help="a repository of the hub, private unless --public; made where it is missing")
    place.add_argument("--rsync", metavar="TARGET", help="a folder, or host:folder")
    parser.add_argument("--public", action="store_true", help="make a new repository public: mind the licences of your music")
    parser.add_argument("--training-state", action="store_true", help="also what a finished training could go on from (large)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be sent")
    parser.add_argument("--overwrite", action="store_true", help="restore: also over files that are here with another content")
    arguments = parser.parse_args(argv)
    target = backup.open_place(arguments.hub, arguments.rsync, arguments.public)
    if arguments.action == "backup":
        backup.backup(target, arguments.training_state, arguments.dry_run)
    else:
        backup.restore(target, arguments.overwrite)


if __name__ == "__main__":
    run_command(main)
