"""Writes ``index.html`` from the cards: plain HTML that works as it is, and scripts that add listening tests to it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from html import escape
from pathlib import Path
from urllib.parse import quote

from music_training import files

from . import rows, sound
from .cards import CARD, Card, Link, Picture, broken_cards, read_cards
from .tables import Row, Table, Version, gather, label

STATIC = Path(__file__).parent / "static"
SCRIPTS = ("statistics.js", "ratings.js", "player.js", "panel.js", "tests.js", "page.js")
# No inline script, no connection, no plug-in: should a text of a card ever become markup, it still does nothing.
POLICY = "script-src 'self' file: http: https:; connect-src 'none'; object-src 'none'; form-action 'none'"


def write_index(samples: Path) -> Path:
    """Gather every card below ``samples`` into ``samples/index.html`` with what it needs; returns its path.

    Only what changed is written. One process at a time; another one waits.
    """
    with files.lock(samples / rows.FOLDER / ".lock", "the listening page", wait=600):
        cards = read_cards(samples)
        tables = gather(cards)
        rows.write_rows(samples, [row for table in tables for row in table.rows])
        for name in SCRIPTS:
            _write(samples / rows.FOLDER / name, (STATIC / name).read_text(encoding="utf-8"))
        return _write(samples / "index.html", _page(tables, cards, broken_cards(samples), samples))


def link(samples: Path):
    """The page as a link for a notebook."""
    from IPython.display import HTML

    path = samples / "index.html"
    return HTML(f'<a href="{escape(path.as_uri())}" target="_blank">{escape(str(path))}</a>')


def _write(path: Path, text: str) -> Path:
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        files.write_text(path, text)
    return path


def _page(tables: list[Table], cards: list[tuple[Path, Card]], broken: list[Path], samples: Path) -> str:
    clips = sum(len(row.versions) for table in tables for row in table.rows)
    heard = f"{_count(clips, 'clip')} of {_count(len({card.run for _, card in cards}), 'run')}"
    sections = {f"s{i}": name for i, name in enumerate(dict.fromkeys(table.section for table in tables))}
    contents = "".join(f'<a href="#{key}">{escape(name)}</a>' for key, name in sections.items())
    scripts = "".join(f'<script defer src="{rows.FOLDER}/{name}"></script>' for name in SCRIPTS)
    body = "".join(_section(key, name, [table for table in tables if table.section == name], samples) for key, name in sections.items())
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>Samples</title><style>{(STATIC / "page.css").read_text(encoding="utf-8")}</style>{scripts}</head>
<body>
<header class="top"><h1>Samples</h1>
<p class="quiet">{heard}. Everything plays from this folder: no server, no network.</p>
{f'<nav aria-label="Systems">{contents}</nav>' if len(sections) > 1 else ""}
<div id="tools"></div></header>
<main>
{body or "<p>Nothing to hear yet: run 04_train_codec and 10_listen.</p>"}
{_unread(broken, samples)}</main>
<footer class="quiet">Pictures: the waveform over a mel spectrogram from 0 Hz to half the sample rate,
{sound.RANGE_DB:g} dB from dark to light, of the first {rows.SECONDS:g} s at most.</footer>
</body>
</html>
"""


def _section(key: str, name: str, tables: list[Table], samples: Path) -> str:
    body = "".join(_table(table, samples) for table in tables)
    return f'<section aria-labelledby="{key}"><h2 id="{key}">{escape(name)}</h2>{body}</section>\n'


def _unread(broken: list[Path], samples: Path) -> str:
    if not broken:
        return ""
    items = "".join(f"<li>{escape(os.path.relpath(path, samples))}</li>" for path in broken)
    return f"<section><h2>Not shown</h2><p>These files named {CARD} hold no card that can be read:</p><ul>{items}</ul></section>\n"


def _table(table: Table, samples: Path) -> str:
    card = table.cards[-1][1]
    runs = list(dict.fromkeys(one.run for _, one in table.cards))
    abouts = "".join(f"<p>{escape(about)}</p>" for about in dict.fromkeys(one.about for _, one in table.cards) if about)
    badge = ' <span class="badge">trained on synthetic music</span>' if card.synthetic else ""
    links = [(folder, one) for folder, card in table.cards for one in card.links]
    pictures = [(folder, one) for folder, card in table.cards for one in card.pictures]
    return (
        f'<article id="t{table.id}"><h3>{escape(table.title)}{badge}</h3><p class="quiet runs">{", ".join(map(escape, runs))}</p>{abouts}'
        f"{_links(links, samples)}{_metrics(table, len(runs) > 1)}{_clips(table, samples)}{_pictures(pictures, samples)}</article>\n"
    )


