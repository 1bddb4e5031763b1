"""Base models: demucs' published ones, files, runs of this project, or a new one; and the file format that all share.

The format is demucs' own for the hub: a safetensors file whose metadata holds the class and its arguments, so that
``demucs.hf.load_safetensors_model`` opens it. Older ``.th`` packages are read with ``weights_only=True``.
"""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from demucs.htdemucs import HTDemucs

from .. import files, runs
from ..errors import UserError
from .config import HtDemucs, LoraDemucsSettings
from .masks import start_as_masks

MODEL = "model.safetensors"  # of a run folder
KLASS = "demucs.htdemucs.HTDemucs"
PUBLISHED = ("htdemucs", "htdemucs_6s", "htdemucs_ft")
# What a pretrained model's weights fix: setting -> why
FIXED = {
    "channels": "it is the width of its layers",
    "channels_time": "it is the width of its time branch",
    "growth": "it is the width of its layers",
    "depth": "it is the number of its layers",
    "nfft": "its first layers and its frequency embedding belong to that resolution",
    "dconv_mode": "it says which layers have residual branches",
    "bottom_channels": "it is the width of its transformer",
    "cac": "its last layers give either complex spectra or magnitudes",
    "t_layers": "it is the number of its transformer's layers",
    "t_heads": "it is how its attention weights are divided",
}
SCRATCH = ("channels", "channels_time", "growth", "depth", "nfft", "dconv_mode", "bottom_channels", "cac", "t_layers", "t_heads")
SCRATCH += ("t_dropout", "use_train_segment")
PHASE_OF_MIXTURE = {"wiener_iters": -1, "end_iters": -1}


def build(settings: LoraDemucsSettings) -> HTDemucs:
    """The base model of ``settings``, with the sources that it was trained on (from scratch: those of ``dset``)."""
    wanted = settings.htdemucs
    if settings.base == "scratch":
        given = {name: getattr(wanted, name) for name in SCRATCH if getattr(wanted, name) is not None}
        if wanted.cac is False:
            given |= PHASE_OF_MIXTURE
        if "growth" in given:
            given["growth"] = _growth(wanted)
        model = HTDemucs(
            list(settings.dset.sources),
            samplerate=settings.dset.sample_rate or 44100,
            audio_channels=settings.dset.channels or 2,
            segment=Fraction(wanted.segment or 10).limit_denominator(100_000),
            **given,
        )
        _refuse_impossible(model, wanted)
        if wanted.start == "masks":
            start_as_masks(model)
        return model
    model = load(settings.base)
    refuse_changes(model, settings)
    if wanted.segment:
        model.segment = Fraction(wanted.segment).limit_denominator(100_000)
        _arguments(model)["segment"] = model.segment
    if wanted.use_train_segment is not None:
        model.use_train_segment = _arguments(model)["use_train_segment"] = wanted.use_train_segment
    if wanted.t_dropout is not None and model.crosstransformer is not None:
        for module in model.crosstransformer.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = wanted.t_dropout
            elif isinstance(module, torch.nn.MultiheadAttention):
                module.dropout = wanted.t_dropout
    return model


def refuse_changes(model: HTDemucs, settings: LoraDemucsSettings) -> None:
    """UserError that names every setting which the weights of a trained base do not allow, with the reason."""
    own = {**_defaults(), **_arguments(model)}
    faults = [
        f"htdemucs.{name}={value}: {settings.base} has {own[name]}, and its weights fix it: {reason}; leave it out, or train from scratch"
        for name, reason in FIXED.items()
        if (value := getattr(settings.htdemucs, name)) is not None and value != own[name]
    ]
    if settings.htdemucs.hop_length not in (None, model.hop_length):
        faults.append(
            f"htdemucs.hop_length={settings.htdemucs.hop_length}: {settings.base} has {model.hop_length} (a quarter of nfft {model.nfft})"
        )
    if settings.htdemucs.start != "random":
        faults.append(f"htdemucs.start={settings.htdemucs.start}: {settings.base} is trained; only base=scratch has a start")
    for name, have in (("sample_rate", model.samplerate), ("channels", model.audio_channels)):
        value = getattr(settings.dset, name)
        if value not in (None, have):
            faults.append(f"dset.{name}={value}: {settings.base} has {have}; leave it out, files are converted to what the model hears")
    if faults:
        raise UserError("\n".join(faults))


