"""Licences of tracks: which allow what, read from the many ways in which archives write them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..errors import UserError

PRESETS = ("any", "commercial")


def allowed(licence: str, allow: Iterable[str]) -> bool:
    """Whether a licence passes an allow-list of presets and texts (a licence that *is* the text, letter case aside)."""
    return any(_passes(licence, item) for item in allow)


def check(allow: Iterable[str]) -> None:
    """UserError for an empty allow-list."""
    if not list(allow):
        raise UserError(f"licences: an empty list allows nothing; give {', '.join(PRESETS)} or licence texts")


def commercial(licence: str) -> bool:
    """Whether a licence plainly allows commercial use and changed versions: CC BY, CC BY-SA, CC0, public domain.

    What is unknown, unclear ("Sampling Plus", "Orphan Work") or forbids either is not allowed.
    """
    text = re.sub(r"[\s_/.-]+", " ", licence.lower())
    if re.search(r"non ?commercial|\bnc\b|no ?deriv|\bnd\b|sampling|all rights|fma limited", text):
        return False
    return bool(re.search(r"^(creative commons )?attribution\b|\bcc by\b|licenses by\b|^cc0|\bzero\b|public ?domain", text))


def _passes(licence: str, item: str) -> bool:
    if item == "any":
        return True
    if item == "commercial":
        return commercial(licence)
    return licence.strip().lower() == item.strip().lower()
