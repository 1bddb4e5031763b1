"""The notebooks as the runner sees them: their parameters, which of them are asked for, and which are up to date.

A notebook is up to date if its cells, the code of the repository, its parameters, every stage that it ran (inputs and
outputs) and its executed copy are what they were when it last ran to its end. Nothing here starts a kernel.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import config, files, stages
from .errors import UserError

FOLDER = files.REPOSITORY / "notebooks"
CODE = ("music_training/**/*", "training_checks/**/*", "scripts/*.py", "model_config/**/*")  # what a result depends on


@dataclass(frozen=True)
class Notebook:
    """A notebook file: its name (without .ipynb), its path and the names that its parameters cell assigns."""

    name: str
    path: Path
    parameters: frozenset[str]
    source: str  # SHA-256 of the cells' kinds and sources: outputs and metadata do not count

    @property
    def number(self) -> str:
        """What stands before the first underscore: ``02a`` of ``02a_download_fma``."""
        return self.name.partition("_")[0]


def read(name: str, folder: Path = FOLDER) -> Notebook:
    """Read a notebook by its name; UserError where it is missing or no notebook."""
    path = folder / f"{name}.ipynb"
    content = files.read_json(path)
    if content is None and not path.is_file():
        raise UserError(f"{path}: no such notebook")
    try:
        cells = [(cell["cell_type"], "".join(cell["source"]), cell["metadata"].get("tags", [])) for cell in content["cells"]]
    except (TypeError, KeyError, AttributeError):
        raise UserError(f"{path}: not a Jupyter notebook") from None
    tagged = [source for kind, source, tags in cells if kind == "code" and "parameters" in tags]
    try:
        names = frozenset(name for source in tagged for name in _assigned(source))
    except SyntaxError as error:
        raise UserError(f"{path}: the parameters cell is not valid Python ({error.msg}, line {error.lineno})") from None
    source = hashlib.sha256(json.dumps([cell[:2] for cell in cells]).encode()).hexdigest()
    return Notebook(name, path, names, source)


def _assigned(source: str) -> Iterable[str]:
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            yield statement.target.id
        elif isinstance(statement, ast.Assign):
            yield from (target.id for target in statement.targets if isinstance(target, ast.Name))


def resolve(word: str, names: Iterable[str]) -> str:
    """The notebook that a person means by ``04_train_codec``, ``04`` or ``4``; UserError with a suggestion otherwise."""
    names = list(names)
    for name in names:
        number = name.partition("_")[0]
        if word in (name, f"{name}.ipynb", number, number.lstrip("0")):
            return name
    raise UserError(f"notebook {word!r}: not in this profile{config.suggest(word, names)}")


def select(names: Iterable[str], only: Iterable[str] = (), first: str | None = None, last: str | None = None) -> list[str]:
    """The notebooks of ``names``, in their order, from ``first`` to ``last`` and, where ``only`` is given, among those."""
    names = list(names)
    wanted = {resolve(word, names) for word in only} or set(names)
    start = names.index(resolve(first, names)) if first else 0
    stop = names.index(resolve(last, names)) if last else len(names) - 1
    if start > stop:
        raise UserError(f"--from {first} comes after --to {last}; the order is {', '.join(names)}")
    chosen = [name for name in names[start : stop + 1] if name in wanted]
    if not chosen:
        raise UserError(f"no notebook of --only lies between --from and --to; the order is {', '.join(names)}")
    return chosen


def parse_parameters(texts: Iterable[str], chosen: list[Notebook]) -> dict[str, dict[str, Any]]:
    """The given ``name=value`` and ``04.name=value`` texts as parameters of each chosen notebook; values are YAML.

    A plain name goes to every chosen notebook that has it. UserError, all faults in one, for a name that none has.
    """
    result: dict[str, dict[str, Any]] = {notebook.name: {} for notebook in chosen}
    faults = []
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            faults.append(f"parameter {text!r}: write it as name=value")
            continue
        where, _, name = key.strip().rpartition(".")
        try:
            name_asked = resolve(where, result) if where else ""
            parsed = config.parse_yaml(value, f"parameter {key.strip()}")
            json.dumps(parsed)
        except UserError as error:
            faults.append(str(error))
            continue
        except TypeError:
            faults.append(f"parameter {key.strip()}: {value!r} is neither a number, a text, a list nor a mapping; put it in quotes")
            continue
        asked = [notebook for notebook in chosen if name_asked in ("", notebook.name)]
        takers = [notebook for notebook in asked if name in notebook.parameters]
        if not takers:
            known = sorted(set().union(*(notebook.parameters for notebook in asked)))
            faults.append(f"parameter {name!r}: no such parameter in {name_asked or ', '.join(result)}{config.suggest(name, known)}")
        for notebook in takers:
            result[notebook.name][name] = parsed
    if faults:
        raise config.ConfigError(faults)
    return result


# What a notebook left behind


def executed_path(profile: str, name: str) -> Path:
    """Where the executed copy of a notebook lies."""
    return files.outputs_root() / "notebooks" / profile / f"{name}.ipynb"


def stamp_path(scope: str, name: str) -> Path:
    """Where the stamp of a notebook lies."""
    return files.outputs_root() / ".stages" / scope / "notebooks" / f"{name}.json"


@functools.cache
def code_digest() -> str:
    """SHA-256 over the repository's code and configuration: names and contents."""
    state = hashlib.sha256()
    paths = {path for pattern in CODE for path in files.REPOSITORY.glob(pattern)}
    for path in sorted(paths):
        relative = path.relative_to(files.REPOSITORY)
        if path.is_file() and "__pycache__" not in relative.parts and not path.name.startswith("."):
            state.update(f"{relative.as_posix()}\0{files.digest(path)}\n".encode())
    return state.hexdigest()


