"""Styles and artists of the studio library: what a track of somebody sounds like before a note is written."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Style:
    """A genre: its tempo range (bpm), the rhythms of a bar, and how strongly the kick ducks the rest.

    A rhythm is 16 steps: ``x`` begins a note, ``-`` holds it. Where there are several, a track chooses one.
    """

    name: str
    label: str
    bpm: tuple[int, int]
    kick: tuple[str, ...]
    backbeat: str
    backbeat_part: str
    open_hat: str
    bass: tuple[str, ...]
    stab: tuple[str, ...]
    bars_per_chord: int
    duck: float


STYLES = {
    style.name: style
    for style in (
        Style(
            "house",
            "house",
            bpm=(120, 128),
            kick=("x...x...x...x...",),
            backbeat="....x.......x...",
            backbeat_part="clap",
            open_hat="..x...x...x...x.",
            bass=("..x-..x-..x-..x-", "x-.x-.x--.x-.x-.", "..xx-..x-.xx-.x-"),
            stab=("x..x..x...x.....", "..x..x....x..x..", "x.....x.x..x..x."),
            bars_per_chord=1,
            duck=0.65,
        ),
        Style(
            "techno",
            "techno",
            bpm=(128, 138),
            kick=("x...x...x...x...",),
            backbeat="....x.......x...",
            backbeat_part="clap",
            open_hat="..x...x...x...x.",
            bass=("..xx..xx..xx..xx", ".xxx.xxx.xxx.xxx", "..x-.xx-..x-.xx-"),
            stab=("...x.......x....", "x.....x.....x...", "..x..x..x..x..x."),
            bars_per_chord=4,
            duck=0.7,
        ),
        Style(
            "trance",
            "trance",
            bpm=(134, 142),
            kick=("x...x...x...x...",),
            backbeat="....x.......x...",
            backbeat_part="clap",
            open_hat="..x...x...x...x.",
            bass=("..x-..x-..x-..x-", ".xxx.xxx.xxx.xxx", "..xx..xx..xx..xx"),
            stab=("x.xx.xx.x.xx.xx.", "x..x..x.x..x..x."),
            bars_per_chord=1,
            duck=0.75,
        ),
        Style(
            "drum_and_bass",
            "drum and bass",
            bpm=(168, 176),
            kick=(
                "x.........x.....",
                "x.........xx....",
                "x......x..x.....",
                "x.....x...x.....",
            ),
            backbeat="....x.......x...",
            backbeat_part="snare",
            open_hat="......x.......x.",
            bass=("x-------..x-----", "x---x--.x-x-----", "x--x--x---x--x--"),
            stab=("x.....x.........", "x..x......x.....", "........x......."),
            bars_per_chord=2,
            duck=0.55,
        ),
        Style(
            "dubstep",
            "dubstep",
            bpm=(138, 142),
            kick=(
                "x...............",
                "x.....x.........",
                "x..x......x.....",
                "x.........x.....",
            ),
            backbeat="........x.......",
            backbeat_part="snare",
            open_hat="....x.......x...",
            bass=("x-----x-x-------", "x---x---x---x---", "x--x--x-..x-----"),
            stab=("x.......x.......", "x..x..x.........", "....x.......x..."),
            bars_per_chord=2,
            duck=0.55,
        ),
    )
}

FIRST = (
    "Neon", "Velvet", "Polar", "Amber", "Silent", "Cobalt", "Lunar", "Paper", "Static",
    "Golden", "Hollow", "Vivid", "Distant", "Copper", "Glass", "Northern", "Crimson", "Quiet",
)  # fmt: skip
SECOND = (
    "Harbour", "Circuit", "Meadow", "Arcade", "Signal", "Orchid", "Engine", "Tides",
    "Pilot", "Lantern", "Cascade", "Motel", "Horizon", "Parade", "Atlas", "Foxes", "Garden",
)  # fmt: skip
WAVES = ("saw", "square", "hollow", "fm", "organ")


@dataclass(frozen=True)
class Artist:
    """Whose track it is: favourite styles and keys, groove, and the constants of every instrument."""

    id: str
    name: str
    styles: tuple[str, ...]
    tonics: tuple[int, ...]
    tempo_bias: float  # -1 ... 1 within a style's range
    swing: float  # share of a 16th by which every second one is late
    human: float  # standard deviation of the timing, s
    detune: float  # cents between the outer voices of pads and stabs
    voices: int
    pad_wave: str
    lead_wave: str
    arp_wave: str
    bass_wave: str
    brightness: float  # -1 ... 1, moves every filter
    resonance: float
    drive: float
    kick: tuple[float, float, float, float]  # start Hz, end Hz, sweep s, decay s
    click: float
    snare: tuple[float, float]  # body Hz, noise share
    clap_tone: float  # Hz
    hat: tuple[float, float, float]  # lowest Hz, metal share, decay s
    perc: tuple[float, float]  # carrier Hz, FM ratio
    reverb: float  # decay time, s
    damping: float  # Hz
    send: float
    echo: float
    balance: dict[str, float]  # dB per stem
    voice: tuple[float, float, float]  # centre pitch (MIDI), formant scale, breath


def generator(*parts: object) -> np.random.Generator:
    """A random generator whose seed is the hash of what it is for: nothing else can shift its draws."""
    key = "|".join(str(part) for part in parts)
    return np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little")))


def draw_artist(seed: int, index: int, styles: tuple[str, ...]) -> Artist:
    """The artist number ``index`` of a library: its first style goes round, so that all styles are there."""
    rng = generator("artist", seed, index)
    uniform = lambda low, high: float(rng.uniform(low, high))  # noqa: E731
    pick = lambda options: options[int(rng.integers(len(options)))]  # noqa: E731
    name = f"{FIRST[(index * 7 + seed) % len(FIRST)]} {SECOND[(index * 5 + index // len(FIRST) + seed) % len(SECOND)]}"
    favourites = (styles[index % len(styles)], pick(styles))
    return Artist(
        id=f"artist_{index + 1:03d}",
        name=name,
        styles=favourites,
        tonics=tuple(int(tonic) for tonic in rng.permutation(12)[:4]),
        tempo_bias=uniform(-0.6, 0.6),
        swing=uniform(0.0, 0.28),
        human=uniform(0.001, 0.005),
        detune=uniform(10, 34),
        voices=int(rng.integers(2, 4)) * 2 + 1,
        pad_wave=pick(("saw", "saw", "hollow", "organ")),
        lead_wave=pick(("saw", "square", "fm", "hollow")),
        arp_wave=pick(WAVES),
        bass_wave=pick(("saw", "square", "fm")),
        brightness=uniform(-1, 1),
        resonance=uniform(0.2, 2.2),
        drive=uniform(0.8, 2.6),
        kick=(uniform(150, 320), uniform(43, 58), uniform(0.018, 0.045), uniform(0.14, 0.28)),
        click=uniform(0.1, 0.5),
        snare=(uniform(165, 230), uniform(0.45, 0.75)),
        clap_tone=uniform(900, 1900),
        hat=(uniform(5000, 8500), uniform(0.0, 0.7), uniform(0.025, 0.06)),
        perc=(uniform(300, 1400), uniform(1.2, 3.6)),
        reverb=uniform(0.7, 1.9),
        damping=uniform(2500, 7000),
        send=uniform(0.12, 0.3),
        echo=uniform(0.15, 0.4),
        balance={stem: uniform(-2.0, 2.0) for stem in ("other", "kick", "vocals", "bass", "hihat")},
        voice=(uniform(50, 64), uniform(0.9, 1.2), uniform(0.04, 0.16)),
    )
