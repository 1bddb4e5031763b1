"""Begins with a model that exists: all weights, or only low-rank adapters of the transformer (LoRA), are trained.

``start_from`` names a published model (``facebook/musicgen-small``), a folder or run of this project, or a folder in
AudioCraft's exported form; :func:`fetch` turns it into weights folders under ``outputs/pretrained``, once. Its
architecture, conditioning and codec come with it. Files of foreign origin are read with ``weights_only=True``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from .. import files, runs, stages
from ..config import Settings
from ..errors import UserError

if TYPE_CHECKING:
    import torch
    from audiocraft.models.lm import LMModel
    from audiocraft.solvers.musicgen import MusicGenSolver
    from omegaconf import DictConfig
    from peft import LoraConfig

LANGUAGE_MODEL, CODEC = "state_dict.bin", "compression_state_dict.bin"  # AudioCraft's names
ARCHITECTURE = (
    "lm_model",
    "transformer_lm",
    "codebooks_pattern",
    "conditioners",
    "fuser",
    "classifier_free_guidance",
    "attribute_dropout",
)
TARGETS = r".*\.(out_proj|linear1|linear2)"  # the transformer's linear layers, and below its attentions' projections
PROJECTIONS = ["self_attn.in_proj_weight", "cross_attention.in_proj_weight"]
META_WEIGHTS = re.compile(r"(//pretrained/)?facebook/(musicgen|encodec|audiogen|magnet|multiband)")


class LoraSettings(Settings):
    """Low-rank adapters of the transformer: ``rank`` 0 trains all weights; ``alpha`` / ``rank`` scales their effect."""

    rank: int = Field(0, ge=0)
    alpha: float = Field(16.0, gt=0)


# What is begun with


def fetch(reference: str) -> dict[str, Any]:
    """Bring a model here: ``model`` (weights folder), ``codec`` (a reference), ``licence``, ``segment_seconds``.

    A stage: what was fetched before is not fetched again, and a changed local folder is. UserError where ``reference``
    is neither a run, nor a folder with a model, nor what the hub gives, and for models that this project cannot train.
    """
    ours = next((path for path in (files.absolute(reference), runs.folder() / reference / "ckpt" / "best") if _is_ours(path)), None)
    local = files.absolute(reference)
    if ours:
        from .models import read_config, weights_file

        if (ours / "adapter_config.json").is_file():
            raise UserError(f"{reference}: only adapters; export the run first, and begin with the exported folder")
        config = read_config(ours)
        inputs = [weights_file(ours)]

        def make(_: stages.Draft) -> stages.Made:
            about = {"model": files.relative(ours), "codec": str(config.compression_model_checkpoint)}
            return stages.Made([], {**about, **_about(reference, config)})
    else:
        inputs = [local / name for name in (LANGUAGE_MODEL, CODEC) if (local / name).is_file()]

        def make(_: stages.Draft) -> stages.Made:
            return _import(reference, local)

    return stages.run("fetch_model", make, scope="pretrained", params={"reference": reference}, inputs=inputs).result


def licence(reference: str) -> str:
    """The licence of a model's weights as far as it is known: of Meta's models, else from the folder's or the hub's card."""
    reference = reference.removeprefix("//pretrained/")
    if META_WEIGHTS.match(reference):
        return "CC-BY-NC-4.0 (Meta's published weights: no commercial use)"
    card = files.absolute(reference) / "README.md"
    if files.absolute(reference).exists():
        text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    else:
        try:
            from huggingface_hub import hf_hub_download

            text = Path(hf_hub_download(reference, "README.md")).read_text(encoding="utf-8", errors="replace")
        except (OSError, ValueError):
            text = ""
    found = re.search(r"\A---\n(?:.*\n)*?licen[sc]e(?:_name)?:\s*(.+)\n(?:.*\n)*?---", text)
    return found[1].strip() if found else "not stated; look at where it comes from"


def describe(pretrained: str, codec: str | None = None) -> str:
    """What a language model begins with, and the licences of weights that are not one's own, in a line."""
    if pretrained:
        about = fetch(pretrained)
        return f"begins with {pretrained} and its codec {about['codec']}; licence of these weights: {about['licence']}"
    if codec and not files.absolute(codec).exists():
        return f"begins with random weights on the tokens of {codec}; licence of that codec: {licence(codec)}"
    return "begins with random weights, on the tokens of a codec of one's own"


