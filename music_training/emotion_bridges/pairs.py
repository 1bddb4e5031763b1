"""Audio files and MIDI files that belong together: the same name in matching folders, and what is wrong with the rest."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .. import files, parallel
from ..errors import UserError
from ..library import audio
from ..progress import progress
from . import emotions, lexicon

AUDIO = (".wav", ".flac", ".mp3", ".ogg", ".m4a", ".aac")  # of two formats of one name the first here is taken
MIDI = (".mid", ".midi")
SHORTEST = 0.5  # seconds of audio


@dataclass(frozen=True)
class Pair:
    """An audio file, a MIDI file, their emotion and where that comes from; ``group`` holds pairs that may not be divided."""

    key: str
    audio: Path
    midi: Path
    emotion: list[float]
    source: str
    group: str


@dataclass
class Report:
    """What became of every file: pairs by where their emotion comes from, and the files that were left out by reason."""

    pairs: int = 0
    sources: Counter = field(default_factory=Counter)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def leave_out(self, path: Path, reason: str) -> None:
        """Note that ``path`` was left out."""
        self.left_out.append((str(path), reason))

    def counts(self) -> dict[str, int]:
        """How many files were left out for each kind of reason (the part before a colon)."""
        return dict(Counter(reason.partition(":")[0] for _, reason in self.left_out).most_common())


def find(
    audio_root: Path, midi_root: Path, *, overrides: Mapping[str, list[float]] | None = None, norms: Mapping | None = None,
    keep_unlabelled: bool = False, workers: int = 1,
) -> tuple[list[Pair], Report]:  # fmt: skip
    """All pairs under two folders and a report; UserError where there is no folder or not one pair.

    A pair is a file of the same relative path without its suffix on both sides, else of the same name where that is
    the only one on either side. The emotion comes from ``overrides`` (by name or relative path without suffix), else
    from a sidecar ``<name>.json`` with ``"emotion"``, else from folder and name; without one a pair is left out, or
    neutral with ``keep_unlabelled``. Of files with the same content the first counts.
    """
    report = Report()
    sounds = _collect(audio_root, AUDIO, "audio", report)
    scores = _collect(midi_root, MIDI, "MIDI", report)
    matched = _match(sounds, scores, report)
    jobs = [path for pair in matched.values() for path in pair]
    seen = dict(
        zip(jobs, progress(parallel.map_processes(_look, jobs, workers), "looking at files", total=len(jobs), unit="files"), strict=True)
    )
    pairs: list[Pair] = []
    by_content: dict[str, str] = {}
    for key, (sound, score) in sorted(matched.items()):
        faults = [(path, seen[path][1]) for path in (sound, score) if seen[path][1]]
        content = seen[sound][0]
        if faults:
            for path, fault in faults:
                report.leave_out(path, fault)
        elif content in by_content:
            report.leave_out(sound, f"duplicate: the same audio as {by_content[content]}")
        elif (labelled := _emotion(key, sound, overrides or {}, norms, keep_unlabelled)) is None:
            report.leave_out(sound, "no emotion: neither its folder nor its name says one")
        else:
            by_content[content] = key
            pairs.append(Pair(key, sound, score, *labelled, group=seen[score][0]))
            report.sources[labelled[1].partition(":")[0]] += 1
    report.pairs = len(pairs)
    if not pairs:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in report.counts().items()) or "the folders are empty"
        raise UserError(f"no pair of {audio_root} and {midi_root} can be used ({reasons}); names must match: happy/a.wav, happy/a.mid")
    return pairs, report


def read_overrides(path: Path | None) -> dict[str, list[float]]:
    """Ground-truth emotions: JSONL rows ``{"audio_path" or "midi_path" or "id": ..., "emotion": [...]}`` by name without suffix."""
    if path is None:
        return {}
    found: dict[str, list[float]] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file of emotions") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name = row.get("id") or row.get("audio_path") or row.get("midi_path")
            emotion = row["emotion"]
        except (ValueError, KeyError, AttributeError):
            raise UserError(f'{path}:{number}: expected {{"audio_path": "...", "emotion": [valence, arousal, intensity]}}') from None
        found[_key(Path(name))] = emotions.checked(emotion, f"{path}:{number}")
    return found


def _key(path: Path) -> str:
    known = path.suffix.lower() in (*AUDIO, *MIDI)
    return (path.with_suffix("") if known else path).as_posix()


def _collect(root: Path, suffixes: tuple[str, ...], kind: str, report: Report) -> dict[str, Path]:
    root = Path(root).expanduser()
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of {kind} files")
    found: dict[str, Path] = {}
    paths = [path for path in root.rglob("*") if path.suffix.lower() in suffixes and path.is_file() and not path.name.startswith(".")]
    for path in sorted(paths, key=lambda item: (item.with_suffix("").as_posix(), suffixes.index(item.suffix.lower()))):
        key = path.relative_to(root).with_suffix("").as_posix()
        if key in found:
            report.leave_out(path, f"duplicate: the same name as {found[key].name}")
        else:
            found[key] = path
    return found


def _match(sounds: dict[str, Path], scores: dict[str, Path], report: Report) -> dict[str, tuple[Path, Path]]:
    matched = {key: (path, scores[key]) for key, path in sounds.items() if key in scores}
    left = {key: path for key, path in sounds.items() if key not in matched}
    others = {key: path for key, path in scores.items() if key not in matched}
    by_stem: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for side, part in enumerate((left, others)):
        for key, path in part.items():
            by_stem[path.stem][side].append(key)
    for ours, theirs in by_stem.values():
        if len(ours) == len(theirs) == 1:
            matched[ours[0]] = (left.pop(ours[0]), others.pop(theirs[0]))
    for path in left.values():
        report.leave_out(path, "unpaired: no MIDI file of this name")
    for path in others.values():
        report.leave_out(path, "unpaired: no audio file of this name")
    return matched


def _emotion(key: str, sound: Path, overrides: Mapping, norms: Mapping | None, keep: bool) -> tuple[list[float], str] | None:
    for name in (key, sound.stem, _key(sound)):
        if name in overrides:
            return overrides[name], "given"
    sidecar = files.read_json(sound.with_suffix(".json"))
    if isinstance(sidecar, dict) and sidecar.get("emotion") is not None:
        return emotions.checked(sidecar["emotion"], str(sound.with_suffix(".json"))), "sidecar"
    found = lexicon.infer_from_path(sound, norms)
    return found or (([0.0, 0.0, 0.0], "none: neutral") if keep else None)


def _look(path: Path) -> tuple[str, str]:
    """The digest of a file and what is wrong with it (empty: nothing). Runs in a worker process."""
    try:
        if path.stat().st_size == 0:
            return "", "broken: an empty file"
        fault = _midi_fault(path) if path.suffix.lower() in MIDI else _audio_fault(path)
        return files.digest(path), fault
    except OSError as error:
        return "", f"broken: {error.strerror}"


def _audio_fault(path: Path) -> str:
    try:
        with audio.open_stream(path) as stream:
            wanted, frames = SHORTEST * stream.sample_rate, 0
            for block in stream.blocks:
                frames += len(block)
                if frames >= wanted:
                    break
            return "" if frames >= wanted else f"too short: {frames / stream.sample_rate:.2f} s"
    except audio.DecodeError as error:
        return f"broken: {error}"


def _midi_fault(path: Path) -> str:
    import symusic

    try:
        score = symusic.Score(str(path))
    except Exception as error:  # the parser's own kinds of error differ between its versions
        return f"broken: not MIDI ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    return "" if any(len(track.notes) for track in score.tracks) else "no notes: nothing to learn from"
