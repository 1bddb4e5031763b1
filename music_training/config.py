"""Strict, typed configuration: YAML and dotted overrides in, frozen settings out, every error at once.

A system declares its settings beside its code as subclasses of :class:`Settings`. :func:`load` reads a YAML file or a
mapping, applies ``key.sub=value`` (``list+=[value]``) overrides and validates; :class:`ConfigError` lists *all* faults with file, dotted
key, value and, for an unknown key, the closest known one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from .errors import UserError


class Settings(BaseModel):
    """Base of all settings: frozen, unknown keys refused, no silent conversion of text to booleans.

    A section that is given in part keeps the rest of its defaults as the class around it states them:
    ``training: Training = Training(epochs=3)`` with ``training.lr=1`` still has 3 epochs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _keep_section_defaults(cls, content: Any) -> Any:
        if not isinstance(content, Mapping):
            return content
        defaults = {name: field.default for name, field in cls.model_fields.items()}
        return {name: _merged(defaults.get(name), value) for name, value in content.items()}


def _merged(default: Any, given: Any) -> Any:
    if not (isinstance(default, Settings) and isinstance(given, Mapping)):
        return given
    known = {name: getattr(default, name) for name in type(default).model_fields}
    return {**known, **{name: _merged(known.get(name), value) for name, value in given.items()}}


class ConfigError(UserError):
    """All faults of one configuration; ``errors`` holds a line for each."""

    def __init__(self, errors: Iterable[str]):
        self.errors = list(errors)
        super().__init__("\n".join(self.errors))


S = TypeVar("S", bound=Settings)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, except that ``1e-4`` is a number and a key may stand only once."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_FLOAT = re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


class _Dumper(yaml.SafeDumper):
    """Writes what :class:`_Loader` reads back as it was: the text ``1e-4`` in quotes, rare line breaks escaped."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style='"' if re.search("[\x85\u2028\u2029\ufeff]", text) else None
    ),
)


def parse_yaml(text: str, name: str) -> Any:
    """Parse YAML text; ``name`` (a file or an option) stands in the error."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        raise ConfigError([f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}"]) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping from a file; an empty file is an empty mapping."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError([f"{path}: no such file"]) from None
    content = parse_yaml(text, str(path))
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError([f"{path}: expected a mapping of keys to values, got {type(content).__name__}"])
    return content


def override(content: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Apply ``a.b=value`` overrides (values are YAML) to a copy of nested mappings; ``a.b+=[value]`` adds to a list that is there."""
    result = {key: dict(value) if isinstance(value, Mapping) else value for key, value in content.items()}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError([f"override {text!r}: write it as key.sub=value"])
        adds = key.rstrip().endswith("+")
        *parents, leaf = key.strip().removesuffix("+").split(".")
        level = result
        for parent in parents:
            inner = level.get(parent)
            level[parent] = level = dict(inner) if isinstance(inner, Mapping) else {}
        given = parse_yaml(value, f"override {key.strip()}")
        if adds and not (isinstance(given, list) and isinstance(level.get(leaf), list | None)):
            raise ConfigError([f"override {text!r}: += adds a list to a list; write it as {leaf}+=[value]"])
        level[leaf] = [*(level.get(leaf) or []), *given] if adds else given
    return result


def load(cls: type[S], source: Path | str | Mapping[str, Any], overrides: Iterable[str] = (), name: str = "") -> S:
    """Build ``cls`` from a YAML file or a mapping plus overrides.

    Raises ConfigError with a line for every fault; ``name`` replaces the file name in those lines.
    """
    content = source if isinstance(source, Mapping) else read_yaml(Path(source))
    name = name or ("settings" if isinstance(source, Mapping) else str(source))
    try:
        return cls.model_validate(override(content, overrides))
    except ValidationError as error:
        raise ConfigError([_explain(cls, name, fault) for fault in error.errors()]) from None


def save(settings: Settings, path: Path) -> None:
    """Write the resolved settings as YAML (atomically)."""
    from .files import write_text

    write_text(path, dump(settings.model_dump(mode="json")))


def dump(content: Any) -> str:
    """YAML text with keys in their own order."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def suggest(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'lr'?"`` where a known word is close, else the list of known words."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(sorted(known))}" if known else ""


def _explain(cls: type[Settings], name: str, fault: Mapping[str, Any]) -> str:
    location = [part for part in fault["loc"] if not (isinstance(part, str) and "[" in part)]
    key = ".".join(str(part) for part in location)
    if fault["type"] == "extra_forbidden":
        return f"{name}: {key}: unknown key{suggest(str(location[-1]), _fields_at(cls, location[:-1]))}"
    if fault["type"] == "missing":
        return f"{name}: {key}: missing"
    message = fault["msg"].removeprefix("Value error, ")
    return f"{name}: {key}: {message[:1].lower()}{message[1:]} (got {fault['input']!r})" if key else f"{name}: {message}"


def _fields_at(cls: type[Settings], location: Iterable[Any]) -> list[str]:
    """Field names of the settings class that a dotted location leads to."""
    current: Any = cls
    for part in location:
        if isinstance(part, str) and isinstance(current, type) and issubclass(current, BaseModel) and part in current.model_fields:
            current = current.model_fields[part].annotation
            settings = [arg for arg in get_args(current) if isinstance(arg, type) and issubclass(arg, BaseModel)]
            current = settings[0] if settings else current
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []
