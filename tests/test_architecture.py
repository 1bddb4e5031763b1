"""The shape of the repository: which way imports point, what a notebook may hold, how fast a command answers."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from music_training import files

REPOSITORY = files.REPOSITORY
SYSTEMS = ("musicgen", "edm_structure", "lora_demucs", "emotion_bridges", "diarization")
LAYERS = {"ground": 0, "library": 1, "trainer": 1, "system": 2, "checks": 3, "top": 4}
HEAVY = {"torch", "torchaudio", "transformers", "audiocraft", "peft", "accelerate", "demucs", "torchmetrics", "lhotse", "papermill"}
MODULES = sorted(path for folder in ("music_training", "training_checks") for path in (REPOSITORY / folder).rglob("*.py"))
SCRIPTS = sorted((REPOSITORY / "scripts").glob("*.py")) + sorted(REPOSITORY.glob("*.py"))
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


def layer(module: str) -> tuple[str, str]:
    """The layer of a module of ours and, for a system, which one."""
    parts = module.split(".")
    if parts[0] == "training_checks":
        return "checks", ""
    if parts[0] != "music_training":
        return "top", ""
    if len(parts) > 1 and parts[1] in SYSTEMS:
        return "system", parts[1]
    return (parts[1], "") if len(parts) > 1 and parts[1] in ("library", "trainer") else ("ground", "")


def imports(tree: ast.AST, package: list[str], top_only: bool = False) -> set[str]:
    """Full names of what a module imports; ``top_only``: only what is loaded when the module is."""
    found = set()
    nodes = list(_loaded_at_once(tree)) if top_only else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{origin}.{alias.name}" for alias in node.names}
    return found


def _loaded_at_once(node: ast.AST):
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield child
        yield from _loaded_at_once(child)


def package_of(path: Path) -> list[str]:
    return list(path.relative_to(REPOSITORY).parent.parts)


def imports_of(path: Path, top_only: bool = False) -> set[str]:
    return imports(ast.parse(path.read_text(encoding="utf-8")), package_of(path), top_only)


def ours(names: set[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] in ("music_training", "training_checks")}


def wrong_arrows(module: str, targets: set[str]) -> list[str]:
    here, system = layer(module)
    faults = []
    for target in sorted(ours(targets)):
        there, other = layer(target)
        sideways = here == there == "system" and system != other
        if LAYERS[there] > LAYERS[here] or sideways or {here, there} == {"library", "trainer"}:
            faults.append(f"{module} imports {target}")
    return faults


def test_imports_point_one_way():
    assert [fault for path in MODULES for fault in wrong_arrows(module_name(path), imports_of(path))] == []


@pytest.mark.parametrize(
    "module, source, wrong",
    [
        ("music_training.files", "from .library import catalogue", True),
        ("music_training.library.audio", "from .. import files", False),
        ("music_training.library.audio", "from ..trainer import loop", True),
        ("music_training.library.sources.fma", "from ...musicgen import train", True),
        ("music_training.musicgen.train", "from ..edm_structure import data", True),
        ("music_training.musicgen.train", "from . import tokens\nfrom ..library import audio", False),
        ("music_training.diarization.data", "def f():\n    import training_checks.preflight", True),
        ("training_checks.preflight", "from music_training.musicgen import train", False),
    ],
)
def test_the_rule_itself(module, source, wrong):
    assert bool(wrong_arrows(module, imports(ast.parse(source), module.split(".")[:-1]))) == wrong


def test_config_stage_library_and_ssh_code_load_nothing_heavy():
    light = [path for path in MODULES if layer(module_name(path))[0] in ("ground", "library")]
    light += [path for path in SCRIPTS if path.name in ("run_notebooks.py", "build_manifests.py", "runpod_ssh_sync.py")]
    faults = [
        f"{path.relative_to(REPOSITORY)} imports {name} at its top"
        for path in light
        for name in sorted(imports_of(path, top_only=True))
        if name.split(".")[0] in HEAVY
    ]
    assert faults == []


def test_no_module_is_called_utils_or_helpers():
    assert [path for path in MODULES if path.stem in ("utils", "helpers", "misc", "common")] == []


def commands() -> list[list[str]]:
    """Every command: modules with a ``__main__`` part, and scripts."""
    found = []
    for path in MODULES:
        if path.name == "__main__.py":
            found.append(["-m", module_name(path.parent / "__init__.py")])
        elif '\nif __name__ == "__main__"' in path.read_text(encoding="utf-8"):
            found.append(["-m", module_name(path)])
    return found + [[str(path.relative_to(REPOSITORY))] for path in SCRIPTS if "__main__" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_help_loads_no_torch(command):
    """What takes the time of a slow ``--help`` is the import of torch; so that is looked for, not the time."""
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", *command, "--help"], cwd=REPOSITORY, capture_output=True, text=True, env=os.environ
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert len(ended.stdout.split()) > 5
    loaded = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines() if line.startswith("import time:")}
    assert loaded & HEAVY == set()


# Notebooks

FORBIDDEN = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.For, ast.While, ast.Try, ast.Lambda, ast.With)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    @pytest.fixture
    def notebook(self, path):
        content = nbformat.read(path, as_version=nbformat.NO_CONVERT)
        nbformat.validate(content)
        return content

    @pytest.fixture
    def code(self, notebook):
        return [cell for cell in notebook.cells if cell.cell_type == "code"]

    def test_is_stripped(self, notebook, code):
        assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
        assert "papermill" not in notebook.metadata and not any("papermill" in cell.metadata for cell in notebook.cells)
        assert "widgets" not in notebook.metadata
        kernel = notebook.metadata.kernelspec
        assert (kernel.name, kernel.display_name) == ("music-training", "Music training")

    def test_has_8_to_12_cells_with_ids(self, notebook):
        assert 8 <= len(notebook.cells) <= 12
        assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)

    def test_begins_with_a_title_that_says_what_it_costs(self, notebook):
        title = notebook.cells[0]
        assert title.cell_type == "markdown" and title.source.startswith("# ")
        assert "cost" in title.source.lower()

    def test_has_one_parameters_cell_of_typed_literals(self, code):
        tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
        assert tagged == [code[0]]
        for statement in ast.parse(tagged[0].source).body:
            assert isinstance(statement, ast.AnnAssign), ast.unparse(statement)
            ast.literal_eval(statement.value)

    def test_holds_no_logic(self, code):
        for cell in code:
            assert not re.search(r"^\s*[!%]", cell.source, re.MULTILINE), cell.source
            nodes = list(ast.walk(ast.parse(cell.source)))
            assert not [ast.unparse(node) for node in nodes if isinstance(node, FORBIDDEN)]
            texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
            assert not [text for text in texts if text.startswith(("/", "~", "C:"))]
