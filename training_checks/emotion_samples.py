"""What the emotion bridges made, to see and hear: ``python -m training_checks.emotion_samples --spectocloud RUN --midi RUN``.

Writes ``outputs/samples/<run>/emotion_bridges``: generated MIDI with its piano rolls, its sound from the studio library's
synthesiser (and by fluidsynth, where it is installed with a sound font), a page of clouds, and the card that puts all of it
on the listening page.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from music_training import files, runs, stages
from music_training.errors import UserError, run_command
from music_training.library import audio
from training_checks import listening_page
from training_checks.listening_page import Card, Clip, Link, Picture

FELT = {
    "excited and happy": [0.8, 0.8, 0.8],
    "angry": [-0.8, 0.8, 0.8],
    "sad": [-0.8, -0.8, 0.3],
    "calm": [0.8, -0.8, 0.3],
}
BARS = 4
GENERAL_MIDI = "_general_midi.wav"


def make_samples(spectocloud: Path, midi: Path, *, scope: str, clips: int = 8, audio_dir: str = "") -> Path:
    """Samples of two runs, done once (the stage ``emotion_samples``); returns their folder with its ``card.json``.

    With ``audio_dir`` the clouds of its first file are made, too.
    """
    folder = files.outputs_root() / "samples" / midi.name / "emotion_bridges"
    own = _first(Path(audio_dir).expanduser()) if audio_dir else None

    def make(draft: stages.Draft) -> stages.Made:
        from music_training.emotion_bridges import lexicon, pictures, sounds
        from music_training.emotion_bridges.midi_generator import sampling
        from music_training.emotion_bridges.spectocloud import viewer
        from music_training.emotion_bridges.train import EVALUATION, load, system_of

        model, settings = load(midi, "midi_generator")
        drawn = sampling.Sampling(bars=BARS, guidance=2.0, top_p=0.9, seed=1)
        scores = sampling.longer(model, settings, list(FELT.values()), drawn)
        made, font = [], sounds.soundfont()
        for (name, emotion), score in zip(FELT.items(), scores, strict=True):
            stem = name.replace(" ", "_")
            if not score.note_num():
                continue
            folder.mkdir(parents=True, exist_ok=True)
            score.dump_midi(str(folder / f"{stem}.mid"))
            sounds.studio(score, folder / f"{stem}.wav", emotion)
            linked = [Link("MIDI", f"{stem}.mid")]
            if font:
                linked.append(Link("by fluidsynth", f"{stem}{GENERAL_MIDI}"))
                sounds.fluidsynth(score, folder / f"{stem}{GENERAL_MIDI}", font)
            with files.atomic(folder / f"{stem}.png") as temporary:
                temporary.write_bytes(pictures.png(pictures.roll_figure([(name, score)])))
            made.append((name, stem, emotion, linked))
        clouds, cloud_settings = load(spectocloud, "spectocloud")
        held = system_of(cloud_settings, scope).held_clips
        chosen = held[:: max(1, len(held) // clips)][:clips]
        about = f"Run {spectocloud.name}, clips of held-out artists."
        viewer.of_clips(clouds, chosen, folder / "clouds.html", "Spectocloud: truth beside prediction", about)
        links = [Link("Clouds in 3D", "clouds.html")]
        if own:
            emotion = (lexicon.infer_from_path(own) or ([0.0, 0.0, 0.5], ""))[0]
            viewer.of_files(spectocloud, [own], emotion, folder / "own")
            links.append(Link(f"Clouds of {own.name}", "own/index.html"))
        found, measured = files.read_json(midi / EVALUATION) or {}, files.read_json(spectocloud / EVALUATION) or {}
        metrics, baseline = _figures(found, measured)
        card = Card(
            "Emotion bridges", midi.name, "Music from an emotion, clouds from music",
            about="generated MIDI in the sounds of the studio library; the page of clouds turns with the mouse",
            synthetic=True, metrics=metrics, baseline=baseline,
            clips=tuple(
                Clip(
                    name, f"{stem}.wav", text=f"valence {emotion[0]:+.1f}, arousal {emotion[1]:+.1f}",
                    pictures=(Picture(f"piano roll, {name}", f"{stem}.png"),), links=tuple(linked),
                )
                for name, stem, emotion, linked in made
            ),
            links=tuple(links), made_from={"spectocloud": spectocloud.name, "midi_generator": midi.name},
        )  # fmt: skip
        pages = [folder / "clouds.html", *([folder / "own" / "index.html"] if own else [])]
        return stages.Made([listening_page.write_card(folder, card), *pages], {"clips": len(made), "clouds": len(chosen)})

    weights = [path for run in (spectocloud, midi) for path in sorted((run / runs.CHECKPOINTS / "best").glob("*.safetensors"))]
    params = {"spectocloud": spectocloud.name, "midi": midi.name, "clips": clips, "own": str(own or "")}
    stages.run("emotion_samples", make, scope=scope, params=params, inputs=[*weights, *([own] if own else [])])
    listening_page.write_index(files.outputs_root() / "samples")
    return folder


def _first(folder: Path) -> Path:
    """The first audio file of a person's folder."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in audio.SUFFIXES)
    if not found:
        raise UserError(f"{folder}: no audio file in this folder")
    return found[0]


def _figures(found: dict, measured: dict) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics for the card and what they compare with."""
    metrics, baseline = {}, {}
    if measured:
        metrics["Chamfer distance"] = measured["clouds"]["model"]["chamfer"]
        baseline["Chamfer distance"] = measured["clouds"]["mean cloud"]["chamfer"]
    if found:
        metrics["perplexity"], baseline["perplexity"] = found["perplexity"]["model"], found["perplexity"]["bigram"]
        for name in ("valence", "arousal"):
            metrics[f"follows {name}"], baseline[f"follows {name}"] = found["follows"][name], found["follows"][f"{name}_shuffled"]
    return metrics, baseline


def players(folder: Path):
    """The samples of a folder for a notebook: players, and the link to the clouds."""
    import html

    from IPython.display import HTML

    card = listening_page.read_cards(folder)[0][1]
    rows = "".join(
        f"<tr><td>{html.escape(clip.name)}<br>{html.escape(clip.text)}</td><td>{_player(folder / clip.path)}</td></tr>"
        for clip in card.clips
    )
    page = html.escape((folder / "clouds.html").as_uri())
    return HTML(f'<table>{rows}</table><a href="{page}" target="_blank">clouds in 3D</a>')


def _player(path: Path) -> str:
    import base64
    import io

    import soundfile

    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    stream = io.BytesIO()
    soundfile.write(stream, samples.mean(axis=1), rate, format="MP3")
    return f'<audio controls preload="none" src="data:audio/mpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"></audio>'


def main() -> None:
    """Parse the command line and make the samples."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spectocloud", required=True, metavar="RUN", help="a run of Spectocloud")
    parser.add_argument("--midi", required=True, metavar="RUN", help="a run of the MIDI generator")
    parser.add_argument("--clips", type=int, default=8, help="clips on the page of clouds (default 8)")
    parsed = parser.parse_args()
    print(make_samples(runs.find(parsed.spectocloud), runs.find(parsed.midi), scope="emotion_bridges", clips=parsed.clips))


if __name__ == "__main__":
    run_command(main)