def expand(arguments: list[str]) -> list[str]:
    """Hydra overrides of a training, with what ``start_from=REFERENCE`` stands for put before them."""
    named = [text.partition("=")[2] for text in arguments if text.startswith("start_from=")]
    if not named or not named[-1] or named[-1] == "null":
        return arguments
    from omegaconf import OmegaConf

    from .models import read_config, weights_file

    about = fetch(named[-1].strip("'\""))
    folder = files.absolute(about["model"])
    config = read_config(folder)
    parts = {name: config[name] for name in ARCHITECTURE if config.get(name) is not None}
    sections = {name: OmegaConf.to_container(part, resolve=True) if OmegaConf.is_config(part) else part for name, part in parts.items()}
    given = [text for text in arguments if not text.startswith("start_from=")]
    chosen = [text for text in given if text.startswith(("model=", "conditioner="))]
    if chosen:
        raise UserError(f"{chosen[0]}: the architecture and the conditioning come with start_from={named[-1]}; leave it out")
    architecture = [f"++{key}={value}" for name, section in sections.items() for key, value in _flat(name, section)]
    codec = "compression_model_checkpoint=" + about["codec"]
    start = [f"start_from={about['model']}", f"start_digest={files.digest(weights_file(folder))[:16]}"]
    return ["conditioner=none", *architecture, codec, *given, *start]


# In the solver


def begin(solver: MusicGenSolver) -> None:
    """Give a solver the weights that its configuration names (``start_from``), and adapters where it asks for them (``lora``)."""
    from audiocraft.solvers import builders
    from safetensors.torch import load_file

    cfg = solver.cfg
    if cfg.start_from:
        state = load_file(files.absolute(cfg.start_from) / "model.safetensors", device=str(solver.device))
        missing, unexpected = solver.model.load_state_dict(state, strict=False)
        if missing or unexpected:
            raise UserError(f"start_from={cfg.start_from}: not the weights of this architecture (first: {(missing + unexpected)[0]})")
    if cfg.lora.rank:
        if not cfg.start_from:
            raise UserError("lora.rank: adapters need a model that they adapt; give start_from=REFERENCE")
        adapt(solver.model, cfg.lora.rank, cfg.lora.alpha)
        trained = [parameter for parameter in solver.model.parameters() if parameter.requires_grad]
        solver.optimizer = builders.get_optimizer(trained, cfg.optim)
        solver.lr_scheduler = builders.get_lr_scheduler(solver.optimizer, cfg.schedule, solver.total_updates)
        solver.best_state.update("model", solver.model)  # its weights have other names now, under which a state is restored


# Adapters


def lora_config(rank: int, alpha: float) -> LoraConfig:
    """peft's configuration of the adapters: attention projections and feed-forward layers of every block."""
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=TARGETS, target_parameters=PROJECTIONS)


def adapt(model: LMModel, rank: int, alpha: float) -> int:
    """Put adapters into a language model's transformer and freeze all else; they change nothing until they are trained.

    Returns the number of trainable parameters.
    """
    import peft

    model.requires_grad_(False)
    peft.get_peft_model(model.transformer, lora_config(rank, alpha))
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def adapter_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The adapters' tensors of a language model's state, under the names that peft writes; empty where there are none."""
    return {
        "base_model.model." + name.removeprefix("transformer.").replace(".default.", "."): tensor
        for name, tensor in state.items()
        if ".lora_" in name
    }


def merge(model: LMModel, folder: Path) -> None:
    """Add the adapters of ``folder`` (as peft writes them) to a language model's weights ``W``: ``W + alpha / rank * B A``."""
    import peft
    from peft.tuners.lora import LoraLayer

    plain = model.transformer.state_dict()
    wrapped = peft.PeftModel.from_pretrained(model.transformer, str(folder))
    layers = {name: module for name, module in wrapped.base_model.model.named_modules() if isinstance(module, LoraLayer)}
    for name, layer in layers.items():
        parameter = f".{getattr(layer, 'parameter_name', 'weight')}"
        place = name.replace(".base_layer", "") + parameter
        plain[place] = plain[place] + layer.get_delta_weight("default").to(plain[place])
    for name, layer in sorted(layers.items(), key=lambda item: -item[0].count(".")):  # the inner ones first
        parent, _, leaf = name.rpartition(".")
        setattr(wrapped.base_model.model.get_submodule(parent), leaf, layer.base_layer)
    model.transformer.load_state_dict(plain)