def _clips(table: Table, samples: Path) -> str:
    if not table.rows:
        return ""
    epochs = {label: version.epoch for row in table.rows for label, version in row.versions.items()}
    head = "".join(f'<th scope="col"{_epoch(epochs[column])}>{_breakable(column)}</th>' for column in table.columns)
    body = "".join(_row(row, table.columns, epochs, samples) for row in table.rows)
    caption = f"<caption>{_count(len(table.rows), 'row')}; every column is a version of the same clip</caption>"
    head = f'<thead><tr><th scope="col">clip</th>{head}</tr></thead>'
    start = f'<div class="wide"><table class="clips" style="--columns: {len(table.columns)}">'
    return f"{start}{caption}{head}<tbody>\n{body}</tbody></table></div>"


def _row(row: Row, columns: list[str], epochs: dict[str, int | None], samples: Path) -> str:
    cells = "".join(
        f'<td data-column="{escape(column)}"{_epoch(epochs[column])}>{_cell(row, row.versions[column], samples)}</td>'
        if column in row.versions
        else f'<td class="empty"{_epoch(epochs[column])}></td>'
        for column in columns
    )
    text = f'<span class="quiet">{escape(row.text)}</span>' if row.text and row.text != row.name else ""
    return f'<tr data-row="{row.id}"><th scope="row"><span class="name">{_breakable(row.name)}</span>{text}</th>{cells}</tr>\n'


def _cell(row: Row, version: Version, samples: Path) -> str:
    clip = version.clip
    name = escape(f"{row.name} {version.label}")
    picture = rows.picture_path(samples, version)
    shown = f'<span class="problem">cannot be heard: {escape(clip.path)}</span>'
    if picture.is_file():
        size = f'width="{sound.WIDTH}" height="{sound.WAVE + sound.BANDS}"'
        shown = f'<img loading="lazy" {size} src="{_link(picture, samples)}" alt="Waveform and spectrogram of {name}">'
    player = f'<audio controls preload="none" aria-label="{name}" src="{_link(version.path, samples)}"></audio>'
    figures = f'<span class="quiet">{_figures(clip.figures)}</span>' if clip.figures else ""
    links = _links([(version.folder, one) for one in clip.links], samples)
    pictures = _pictures([(version.folder, one) for one in clip.pictures], samples)
    return f'<div class="cell">{shown}{player}{figures}{links}{pictures}</div>'


def _metrics(table: Table, several: bool) -> str:
    """A row for every card with metrics, what they compare with below it."""
    cards = [card for _, card in table.cards if card.metrics]
    names = list(dict.fromkeys(name for card in cards for name in card.metrics))
    if not names:
        return ""
    lines: dict[tuple[str, tuple[str, ...]], None] = {}
    for card in cards:
        lines[label(card, several) or "this run", tuple(_number(card.metrics.get(name)) for name in names)] = None
    for card in cards:
        if card.baseline:
            lines["baseline", tuple(_number(card.baseline.get(name)) for name in names)] = None
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{value}</td>" for value in values)}</tr>' for name, values in lines
    )
    caption = "<caption>Metrics</caption>"
    return f'<div class="wide"><table class="metrics">{caption}<thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _figures(figures: dict[str, float]) -> str:
    return escape(", ".join(f"{name} {_number(value)}" for name, value in figures.items()))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _pictures(pictures: Iterable[tuple[Path, Picture]], samples: Path) -> str:
    return "".join(
        f'<figure><img loading="lazy" src="{_link(folder / one.path, samples)}" alt="{escape(one.caption)}">'
        f'<figcaption class="quiet">{escape(one.caption)}</figcaption></figure>'
        for folder, one in pictures
    )


def _links(links: Iterable[tuple[Path, Link]], samples: Path) -> str:
    items = "".join(f'<li><a href="{_link(folder / one.path, samples)}">{escape(one.text)}</a></li>' for folder, one in links)
    return f'<ul class="links">{items}</ul>' if items else ""


def _link(path: Path, samples: Path) -> str:
    """A relative address; "./" keeps a name with a colon from being taken for a scheme."""
    return "./" + quote(os.path.relpath(path, samples).replace(os.sep, "/"))


def _breakable(text: str) -> str:
    """Escaped; long names of files and runs break at their underscores."""
    return escape(text).replace("_", "_<wbr>")


def _epoch(epoch: int | None) -> str:
    return "" if epoch is None else f' data-epoch="{epoch}"'


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