def load(name: str) -> HTDemucs:
    """A trained HTDemucs by the name of a published model, a file, a run folder or a run's name."""
    path = Path(name).expanduser()
    candidates = [path, path / MODEL, runs.folder() / name / MODEL, files.outputs_root() / name]
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found:
        return read(found)
    if path.suffix or "/" in name and not name.startswith("hf://"):
        raise UserError(f"base {name!r}: no such file or run")
    return _published(name)


def read(path: Path) -> HTDemucs:
    """Read a model file, ``.safetensors`` or ``.th``; UserError where it holds anything but an HTDemucs."""
    if path.suffix == ".safetensors":
        try:
            with safetensors.safe_open(str(path), framework="pt") as content:
                about = content.metadata() or {}
                state = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (not a mapping)
        except safetensors.SafetensorError as error:
            raise UserError(f"{path}: not a readable safetensors file ({error})") from None
        if about.get("klass") != KLASS:
            raise UserError(f"{path}: holds {about.get('klass') or 'no model description'}; an HTDemucs is needed")
        return _assemble(path, _decoded(json.loads(about["args"])), _decoded(json.loads(about["kwargs"])), state)
    try:
        with torch.serialization.safe_globals([HTDemucs, Fraction]):
            package = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for what is no checkpoint
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: cannot be read without executing what is in it ({first}); give a .safetensors file") from None
    if not isinstance(package, dict) or package.get("klass") is not HTDemucs:
        raise UserError(f"{path}: not a package of demucs that holds an HTDemucs")
    return _assemble(path, package["args"], package["kwargs"], package["state"])


def write(model: HTDemucs, path: Path, sources: list[str] | None = None, about: dict[str, str] | None = None) -> Path:
    """Write a model (without adapters) as a safetensors file that demucs opens (atomically)."""
    args, kwargs = arguments(model, sources)
    metadata = {"klass": KLASS, "args": json.dumps(_encoded(args)), "kwargs": json.dumps(_encoded(kwargs)), **(about or {})}
    state = {name: value.detach().to("cpu").contiguous().clone() for name, value in model.state_dict().items()}
    with files.atomic(path) as temporary:
        safetensors.torch.save_file(state, str(temporary), metadata)
    return path


def write_package(model: HTDemucs, path: Path, sources: list[str] | None = None) -> Path:
    """Write a ``.th`` package, which ``demucs -n NAME --repo FOLDER`` opens (atomically)."""
    args, kwargs = arguments(model, sources)
    state = {name: value.detach().to("cpu").clone() for name, value in model.state_dict().items()}
    with files.atomic(path) as temporary:
        torch.save({"klass": HTDemucs, "args": args, "kwargs": kwargs, "state": state, "training_args": {}}, temporary)
    return path


def arguments(model: HTDemucs, sources: list[str] | None = None) -> tuple[list, dict[str, Any]]:
    """What HTDemucs has to be called with to be this model: positional arguments (none) and named ones."""
    kwargs = dict(_arguments(model))
    kwargs.update(sources=list(sources or model.sources), segment=Fraction(model.segment).limit_denominator(1_000_000))
    return [], kwargs


def _arguments(model: HTDemucs) -> dict[str, Any]:
    """The named arguments of a model, the positional ones among them; changes to it stay with the model."""
    args, kwargs = model._init_args_kwargs
    if args:
        kwargs = {**dict(zip(_names(), args, strict=False)), **kwargs}
        model._init_args_kwargs = ((), kwargs)
    return kwargs


