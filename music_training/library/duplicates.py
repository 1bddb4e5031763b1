"""Finds audio that is there twice, by the hash of what was decoded: another name, folder, tag or container hides nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np


def digest(pcm: np.ndarray) -> str:
    """SHA-256 of samples as they are written (int16), as hex; processors since 2017 compute it in hardware."""
    return hashlib.sha256(pcm).hexdigest()


def joined_digest(parts: Iterable[str]) -> str:
    """The digest of a whole made of parts with these digests: equal for equal parts in the same order."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def exact(items: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Map every duplicate's id to the id that is kept; ``items`` are ``(id, digest)`` in the order of preference."""
    first: dict[str, str] = {}
    duplicates = {}
    for name, value in items:
        kept = first.setdefault(value, name)
        if kept != name:
            duplicates[name] = kept
    return duplicates
