"""Exports a run to AudioCraft's own format, with a model card: ``python -m music_training.musicgen.export RUN --out DIR``.

``MusicGen.get_pretrained(DIR)`` (of a language model) and ``CompressionModel.get_pretrained(DIR)`` give the same audio
as the run. ``--push OWNER/NAME`` says what would go to the Hugging Face hub, and with ``--yes`` sends it; the token
comes from ``$HF_TOKEN`` alone. Without ``--private`` the repository is public.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import files, runs
from ..errors import UserError, run_command
from . import cards
from .finetune import CODEC, LANGUAGE_MODEL

if TYPE_CHECKING:
    from omegaconf import DictConfig

CARD = "README.md"


def export(reference: str, out: Path | str) -> Path:
    """Write a run, or a weights folder, to the folder ``out`` (atomically; an export that is there is replaced).

    A language model's folder holds ``state_dict.bin``, its codec as ``compression_state_dict.bin`` (a published codec: by
    name) and the card ``README.md``; adapters are added to the weights. UserError where there is nothing to export, or
    where ``out`` holds something else.
    """
    from . import audiocraft_compat
    from .models import is_weights_folder, read_config

    out = Path(out).expanduser().resolve()
    folder = files.absolute(reference)
    if not is_weights_folder(folder):
        folder = runs.find(reference) / runs.CHECKPOINTS / "best"
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / CODEC).is_file())):
        raise UserError(f"{out}: is there and is no export; give another folder")
    config = read_config(folder)
    audiocraft_compat.install()
    with files.atomic(out) as temporary:
        temporary.mkdir()
        if config.solver == "compression":
            _write_codec(str(folder), temporary)
        else:
            _write_language_model(folder, temporary)
            _write_codec(str(config.compression_model_checkpoint), temporary)
        (temporary / CARD).write_text(cards.card(folder, config), encoding="utf-8")
    return out


def push(folder: Path | str, repository: str, *, send: bool = False, private: bool = False) -> list[tuple[str, int]]:
    """The files of an export and their bytes; with ``send`` they are also uploaded to ``repository`` (``owner/name``).

    UserError without ``$HF_TOKEN``, for a folder that is no export, and for what the hub refuses.
    """
    folder = Path(folder).expanduser().resolve()
    if not (folder / CODEC).is_file():
        raise UserError(f"{folder}: no export here; make one with python -m music_training.musicgen.export RUN --out {folder}")
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise UserError(f"repository {repository!r}: write it as owner/name")
    content = [(path.name, path.stat().st_size) for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    if not send:
        return content
    token = os.environ.get("HF_TOKEN")
    if not token:
        raise UserError("no $HF_TOKEN: make a token with write access in your account's settings and set the variable")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        hub.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=[name for name, _ in content],
            commit_message="Upload a model exported in AudioCraft's format",
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(f"{repository}: the hub refuses ({' '.join(str(error).split())[:300].replace(token, '***')})") from None
    return content


def _write_language_model(folder: Path, target: Path) -> None:
    from .models import load_language_model

    model = load_language_model(folder)
    _save(model.state_dict(), model.cfg, target / LANGUAGE_MODEL)


def _write_codec(reference: str, target: Path) -> None:
    import audiocraft
    import torch

    from .models import is_weights_folder, load_codec, read_config

    place = files.absolute(reference)
    if is_weights_folder(place):
        _save(load_codec(place).state_dict(), read_config(place), target / CODEC)
    elif place.exists():
        raise UserError(f"{place}: a codec in another format, which an export cannot hold; use a run's codec or a published one's name")
    else:
        named = {"pretrained": reference.removeprefix("//pretrained/"), "exported": True, "version": audiocraft.__version__}
        torch.save(named, target / CODEC)


def _save(state: dict[str, Any], config: DictConfig, path: Path) -> None:
    import audiocraft
    import torch
    from omegaconf import OmegaConf

    config = config.copy()
    config.device = "cpu"
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    text = OmegaConf.to_yaml(config, resolve=True)
    torch.save({"best_state": weights, "xp.cfg": text, "version": audiocraft.__version__, "exported": True}, path)


def main() -> None:
    import argparse

    parser = argparse.ArgumentParser(
        prog="python -m music_training.musicgen.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", help="a run's name, or a weights folder; left out: DIR is pushed as it is")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder of the export")
    parser.add_argument("--push", default="", metavar="OWNER/NAME", help="a repository on the Hugging Face hub")
    parser.add_argument("--private", action="store_true", help="make the repository a private one")
    parser.add_argument("--yes", action="store_true", help="really send; without it --push only says what would be sent")
    arguments = parser.parse_args()
    if not arguments.model and not arguments.push:
        raise UserError("nothing to do: name a run to export, or give --push OWNER/NAME")
    if arguments.model:
        print(f"exported to {export(arguments.model, arguments.out)}")
    if arguments.push:
        for name, size in push(arguments.out, arguments.push, send=arguments.yes, private=arguments.private):
            print(f"  {size:>13,} bytes  {name}")
        done = "sent to" if arguments.yes else "dry run, nothing was sent (--yes sends it); this would go to"
        print(f"{done} {arguments.push}")


if __name__ == "__main__":
    run_command(main)
