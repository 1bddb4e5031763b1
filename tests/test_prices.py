"""Prices: the table as it is, and what a person's number, a GPU's name or this machine's GPUs make of it."""

import pytest

from music_training import files, prices
from music_training.config import ConfigError
from music_training.errors import UserError


@pytest.fixture
def table(tmp_path):
    lines = "currency: EUR\nhourly: {none: 0.1, A40: 0.5, RTX A4000: 0.2, H200: 4, 'H200 NVL': 3}\n"
    return files.write_text(tmp_path / "prices.yaml", lines)


def test_the_table_that_comes_along_is_valid():
    assert {"none", "A40", "H200"} <= set(prices.read().hourly)


@pytest.mark.parametrize(
    ("given", "gpus", "hourly", "what"),
    [
        (2.5, [], 2.5, "as given"),
        ("0.35", ["NVIDIA H200"], 0.35, "as given"),
        ("a40", [], 0.5, "1 x A40"),
        ("4 x H200", [], 16, "4 x H200"),
        (None, [], 0.1, "no GPU"),
        (None, ["NVIDIA H200, 143771 MiB"] * 4, 16, "4 x H200"),
        (None, ["NVIDIA H200 NVL, 143771 MiB"], 3, "1 x H200 NVL"),
        (None, ["NVIDIA RTX A4000, 16376 MiB"], 0.2, "1 x RTX A4000"),
        (None, ["NVIDIA GeForce GTX 1080, 8192 MiB"], None, "1 x NVIDIA GeForce GTX 1080"),
    ],
)
def test_price_of_an_hour(table, given, gpus, hourly, what):
    price = prices.per_hour(given, gpus, table)
    assert (price.hourly, price.what, price.currency) == (hourly, what, "EUR")


def test_money_for_seconds():
    price = prices.per_hour(3.6, [])
    assert price.of(1000) == pytest.approx(1.0)
    assert prices.text(price.of(1000)) == "$1.00" and prices.text(1234.5, "EUR") == "1,234.50 EUR"
    assert prices.Price(None, "1 x ?").of(10) is None and "not known" in prices.text(None)


def test_mistakes_are_one_line(table, tmp_path):
    with pytest.raises(UserError, match=r"price 'H20': neither a number nor a GPU of .*prices.yaml; did you mean 'H200'\?"):
        prices.per_hour("H20", [], table)
    with pytest.raises(UserError, match="price -1: a number from 0 up"):
        prices.per_hour(-1, [], table)
    with pytest.raises(UserError, match="hourly.A40: a price is a number from 0 up"):
        prices.read(files.write_text(tmp_path / "bad.yaml", "hourly: {A40: -1}"))
    with pytest.raises(ConfigError, match="hourly.A40: .*number"):
        prices.read(files.write_text(tmp_path / "worse.yaml", "hourly: {A40: cheap}"))
