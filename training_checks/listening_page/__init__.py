"""The listening page ``outputs/samples/index.html``: every clip of every run with a player, straight from the disk.

Whoever has something to hear writes a card, ``card.json``, into a folder below ``outputs/samples`` beside its audio;
:func:`write_index` gathers all cards into one page that needs no server and no network. docs/listening_page.md has the
card's fields and what the page does with them.
"""

from .analysis import analyse_files
from .cards import Card, Clip, Link, Picture, read_cards, write_card
from .page import link, write_index

__all__ = ["Card", "Clip", "Link", "Picture", "analyse_files", "link", "read_cards", "write_card", "write_index"]
