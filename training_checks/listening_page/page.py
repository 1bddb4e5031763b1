"""Writes ``index.html`` from the cards: plain HTML and CSS, one table a run, a native player for every clip."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from html import escape
from pathlib import Path
from urllib.parse import quote

from music_training import files

from .cards import Card, Clip, read_cards

STYLE = """
:root { color-scheme: light dark; --line: #8885; --quiet: #777; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 75rem; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); } h3 { margin: 1.5rem 0 .3rem; }
.about, .figures, footer { color: var(--quiet); font-size: .85rem; }
.synthetic { border: 1px solid var(--line); border-radius: 1rem; font-size: .75rem; padding: .1rem .6rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; } th, td { border-bottom: 1px solid var(--line); padding: .4rem .8rem .4rem 0; text-align: left; }
th[scope=row] { font-weight: 600; max-width: 16rem; vertical-align: top; }
audio { display: block; height: 2.2rem; min-width: 13rem; width: 16rem; }
img { height: auto; max-width: 100%; }
@media (max-width: 40rem) { thead { display: none; } tr { display: block; } th, td { display: block; border: 0; } audio { width: 100%; }
  td::before { content: attr(data-column); font-size: .85rem; } }
"""


def write_index(samples: Path) -> Path:
    """Gather every card below ``samples`` into ``samples/index.html``; returns its path."""
    cards = read_cards(samples)
    sections = itertools.groupby(cards, key=lambda item: item[1].section)
    body = "".join(_section(name, list(items), samples) for name, items in sections)
    page = f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Samples</title><style>{STYLE}</style></head>
<body>
<h1>Samples</h1>
<p class="about">{len(cards)} sets of clips. Everything here plays from this folder: no server, no network.</p>
{body or "<p>Nothing to hear yet: run 04_train_codec and 10_listen.</p>"}
</body>
</html>
"""
    path = samples / "index.html"
    if not path.is_file() or path.read_text(encoding="utf-8") != page:
        files.write_text(path, page)
    return path


def link(samples: Path):
    """The page as a link for a notebook."""
    from IPython.display import HTML

    path = samples / "index.html"
    return HTML(f'<a href="{escape(path.as_uri())}" target="_blank">{escape(str(path))}</a>')


def _section(name: str, items: list[tuple[Path, Card]], samples: Path) -> str:
    runs = itertools.groupby(items, key=lambda item: item[1].run)
    return f"<section><h2>{escape(name)}</h2>{''.join(_run(run, list(cards), samples) for run, cards in runs)}</section>\n"


def _run(run: str, items: list[tuple[Path, Card]], samples: Path) -> str:
    """One table: a row for every clip name, a column for every epoch and version."""
    card = items[-1][1]
    columns = {_column(one, clip): None for _, one in items for clip in one.clips}  # a dictionary keeps the order of first appearance
    cells: dict[str, dict[str, str]] = {}
    texts: dict[str, str] = {}
    for folder, one in items:
        for clip in one.clips:
            texts.setdefault(clip.name, clip.text)
            cells.setdefault(clip.name, {})[_column(one, clip)] = _player(folder, one, clip, samples)
    head = "".join(f"<th scope=col>{escape(column)}</th>" for column in columns)
    rows = "".join(_row(name, texts[name], {column: row.get(column, "") for column in columns}) for name, row in cells.items())
    pictures = "".join(
        f'<figure><img loading="lazy" src="{_link(folder / picture.path, samples)}" alt="{escape(picture.caption)}">'
        f"<figcaption class=about>{escape(picture.caption)}</figcaption></figure>"
        for folder, one in items
        for picture in one.pictures
    )
    badge = ' <span class="synthetic">trained on synthetic music</span>' if card.synthetic else ""
    table = f'<div class="wide"><table><thead><tr><th></th>{head}</tr></thead><tbody>\n{rows}</tbody></table></div>' if cells else ""
    return (
        f"<h3>{escape(card.title)}{badge}</h3><p class=about>{escape(run)}{'. ' + escape(card.about) if card.about else ''}</p>"
        f"{_metrics(card)}{table}{pictures}\n"
    )


def _row(name: str, text: str, players: dict[str, str]) -> str:
    cells = "".join(f'<td data-column="{escape(column)}">{player}</td>' for column, player in players.items())
    return f"<tr><th scope=row>{escape(name)}{_quiet(text)}</th>{cells}</tr>\n"


def _column(card: Card, clip: Clip) -> str:
    return " ".join(part for part in (f"epoch {card.epoch}" if card.epoch is not None else "", clip.version) if part)


def _player(folder: Path, card: Card, clip: Clip, samples: Path) -> str:
    label = escape(f"{clip.name} {_column(card, clip)}".strip())
    figures = ", ".join(f"{name} {value:.3g}" for name, value in clip.figures.items())
    return (
        f'<audio controls preload="none" aria-label="{label}" src="{_link(folder / clip.path, samples)}"></audio>{_quiet(figures, "span")}'
    )


def _metrics(card: Card) -> str:
    if not card.metrics:
        return ""
    parts: Iterable[str] = (
        f"{name} {value:.3g}" + (f" (baseline {card.baseline[name]:.3g})" if name in card.baseline else "")
        for name, value in card.metrics.items()
    )
    return f"<p class=figures>{escape('; '.join(parts))}</p>"


def _quiet(text: str, element: str = "div") -> str:
    return f"<{element} class=figures>{escape(text)}</{element}>" if text else ""


def _link(path: Path, samples: Path) -> str:
    return quote(path.relative_to(samples).as_posix())
