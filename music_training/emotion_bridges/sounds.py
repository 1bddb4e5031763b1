"""Generated scores as audio: by the studio library's synthesiser, or by fluidsynth with a sound font of your own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy
import symusic

from .. import files
from ..errors import UserError
from ..library.sources.studio import mixing
from ..library.sources.studio.artists import STYLES, draw_artist
from ..library.sources.studio.song import DRUM_NOTES, Emotion, Note, Section, Song
from ..library.sources.studio.truth import PROGRAMS
from .midi_generator.measures import tempo_of

RATE = 44100
SOUNDFONTS = ("/usr/share/sounds/sf2", "/usr/share/sounds/sf3", "/usr/share/soundfonts")
LOW, HIGH = 48, 72  # pitches: below the bass, above the lead, where a score has one instrument for all


def studio(score: symusic.Score, path: Path, emotion: list[float] | None = None, seed: int = 3) -> Path:
    """Write a score as WAV in the sounds of the studio library; programs that it does not use share its instruments by register."""
    tempo = tempo_of(score)
    beat = 60 / tempo
    parts = {program: part for part, program in PROGRAMS.items()}
    drums = {pitch: part for part, pitch in DRUM_NOTES.items()}
    notes = []
    for track in score.tracks:
        for note in track.notes:
            length = note.duration / score.tpq
            part = drums.get(note.pitch, "perc") if track.is_drum else parts.get(track.program) or _part(note.pitch, length)
            pitch = DRUM_NOTES[part] if track.is_drum else note.pitch
            notes.append(Note(part, note.time / score.tpq * beat, length * beat, pitch, max(0.05, note.velocity / 127)))
    if not notes:
        raise UserError(f"{path.name}: the score has no notes to play")
    beats = max(note.time + note.duration for note in notes) / beat
    felt = Emotion(*(emotion or [0.0, 0.0, 0.5])[:3])
    section = Section("drop", 1, max(1, int(numpy.ceil(beats / 4))))
    artist = draw_artist(seed, 0, ("house",))
    song = Song(path.stem, path.stem, artist, STYLES["house"], felt, tempo, 0, "ionian", 0, (section,), sorted(notes, key=lambda n: n.time))
    sound = mixing.add_up(list(mixing.mix(song, RATE, seed).values()))
    with files.atomic(path) as temporary:
        mixing.write_wav(temporary, sound, RATE)
    return path


def soundfont() -> Path | None:
    """The sound font for :func:`fluidsynth`: ``$MUSIC_SOUNDFONT``, else one of the system's; None where nothing could play it."""
    if shutil.which("fluidsynth") is None:
        return None
    given = os.environ.get("MUSIC_SOUNDFONT")
    if given:
        return Path(given).expanduser()
    return next((path for folder in SOUNDFONTS for path in sorted(Path(folder).glob("*.sf[23]"))), None)


def fluidsynth(score: symusic.Score, path: Path, font: Path) -> Path:
    """Write a score as WAV by fluidsynth with a sound font; UserError where either is missing or of no use."""
    program = shutil.which("fluidsynth")
    if program is None:
        raise UserError("fluidsynth is not installed (apt-get install fluidsynth); without --soundfont the studio's sounds are used")
    if not Path(font).is_file():
        raise UserError(f"{font}: no such sound font")
    with tempfile.TemporaryDirectory() as folder, files.atomic(path) as temporary:
        midi = Path(folder) / "score.mid"
        score.dump_midi(str(midi))
        command = [program, "-ni", "-q", "-r", str(RATE), "-T", "wav", "-F", str(temporary), str(font), str(midi)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode or "error" in done.stderr.lower():  # a file that is no sound font it plays as silence
            reason = next((line for line in done.stderr.splitlines() if line.strip()), f"exit code {done.returncode}")
            raise UserError(f"{font}: fluidsynth cannot play with it ({reason})")
    return path


def _part(pitch: int, beats: float) -> str:
    if beats >= 2:
        return "pad"
    return "bass" if pitch < LOW else "lead" if pitch >= HIGH else "arp"
