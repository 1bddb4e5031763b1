"""What is known of a composed track, written beside its audio: annotation, beats, MIDI, sidecar, catalogue row."""

from __future__ import annotations

from pathlib import Path

import symusic

from .... import config, files
from ... import catalogue
from . import patterns
from .mixing import STEMS
from .song import DRUM_NOTES, Song

PROGRAMS = {"bass": 38, "pad": 90, "stab": 62, "arp": 80, "lead": 81, "vocal": 54}  # General MIDI, from 0
TICKS = 480  # per quarter note
LICENCE = "CC0-1.0 (synthetic)"
INSTRUMENT_NAMES = {
    "kick": "kick drum", "snare": "snare", "clap": "clap", "perc": "percussion", "hat_closed": "hi-hats", "bass": "synth bass",
    "pad": "pads", "stab": "chord stabs", "arp": "arpeggio", "lead": "lead synth", "vocal": "synthetic vocals",
}  # fmt: skip


def stem_paths(folder: Path) -> dict[str, Path]:
    """The stems of a track's folder by name.

    Five of them sum to ``mixture.wav`` sample for sample: other, kick (every drum but hats and cymbals), vocals, bass,
    hihat (hats and cymbals). ``drums``, the sixth, is kick + hihat sample for sample, for four-stem sets
    (drums, bass, other, vocals).
    """
    return {stem: folder / "stems" / f"{stem}.wav" for stem in (*STEMS, "drums")}


def write_truth(song: Song, folder: Path, final: Path, duration: float) -> None:
    """Write everything but the audio into ``folder``, which will be moved to ``final``; ``duration`` in seconds."""
    annotation = {
        "metadata": {"tier": 1, "confidence": 1.0, "synthetic": True},
        "audio": {
            "file": files.relative(final / "mixture.wav"),
            "duration": round(duration, 6),
            "bpm": song.bpm,
            "downbeat": round(song.bar_time(1), 6),
            "time_signature": [4, 4],
        },
        "structure": [
            {"bar": section.bar, "label": section.label, "time": round(song.bar_time(section.bar), 6), "confidence": 1.0}
            for section in song.sections
        ],
    }
    (folder / "annotation.yaml").write_text(config.dump(annotation), encoding="utf-8")
    (folder / "beats.tsv").write_text("".join(f"{time:.6f}\t{position}\n" for time, position in song.beats()), encoding="utf-8")
    (folder / "midi").mkdir()
    score(song).dump_midi(str(folder / "midi" / "all.mid"))
    files.write_json(folder / "track.json", sidecar(song, duration))


def score(song: Song) -> symusic.Score:
    """The song as MIDI, tick 0 at the start of the audio; a pickup is a short first bar with its own time signature."""
    result = symusic.Score(TICKS)
    result.tempos.append(symusic.Tempo(0, qpm=song.bpm))
    if song.pickup:
        result.time_signatures.append(symusic.TimeSignature(0, song.pickup, 4))
    result.time_signatures.append(symusic.TimeSignature(song.pickup * TICKS, 4, 4))
    tracks = {part: symusic.Track(part, program, False) for part, program in PROGRAMS.items()}
    tracks["drums"] = symusic.Track("drums", 0, True)
    scale = TICKS / song.beat
    for note in song.notes:
        if note.part in PROGRAMS or note.part in DRUM_NOTES:
            track = tracks[note.part if note.part in PROGRAMS else "drums"]
            velocity = max(1, min(127, round(127 * note.velocity)))
            track.notes.append(symusic.Note(round(note.time * scale), max(1, round(note.duration * scale)), note.pitch, velocity))
    for track in tracks.values():
        if len(track.notes):
            result.tracks.append(track)
    return result


def description(song: Song) -> str:
    """A caption made of the truth."""
    emotion = song.emotion
    energy = "high" if emotion.intensity > 0.66 else "low" if emotion.intensity < 0.33 else "medium"
    moods = patterns.moods(emotion.valence, emotion.arousal)
    parts = {note.part for note in song.notes}
    features = [
        phrase
        for part, phrase in (("vocal", "synthetic vocals"), ("lead", "a lead melody"), ("arp", "arpeggios"), ("stab", "chord stabs"))
        if part in parts
    ]
    return (
        f"{moods[0].capitalize()} and {moods[1]} {song.style.label} track at {song.bpm:g} bpm in {song.key}, {energy} energy, "
        f"with {song.style.label} drums, synth bass, {', '.join(features[:-1])} and {features[-1]}"
    )


def sidecar(song: Song, duration: float) -> dict:
    """What AudioCraft reads beside a file (title ... keywords), and the emotion."""
    parts = {note.part for note in song.notes}
    return {
        "title": song.title,
        "artist": song.artist.name,
        "key": song.key,
        "bpm": song.bpm,
        "genre": song.style.label,
        "moods": list(patterns.moods(song.emotion.valence, song.emotion.arousal)),
        "description": description(song),
        "name": song.id,
        "instrument": "Mix",
        "keywords": ", ".join(
            [song.style.label, "electronic", "synthetic", *(name for part, name in INSTRUMENT_NAMES.items() if part in parts)]
        ),
        "duration": round(duration, 6),
        "mode": song.mode,
        "emotion": {"valence": song.emotion.valence, "arousal": song.emotion.arousal, "intensity": song.emotion.intensity},
        "sections": [[section.label, section.bar, section.bars] for section in song.sections],
        "synthetic": True,
    }


def catalogue_row(song: Song, dataset: str, folder: Path, duration: float, stems: bool) -> catalogue.Track:
    """The track's row of the catalogue."""
    facts = sidecar(song, duration)
    parts = {note.part for note in song.notes}
    return catalogue.Track(
        id=song.id,
        path=files.relative(folder / "mixture.wav"),
        source="studio",
        artist_id=song.artist.id,
        artist=song.artist.name,
        title=song.title,
        album=f"Studio library {dataset}",
        genre=song.style.label,
        tags=("electronic", song.style.label, "synthetic"),
        moods=tuple(facts["moods"]),
        instruments=tuple(name for part, name in INSTRUMENT_NAMES.items() if part in parts),
        description=facts["description"],
        bpm=song.bpm,
        key=song.key,
        licence=LICENCE,
        attribution="composed by this repository's studio library",
        duration=round(duration, 6),
        valence=song.emotion.valence,
        arousal=song.emotion.arousal,
        intensity=song.emotion.intensity,
        synthetic=True,
        annotation=files.relative(folder / "annotation.yaml"),
        midi=files.relative(folder / "midi" / "all.mid"),
        stems={stem: files.relative(path) for stem, path in stem_paths(folder).items()} if stems else {},
    )
