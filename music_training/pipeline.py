"""The pipeline at a glance: which notebooks a profile runs, and a picture of how data flows between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import notebooks, profiles

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

# Boxes of the picture: name, column, row, the two-digit number of the notebooks that do it
BOXES = {
    "raw audio\n+ catalogue": (0, 1.0, "02"),
    "10 s segments\n+ manifests": (1, 1.0, "03"),
    "codec": (2, 1.0, "04"),
    "MusicGen": (3, 1.0, "05"),
    "listening\npage": (4, 1.0, "10"),
    "EDM structure": (1, 0.0, "06"),
    "emotion\nbridges": (3, 0.0, "08"),
    "LoRA Demucs": (2, 0.0, "07"),
}
ARROWS = [(0, 1), (1, 2), (2, 3), (3, 4), (0, 5), (0, 6), (0, 7)]


def table(profile: str, audio_dir: str = "") -> pandas.DataFrame:
    """One row for each notebook of a profile: what it is expected to take, and what it took here when it last ran (s)."""
    import pandas

    content = profiles.read(profile)
    scope = profiles.scope(profile, audio_dir)
    rows = [
        {
            "notebook": name,
            "expected": _duration(content.seconds.get(name)),
            "last run here": _duration(notebooks.last_seconds(scope, name)),
            "parameters": ", ".join(f"{key}={value}" for key, value in (parameters or {}).items()),
        }
        for name, parameters in content.notebooks.items()
    ]
    return pandas.DataFrame(rows).set_index("notebook")


def draw(profile: str) -> Figure:
    """Draw how data flows through the notebooks; what the profile leaves out is pale."""
    from matplotlib import pyplot
    from matplotlib.patches import FancyBboxPatch

    numbers = {name[:2] for name in profiles.read(profile).notebooks}
    figure, axes = pyplot.subplots(figsize=(11, 3.2), layout="constrained")
    places = list(BOXES.values())
    for start, end in ARROWS:
        (x, y, _), (to_x, to_y, number) = places[start], places[end]
        style = {"arrowstyle": "->", "color": "#444444" if number in numbers else "#cccccc"}
        ends = ((x + 0.38, y), (to_x - 0.38, to_y)) if y == to_y else ((x, y - 0.2), (to_x, to_y + 0.2))
        axes.annotate("", xy=ends[1], xytext=ends[0], arrowprops=style)
    for label, (x, y, number) in BOXES.items():
        here = number in numbers
        box = FancyBboxPatch((x - 0.36, y - 0.18), 0.72, 0.36, "round,pad=0.02", fc="#dbe9f6" if here else "#f5f5f5", ec="#888888")
        axes.add_patch(box)
        axes.text(x, y, f"{label}\n({number})", ha="center", va="center", fontsize=9, color="black" if here else "#999999")
    axes.set(xlim=(-0.5, 4.5), ylim=(-0.35, 1.35), title=f"Profile {profile}: what flows where (notebook number in brackets)")
    axes.set_axis_off()
    pyplot.close(figure)  # the caller shows it, once
    return figure


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "not measured"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