def save_stamp(notebook: Notebook, scope: str, profile: str, parameters: Mapping[str, Any], listing: Path, seconds: float) -> None:
    """Note that a notebook ran to its end; ``listing`` names the stamps of the stages that it ran, one a line."""
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.is_file() else []
    executed = executed_path(profile, notebook.name)
    files.write_json(
        stamp_path(scope, notebook.name),
        {
            "source": notebook.source,
            "code": code_digest(),
            "parameters": dict(parameters),
            "stages": {line: files.fingerprint(files.absolute(line)) for line in dict.fromkeys(lines)},
            "executed": {files.relative(executed): files.fingerprint(executed)},
            "seconds": round(seconds, 1),
        },
    )


def last_seconds(scope: str, name: str) -> float | None:
    """How long a notebook took when it last ran to its end."""
    stamp = files.read_json(stamp_path(scope, name))
    return stamp["seconds"] if stamp else None


def why_run(notebook: Notebook, scope: str, profile: str, parameters: Mapping[str, Any]) -> str:
    """Why a notebook has to run, in a few words; empty where it is up to date."""
    stamp = files.read_json(stamp_path(scope, notebook.name))
    if stamp is None:
        return "never ran to its end"
    if stamp["source"] != notebook.source:
        return "the notebook changed"
    if stamp["parameters"] != json.loads(json.dumps(dict(parameters))):
        return "its parameters changed"
    if stamp["code"] != code_digest():
        return "the code or its configuration changed"
    if not all(files.matches(files.absolute(path), known) for path, known in stamp["executed"].items()):
        return "its executed copy is gone or of another run"
    if files.relative(executed_path(profile, notebook.name)) not in stamp["executed"]:
        return "its executed copy is gone or of another run"
    for path, known in stamp["stages"].items():
        if not files.matches(files.absolute(path), known):
            return f"a stage was made again ({Path(path).stem})"
        stage = files.read_json(files.absolute(path))
        if not stages.inputs_unchanged(stage):
            return f"an input of stage {stage['stage']} changed"
        if not stages.outputs_match(stage):
            return f"an output of stage {stage['stage']} is gone or changed"
    return ""


def has_stages(scope: str, name: str) -> bool:
    """Whether a notebook ran any stage when it last ran to its end."""
    stamp = files.read_json(stamp_path(scope, name))
    return bool(stamp and stamp["stages"])
