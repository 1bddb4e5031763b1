#!/usr/bin/env python
"""Trains a system of music_training: ``python scripts/train.py --config model_config/edm_structure.yaml key=value ...``.

The configuration's ``system`` (or the first argument) says which; all further arguments are those of
``python -m music_training.<system> train``. Several processes: ``torchrun --nproc_per_node N scripts/train.py ...``.
The stability monitor looks before every update (``--no-monitor``: nobody does); its log is ``logs/stability.jsonl``.
"""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from music_training import config
from music_training.errors import UserError, run_command

SYSTEMS = ("edm_structure", "lora_demucs", "emotion_bridges")  # those that train on the shared trainer


def main() -> int | None:
    """Hand the command line to the system that it names."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__.strip())
        print(f"\nsystems: {', '.join(SYSTEMS)}")
        return 0
    if arguments[0] in SYSTEMS:
        system, arguments = arguments[0], arguments[1:]
    else:
        system = next((config.read_yaml(Path(path)).get("system") for path in _configs(arguments)), None)
    if system not in SYSTEMS:
        raise UserError(f"which system? name one first ({', '.join(SYSTEMS)}) or say `system: ...` in the --config file; got {system!r}")
    wanted = "--no-monitor" not in arguments
    arguments = [word for word in arguments if word != "--no-monitor"]
    if wanted and not {"-h", "--help"} & set(arguments):
        from training_checks import stability_hooks

        stability_hooks.watch()
    return importlib.import_module(f"music_training.{system}.__main__").main(["train", *arguments])


def _configs(arguments: list[str]) -> list[str]:
    following = [after for option, after in zip(arguments, arguments[1:], strict=False) if option == "--config"]
    return following + [option.partition("=")[2] for option in arguments if option.startswith("--config=")]


if __name__ == "__main__":
    run_command(main)
