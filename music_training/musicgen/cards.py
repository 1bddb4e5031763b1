"""Model cards: what a model is, which music it learnt from and under which licences, how good it is, how to repeat it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import files, runs
from ..library import catalogue, licences
from ..library.manifests import egs_of
from .finetune import META_WEIGHTS, licence

if TYPE_CHECKING:
    from omegaconf import DictConfig

STRIDE = 18.0  # seconds; AudioCraft by itself loads no language model that was trained on less


def card(folder: Path, config: DictConfig) -> str:
    """The card (Markdown with the hub's header) of the weights folder ``folder`` with its configuration."""
    run = next((path for path in (folder, *folder.parents) if path.parent == runs.folder()), None)
    speaks = config.solver == "musicgen"
    begun = runs.read_metadata(run) if run else {}
    dataset = Path(str(config.datasource.train)).parent.name if config.get("datasource") else ""
    tracks = _tracks(dataset)
    base = _reference_of(config)
    sections = [
        _header(speaks, base, tracks),
        f"# {run.name if run else folder.name}\n",
        _what(config, speaks, base),
        _data(dataset, tracks),
        _figures(run, folder, speaks),
        _use(config, speaks),
        _repeat(config, begun, speaks),
    ]
    return "\n".join(sections)


def overall_licence(base: str, tracks: list[catalogue.Track]) -> str:
    """The licence to state for weights: their base's, CC0 if all the music is, else "other" (see the card's list)."""
    if base:
        return "cc-by-nc-4.0" if META_WEIGHTS.match(base) else "other"
    if tracks and all(_is_free(track.licence) for track in tracks):
        return "cc0-1.0"
    return "other"


def _header(speaks: bool, base: str, tracks: list[catalogue.Track]) -> str:
    lines = ["---", "library_name: audiocraft", f"license: {overall_licence(base, tracks)}", "tags:", "- audio", "- music"]
    lines += ["- musicgen"] if speaks else ["- encodec", "- audio-codec"]
    lines += ["- synthetic-training-data"] if any(track.synthetic for track in tracks) else []
    lines += ["pipeline_tag: text-to-audio"] if speaks else []
    lines += [f"base_model: {base}"] if base and not files.absolute(base).exists() else []
    return "\n".join([*lines, "---", ""])


def _what(config: DictConfig, speaks: bool, base: str) -> str:
    if speaks:
        shape = config.transformer_lm
        text = [conditioner.model for name, conditioner in config.conditioners.items() if name != "args"]
        lines = [
            f"A MusicGen language model: {shape.num_layers} layers of width {shape.dim}, {shape.n_q} codebooks of {shape.card} codes, "
            f"trained on windows of {config.dataset.segment_duration:g} s; "
            + (f"conditioned on text ({', '.join(text)})." if text else "unconditional.")
        ]
        if base:
            how = f"low-rank adapters (rank {config.lora.rank}), added here to the weights" if config.lora.rank else "all weights trained"
            lines.append(f"It began with `{base}` ({how}). Licence of those weights: {licence(base)}.")
    else:
        rate = config.sample_rate / _product(config.seanet.ratios)
        lines = [
            f"An EnCodec audio codec: {config.sample_rate} Hz, {config.channels} channel, {rate:g} frames/s, "
            f"{config.rvq.n_q} codebooks of {config.rvq.bins} codes."
        ]
    return "\n".join(lines) + "\n"


def _data(dataset: str, tracks: list[catalogue.Track]) -> str:
    lines = ["## Training data", ""]
    split = files.read_json(egs_of(dataset) / "split.json") if dataset else None
    if not tracks and not split:
        return "\n".join([*lines, "Not known: its catalogue is not here.", ""])
    if any(track.synthetic for track in tracks):
        lines += ["**Synthetic**: composed by a program, not recorded. Figures on it say nothing about other music.", ""]
    if split:
        for name, about in split.get("splits", {}).items():
            counts = f"{about['segments']} segments of {about['tracks']} tracks by {about['artists']} artists"
            lines.append(f"- {name}: {about['seconds'] / 3600:.2f} h, {counts}")
        lines += [f"- divided by {split['rule']}", ""]
    if tracks:
        sources = Counter(track.source for track in tracks)
        lines += [f"Data set `{dataset}` from {', '.join(sorted(sources))}; licences of its {len(tracks)} tracks:", ""]
        lines += ["| licence | tracks | commercial use |", "|---|---|---|"]
        for name, count in Counter(track.licence or "not stated" for track in tracks).most_common():
            lines.append(f"| {_cell(name)} | {count} | {'yes' if licences.commercial(name) else 'no, or unclear'} |")
    return "\n".join([*lines, ""])


def _figures(run: Path | None, folder: Path, speaks: bool) -> str:
    lines = ["## Figures", ""]
    rows = [row for row in runs.read_metrics(run) if row["stage"] == "valid"] if run else []
    name = "ce" if speaks else next((name for name in ("msspec", "mel", "l1") if rows and name in rows[-1]), "")
    if rows and name in rows[-1]:
        best = min(rows, key=lambda row: row[name])
        lines.append(
            f"- validation {name}: {best[name]:.4f} at its best (step {best['step']}), {rows[-1][name]:.4f} at step {rows[-1]['step']}"
        )
    for stage, result in _stages_about(run, folder):
        figures = {key: value for key, value in (result.get("figures") or result).items() if isinstance(value, int | float)}
        lines.append(f"- {stage}: " + ", ".join(f"{key} {value:.4g}" for key, value in figures.items()))
    return "\n".join([*(lines if len(lines) > 2 else [*lines, "None were measured."]), ""])


def _use(config: DictConfig, speaks: bool) -> str:
    lines = ["## Use", "", "```python"]
    if speaks:
        lines += ["from audiocraft.models import MusicGen", 'model = MusicGen.get_pretrained("PATH_OR_REPOSITORY")']
        lines += ['audio = model.generate(["a techno track with a driving bass line"])  # [1, 1, T]', "```"]
        if config.dataset.segment_duration <= STRIDE:
            lines += [
                "",
                f"AudioCraft by itself refuses language models trained on {STRIDE:g} s or less. Before the import call "
                "`music_training.musicgen.audiocraft_compat.install()` of the project that trained this one; windows then "
                f"advance by 60% of the {config.dataset.segment_duration:g} s that the model knows.",
            ]
    else:
        lines += ["from audiocraft.models import CompressionModel", 'codec = CompressionModel.get_pretrained("FOLDER")']
        lines += ["codes, _ = codec.encode(audio)  # audio [B, C, T]", "audio = codec.decode(codes)", "```"]
    return "\n".join([*lines, ""])


def _repeat(config: DictConfig, begun: dict[str, Any], speaks: bool) -> str:
    asked = [f"solver={config.solver}", f"datasource.train={config.datasource.train}", f"datasource.valid={config.datasource.valid}"]
    asked += [f"optim.epochs={config.optim.epochs}", f"optim.updates_per_epoch={config.optim.updates_per_epoch}"]
    asked += [f"optim.lr={config.optim.lr}", f"dataset.batch_size={config.dataset.batch_size}", f"seed={config.seed}"]
    asked += [f"dataset.segment_duration={config.dataset.segment_duration}"]
    if not speaks:
        asked += [
            f"{key}={config[key.split('.')[0]][key.split('.')[1]]}"
            for key in ("seanet.n_filters", "seanet.dimension", "rvq.n_q", "rvq.bins")
        ]
    elif config.get("start_from"):
        asked += [f"start_from={_reference_of(config)}", f"lora.rank={config.lora.rank}"]
    else:
        asked += [f"transformer_lm.{key}={config.transformer_lm[key]}" for key in ("dim", "num_heads", "num_layers", "n_q", "card")]
        asked += [f"compression_model_checkpoint={config.compression_model_checkpoint}"]
        asked += [f"conditioner={config.conditioners.description.model}"] if config.conditioners.get("description") else []
    versions = ", ".join(f"{name} {version}" for name, version in (begun.get("packages") or {}).items() if version)
    lines = ["## Command", "", "```bash", "python scripts/train_audiocraft.py " + " \\\n  ".join(asked), "```", ""]
    lines += [f"All other settings: the configuration inside the exported files. Commit {begun.get('commit') or 'unknown'}; {versions}."]
    return "\n".join([*lines, ""])


def _stages_about(run: Path | None, folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Results of checks that were made of this run or these weights."""
    if run is None:
        return []
    names = {"against_unigram": "nats per token on held-out clips", "codec_quality": "reconstruction of held-out clips"}
    found = []
    for path in sorted((files.outputs_root() / ".stages").rglob("*.json")):
        stamp = files.read_json(path) if path.name.partition("-")[0] in names else None
        if stamp and "finished" in stamp:
            asked = stamp["params"]
            if asked.get("run") == run.name or files.relative(folder) in json.dumps(asked):
                found.append((names[stamp["stage"]], stamp["result"]))
    return found


def _tracks(dataset: str) -> list[catalogue.Track]:
    path = catalogue.path_of(dataset)
    return catalogue.read(path) if dataset and path.is_file() else []


def _reference_of(config: DictConfig) -> str:
    """The model that a language model began with, as it was named; empty where there is none."""
    start = config.get("start_from")
    if not start:
        return ""
    for path in (files.outputs_root() / ".stages" / "pretrained").glob("fetch_model-*.json"):
        stamp = files.read_json(path)
        if stamp and stamp["result"].get("model") == start:
            return stamp["result"]["reference"]
    return start


def _is_free(name: str) -> bool:
    text = name.lower().replace("-", "").replace(" ", "")
    return text.startswith("cc0") or "publicdomain" in text


def _product(numbers: list[int]) -> int:
    total = 1
    for number in numbers:
        total *= number
    return total


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
