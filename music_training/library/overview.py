"""Looks at a segmented data set: a table, a picture, three players."""

from __future__ import annotations

import csv
from collections import Counter

from .. import files
from . import segments
from .manifests import egs_of, index_of, read_lines


def table(dataset: str):
    """A pandas table of the splits (artists, tracks, segments, minutes) with a row for all."""
    import pandas

    splits = pandas.DataFrame(files.read_json(egs_of(dataset) / "split.json")["splits"]).T
    splits.loc["all"] = splits.sum()
    splits["minutes"] = (splits.pop("seconds") / 60).round(1)
    return splits.astype({name: int for name in ("artists", "tracks", "segments")})


def draw(dataset: str):
    """Histograms of the segments' durations and levels, and the number of rejects by reason, as a matplotlib figure."""
    import matplotlib.pyplot as plt
    import numpy as np

    rows, summary = read_lines(index_of(dataset)), files.read_json(segments.summary_of(dataset))
    with open(segments.rejects_of(dataset), encoding="utf-8", newline="") as stream:
        reasons = Counter(segments.kind(reject["reason"]) for reject in csv.DictReader(stream))
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3), layout="constrained")
    left.hist([row["duration"] for row in rows], bins=20)
    left.set(title="Durations", xlabel="s", ylabel="segments")
    middle.hist(20 * np.log10([max(row["rms"], 1e-6) for row in rows]), bins=30)
    middle.set(title="Levels", xlabel="RMS, dB of full scale")
    right.barh(list(reasons), list(reasons.values()))
    right.set(title=f"Not used: {sum(reasons.values())} tracks and parts", xlabel="count")
    figure.suptitle(f"{dataset}: {len(rows)} segments{' of synthetic audio' if summary['synthetic'] else ''}")
    plt.close(figure)  # the cell shows it once, as its value
    return figure


def players(dataset: str, count: int = 3):
    """``count`` segments spread over the data set to listen to, each with its name."""
    from html import escape

    from IPython.display import HTML, Audio

    rows = read_lines(index_of(dataset))
    chosen = [rows[i * len(rows) // count] for i in range(min(count, len(rows)))]
    cells = (f"<p>{escape(row['artist'])}: {escape(row['path'])}</p>{Audio(files.absolute(row['path']))._repr_html_()}" for row in chosen)
    return HTML("".join(cells))
