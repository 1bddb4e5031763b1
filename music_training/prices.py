"""What computing costs: a table that a person edits (``model_config/prices.yaml``), and money for hours.

:func:`per_hour` turns what a person says (a number, a GPU's name, nothing) into a price; :func:`text` shows one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from . import config, files, machine
from .errors import UserError

FILE = files.REPOSITORY / "model_config" / "prices.yaml"


class Prices(config.Settings):
    """The table: ``hourly`` holds the price of an hour for each GPU by name, ``none`` that of a machine without one."""

    currency: str = "USD"
    hourly: dict[str, float]


@dataclass(frozen=True)
class Price:
    """What an hour costs; ``what`` says for which machine. ``hourly`` is None where the table does not know it."""

    hourly: float | None
    what: str
    currency: str = "USD"

    def of(self, seconds: float) -> float | None:
        """What ``seconds`` cost; None where the price of an hour is not known."""
        return None if self.hourly is None else self.hourly * seconds / 3600


def read(path: Path = FILE) -> Prices:
    """Read the table; ConfigError for what it cannot hold."""
    prices = config.load(Prices, path)
    wrong = [name for name, price in prices.hourly.items() if not 0 <= price < float("inf")]
    if wrong:
        raise UserError(f"{path}: hourly.{wrong[0]}: a price is a number from 0 up (got {prices.hourly[wrong[0]]})")
    return prices


def per_hour(given: str | float | None = None, gpus: list[str] | None = None, path: Path = FILE) -> Price:
    """The price of an hour: ``given`` as a number for the whole machine, or as the name of a GPU in the table, ``4 x H200``.

    None: that of the GPUs of this machine (``gpus``: their names, else nvidia-smi is asked), or of none.
    """
    prices = read(path)
    if given is not None and str(given).strip():
        try:
            hourly = float(given)
        except ValueError:
            return _named(str(given), prices, path)
        if not 0 <= hourly < float("inf"):
            raise UserError(f"price {given}: a number from 0 up is expected, in {prices.currency} an hour")
        return Price(hourly, "as given", prices.currency)
    names = machine.gpus() if gpus is None else gpus
    if not names:
        return Price(prices.hourly.get("none", 0.0), "no GPU", prices.currency)
    known = [_match(name, prices) for name in names]
    hourly = None if None in known else sum(prices.hourly[name] for name in known)
    return Price(hourly, f"{len(names)} x {known[0] or names[0].partition(',')[0]}", prices.currency)


def text(amount: float | None, currency: str = "USD") -> str:
    """An amount as a person reads it: ``$1.20``, or that it is not known."""
    if amount is None:
        return "price not known (model_config/prices.yaml)"
    return f"${amount:,.2f}" if currency == "USD" else f"{amount:,.2f} {currency}"


def _named(given: str, prices: Prices, path: Path) -> Price:
    count, name = re.fullmatch(r"\s*(?:(\d+)\s*[x×*]\s*)?(.+?)\s*", given).groups()
    known = next((key for key in prices.hourly if key.casefold() == name.casefold()), None)
    if known is None:
        raise UserError(f"price {given!r}: neither a number nor a GPU of {path}{config.suggest(name, prices.hourly)}")
    return Price(int(count or 1) * prices.hourly[known], f"{int(count or 1)} x {known}", prices.currency)


def _match(gpu: str, prices: Prices) -> str | None:
    """The longest name of the table that stands as words in a GPU's own name."""
    words = [name for name in prices.hourly if re.search(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", gpu, re.IGNORECASE)]
    return max(words, key=len, default=None)