# Reading AudioCraft's exported form


def _import(reference: str, local: Path) -> stages.Made:
    from omegaconf import OmegaConf

    from .models import save_weights

    package = read_package(reference, local, LANGUAGE_MODEL)
    config = OmegaConf.create(package["xp.cfg"])
    _refuse_what_cannot_be_trained(reference, config)
    folder = files.outputs_root() / "pretrained" / (re.sub(r"[^A-Za-z0-9.-]+", "-", reference).strip("-") or "model")
    packed = read_package(reference, local, CODEC)
    if "pretrained" in packed:
        codec = f"//pretrained/{packed['pretrained']}"
        made = []
    else:
        codec = files.relative(folder / "codec")
        save_weights(folder / "codec", packed["best_state"], OmegaConf.create(packed["xp.cfg"]))
        made = [folder / "codec" / "model.safetensors"]
    config.compression_model_checkpoint = codec
    state = {name: tensor.float() for name, tensor in package["best_state"].items()}
    save_weights(folder / "lm", state, config)
    about = {"model": files.relative(folder / "lm"), "codec": codec}
    return stages.Made([*made, folder / "lm" / "model.safetensors"], {**about, **_about(reference, config)})


def read_package(reference: str, local: Path, name: str) -> dict[str, Any]:
    """The content of one of AudioCraft's exported files, from a local folder or the hub; never an object, only tensors and values."""
    import pickle

    import torch

    path = local / name
    if local.exists() and not path.is_file():
        raise UserError(f"{local}: no model here (neither {name} nor a weights folder of this project)")
    if not local.exists():
        from huggingface_hub import hf_hub_download

        try:
            path = Path(hf_hub_download(reference, name))
        except (OSError, ValueError) as error:  # what huggingface_hub raises for an unknown or unreachable model
            reason = str(error).splitlines()[0]
            raise UserError(f"{reference!r}: neither a run or folder here nor a model that the hub gives ({reason})") from None
    try:
        package = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError):
        raise UserError(f"{path}: not an exported model, or one that holds objects; such a file is not opened") from None
    if not isinstance(package, dict) or not {"xp.cfg", "best_state"} <= set(package) and "pretrained" not in package:
        raise UserError(f"{path}: not what AudioCraft exports (xp.cfg and best_state)")
    return package


def _refuse_what_cannot_be_trained(reference: str, config: DictConfig) -> None:
    kinds = [conditioner.get("model") for name, conditioner in (config.get("conditioners") or {}).items() if name != "args"]
    other = [kind for kind in kinds if kind not in ("t5", "lut")]
    if config.lm_model != "transformer_lm" or other:
        raise UserError(f"{reference}: conditioned on {', '.join(other) or config.lm_model}; this project trains text models only")
    if config.get("channels", 1) != 1 or config.get("interleave_stereo_codebooks", {}).get("use"):
        raise UserError(f"{reference}: a stereo model; this project's segments are mono: choose a mono one")


def _about(reference: str, config: DictConfig) -> dict[str, Any]:
    return {"licence": licence(reference), "segment_seconds": float(config.dataset.segment_duration), "reference": reference}


def _is_ours(path: Path) -> bool:
    from .models import is_weights_folder

    return is_weights_folder(path)


def _flat(name: str, value: Any) -> list[tuple[str, str]]:
    """A configuration's leaves as Hydra writes them; dictionaries without content are leaves too."""
    if isinstance(value, dict) and value:
        return [leaf for key, item in value.items() for leaf in _flat(f"{name}.{key}", item)]
    return [(name, _written(value))]


def _written(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_written, value)) + "]"
    return repr(value) if isinstance(value, int | float) else "'" + str(value).replace("\\", "\\\\").replace("'", "\\'") + "'"
