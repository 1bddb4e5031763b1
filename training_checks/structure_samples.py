"""Predicted structures on the listening page: a track with clicks on what was found beside one with clicks on the truth.

``python -m training_checks.structure_samples RUN track.wav`` does what the end of notebook 06 does.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from music_training import files, runs, stages
from music_training.errors import UserError, run_command
from training_checks import listening_page
from training_checks.listening_page import Card, Clip, Link, Picture

if TYPE_CHECKING:
    from music_training.edm_structure.data import AnnotatedTrack

METRICS = ("HR.5F", "HR3F", "label_accuracy", "beat_F1", "downbeat_F1")


def contribute(run: Path, track: AnnotatedTrack, synthetic: bool = True) -> Path:
    """Put a track whose prediction lies in ``run/predictions`` (with clicks: ``sonify``) on the page; returns the card's folder.

    Done once, as the stage ``structure_samples``. Where the track is annotated it is heard with clicks on the annotation,
    too, and drawn over it. ``synthetic``: the model was trained on composed music. UserError where there is no prediction
    with clicks.
    """
    stem = track.audio.stem
    predicted, heard = (run / "predictions" / f"{stem}.{kind}" for kind in ("json", "sonified.wav"))
    if not (predicted.is_file() and heard.is_file()):
        raise UserError(f"{run.name}: no prediction with clicks of {track.audio}; predict it first (edm predict --sonify)")
    folder = files.outputs_root() / "samples" / run.name / "structure" / stem
    scores = run / "evaluation" / "summary.json"
    annotated = {name: [str(value) for value in getattr(track, name)] for name in ("starts", "labels", "beats", "downbeats")}
    params = {"run": run.name, "track": track.id, "synthetic": synthetic, **annotated}

    def make(_: stages.Draft) -> stages.Made:
        return stages.Made([_write(run, track, synthetic, folder, predicted, heard, scores)], {})

    inputs = [predicted, heard, track.audio, *([scores] if scores.is_file() else [])]
    stages.run("structure_samples", make, scope=run.name, params=params, inputs=inputs)
    listening_page.write_index(files.outputs_root() / "samples")
    return folder


def _write(run: Path, track: AnnotatedTrack, synthetic: bool, folder: Path, predicted: Path, heard: Path, summary: Path) -> Path:
    """Write clips, picture and card into ``folder``; returns the card."""
    import numpy

    from music_training.edm_structure import pictures, writers
    from music_training.edm_structure.decoding import Structure
    from music_training.library import audio

    stem, content = track.audio.stem, files.read_json(predicted)
    folder.mkdir(parents=True, exist_ok=True)

    def near(path: Path) -> str:
        return Path(os.path.relpath(path, folder)).as_posix()

    spans = [(item["start"], item["end"], item["label"]) for item in content["segments"]]
    samples, _ = audio.read(track.audio, pictures.RATE)
    duration = len(samples) / pictures.RATE
    found = Structure(content["bpm"], numpy.array(content["beats"]), numpy.array(content["beat_positions"]), spans, duration)
    known = bool(len(track.starts))
    with files.atomic(folder / "structure.png") as temporary:
        writers.plot(found, samples, pictures.RATE, reference=track if known else None).savefig(temporary, format="png", dpi=100)
    clips = [Clip(track.id, near(heard), "predicted", "clicks on beats, a chime at sections")]
    if known:
        truth = pictures.structure_of(track)
        writers.sonify(truth, track.audio, folder / "annotated.wav")
        clips.insert(0, Clip(track.id, "annotated.wav", "annotated", "clicks on beats, a chime at sections", role="reference"))
    written = [(kind, run / "predictions" / f"{stem}.{kind}") for kind in ("json", "jams", "yaml")]
    scores = (files.read_json(summary) or {}) if known else {}
    card = Card(
        "EDM structure",
        run.name,
        "Predicted structure",
        about="figures: means over the held-out tracks" if scores else "a track without an annotation",
        synthetic=synthetic,
        clips=tuple(clips),
        pictures=(Picture(f"{track.id}: predicted sections and beats" + (" over the annotated ones" if known else ""), "structure.png"),),
        links=tuple(Link(f"{track.id}.{kind}", near(path)) for kind, path in written if path.is_file()),
        metrics={name: scores[name]["mean"] for name in METRICS if name in scores},
        made_from={"run": run.name, "track": track.id},
    )
    return listening_page.write_card(folder, card)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a run of EDM structure")
    parser.add_argument("audio", type=Path, nargs="+", help="tracks to predict")
    args = parser.parse_args()
    from music_training.edm_structure import train

    run = runs.find(args.run)
    train.predict(run, args.audio, run / "predictions", sonify=True, skip_existing=True)
    for path in args.audio:
        print(contribute(run, train.unknown_track(path)))


if __name__ == "__main__":
    run_command(main)
