"""What an adapted separation model makes of held-out tracks, to hear: ``python -m training_checks.separation_samples RUN``.

Writes ``outputs/samples/<run>/stems``: clips of mixture, base model, adapted model and truth for every stem, and the card
that puts them side by side on the listening page.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from music_training import config, files, runs, stages
from music_training.errors import run_command
from training_checks import listening_page
from training_checks.listening_page import Card, Clip

SECONDS = 8.0


def make_samples(run: Path, *, scope: str, tracks: int = 1, seconds: float = SECONDS) -> Path:
    """Samples of a run's first held-out tracks, done once (the stage ``separation_samples``); returns their folder.

    Where the run has been evaluated its scores on whole tracks stand beside those of the unadapted model.
    """
    from music_training.lora_demucs.train import EVALUATION, find_adapter

    adapter = find_adapter(run)
    folder = files.outputs_root() / "samples" / run.name / "stems"
    scores = run / EVALUATION / "summary.json"

    def make(draft: stages.Draft) -> stages.Made:
        from music_training.library import catalogue
        from music_training.lora_demucs import pictures
        from music_training.lora_demucs import tracks as known
        from music_training.lora_demucs import train as training
        from music_training.lora_demucs.config import LoraDemucsSettings

        settings = config.load(LoraDemucsSettings, run / "config.yaml")
        made = training.open_adapted(run)
        held = known.judged(settings, made.model.samplerate, made.model.audio_channels)
        clips: list[Clip] = []
        for track in held[:tracks]:
            written = pictures.write_clips(made, track, folder / track.id, seconds)
            for source, versions in written.items():
                clips += _row(f"{track.id}: {source}", versions, folder, made.known["default"].parents[source])
        metrics, baseline = _scores(files.read_json(scores) or {})
        about = f"Base model: {settings.base}. Figures of the clips are theirs alone; those of the card are of whole held-out tracks" + (
            "; the baseline is the unadapted model." if baseline else "."
        )
        synthetic = bool(settings.dataset) and catalogue.is_synthetic(settings.dataset)
        card = Card(
            "LoRA Demucs", run.name, "Separation", about, synthetic=synthetic, clips=tuple(clips), metrics=metrics, baseline=baseline
        )
        return stages.Made([listening_page.write_card(folder, card)], {"clips": len(clips)})

    inputs = [adapter / "adapter.safetensors", *([scores] if scores.is_file() else [])]
    stages.run("separation_samples", make, scope=scope, params={"run": run.name, "tracks": tracks, "seconds": seconds}, inputs=inputs)
    listening_page.write_index(files.outputs_root() / "samples")
    return folder


def _row(name: str, versions: dict[str, Path], folder: Path, parent: str) -> list[Clip]:
    """The versions of a stem: mixture, base (its ``parent``), adapted and, as the reference, truth; nSDR (dB) of this clip."""
    import soundfile

    from music_training.lora_demucs import metrics

    true = soundfile.read(versions["truth"])[0].T
    heard = {"mixture": "mixture", "base": "base model", "adapted": "adapted", "truth": "true stem"}
    text = "" if name.endswith(f": {parent}") else f"the base model has no such stem; its {parent} is heard"
    clips = []
    for version, label in heard.items():
        figures = {}
        if version in ("base", "adapted") and not metrics.silent(true):
            figures["nSDR dB"] = metrics.nsdr(true, soundfile.read(versions[version])[0].T)
        role = "reference" if version == "truth" else ""
        clips.append(Clip(name, versions[version].relative_to(folder).as_posix(), label, text, figures, role))
    return clips


def _scores(evaluation: dict) -> tuple[dict[str, float], dict[str, float]]:
    """nSDR of every stem over whole held-out tracks, adapted and unadapted; a split of the base's drums as metrics of its own."""
    summary = evaluation.get("summary", {})
    found = {system: {name: value for name, value in scores["nsdr"].items() if value == value} for system, scores in summary.items()}
    metrics = {f"nSDR dB, {name}": value for name, value in found.get("adapted", {}).items()}
    metrics |= {f"nSDR dB, {name}, by splitting the base's drums": value for name, value in found.get("split", {}).items()}
    return metrics, {f"nSDR dB, {name}": value for name, value in found.get("unadapted", {}).items()}


def main() -> None:
    """Parse the command line and make the samples."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run of LoRA Demucs, or its name")
    parser.add_argument("--tracks", type=int, default=1, help="how many held-out tracks (default 1)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of each clip (default {SECONDS:g})")
    parsed = parser.parse_args()
    print(make_samples(runs.find(parsed.run), scope="lora_demucs", tracks=parsed.tracks, seconds=parsed.seconds))


if __name__ == "__main__":
    run_command(main)