def _names() -> list[str]:
    import inspect

    return list(inspect.signature(HTDemucs.__init__.__wrapped__).parameters)[1:]


def _defaults() -> dict[str, Any]:
    import inspect

    parameters = inspect.signature(HTDemucs.__init__.__wrapped__).parameters
    return {name: item.default for name, item in parameters.items() if item.default is not item.empty}


def _assemble(path: Path, args: list, kwargs: dict[str, Any], state: dict[str, torch.Tensor]) -> HTDemucs:
    known = set(_names())
    model = HTDemucs(*args, **{name: value for name, value in kwargs.items() if name in known})
    try:
        model.load_state_dict({name: value.float() if value.is_floating_point() else value for name, value in state.items()})
    except RuntimeError as error:
        raise UserError(f"{path}: its weights do not fit its description ({str(error).splitlines()[-1].strip()})") from None
    return model.eval()


def _published(name: str) -> HTDemucs:
    from demucs import hf, pretrained

    try:
        found = hf.get_hf_model(name.removeprefix("hf://"))
    except Exception as error:  # no network, or no such name: the hub's client raises many kinds
        urls = pretrained._parse_remote_files(pretrained.REMOTE_ROOT / "files.txt")
        if name not in urls:
            raise UserError(
                f"base {name!r}: no file, no run, and not found on the hub ({type(error).__name__}); "
                f"demucs publishes {', '.join(PUBLISHED)}; without a network give a file"
            ) from None
        return read(_download(name, urls[name]))
    if len(found.models) > 1:
        raise UserError(f"base {name!r}: a bag of {len(found.models)} models; adapters change one: give htdemucs or a model file")
    if not isinstance(found.models[0], HTDemucs):
        raise UserError(f"base {name!r}: a {type(found.models[0]).__name__}; adapters are for HTDemucs")
    return found.models[0]


def _download(name: str, url: str) -> Path:
    target = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(target), hash_prefix=target.stem.rpartition("-")[2])
        except OSError as error:
            raise UserError(f"base {name!r}: {url} cannot be fetched ({error}); without a network give a file") from None
    return target


def _growth(wanted: HtDemucs) -> int | float:
    """The growth as HTDemucs takes it: the width of its transformer must not become a float."""
    if float(wanted.growth).is_integer():
        return int(wanted.growth)
    if wanted.t_layers != 0 and not wanted.bottom_channels:
        raise UserError(
            f"htdemucs.growth={wanted.growth:g}: the transformer's width would be no whole number; set htdemucs.bottom_channels"
        )
    return wanted.growth


def _refuse_impossible(model: HTDemucs, wanted: HtDemucs) -> None:
    if wanted.hop_length not in (None, model.hop_length):
        raise UserError(
            f"htdemucs.hop_length={wanted.hop_length}: HTDemucs has windows that overlap by three quarters; "
            f"with nfft {model.nfft} it is {model.hop_length}"
        )
    least = 32 * 4 ** (model.depth - 1)
    joined = model.nfft == least // 2 and model.crosstransformer is None  # the last layer makes one of eight frequencies
    if model.nfft < least and not joined:
        raise UserError(
            f"htdemucs.nfft={model.nfft}: {model.depth} layers, each a quarter of the frequencies, need at least {least}, "
            f"or {least // 2} without a transformer"
        )


def _encoded(value: Any) -> Any:
    if isinstance(value, Fraction):
        return {"_type": "fraction", "numerator": value.numerator, "denominator": value.denominator}
    if isinstance(value, dict):
        return {name: _encoded(item) for name, item in value.items()}
    return [_encoded(item) for item in value] if isinstance(value, (list, tuple)) else value


def _decoded(value: Any) -> Any:
    if isinstance(value, dict):
        if value.get("_type") == "fraction":
            return Fraction(value["numerator"], value["denominator"])
        return {name: _decoded(item) for name, item in value.items()}
    return [_decoded(item) for item in value] if isinstance(value, list) else value
