"""The rules of the house: imports point down, and files, functions and folders stay small."""

import ast
import pathlib
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# From top to bottom. A name may import names of lower rows only.
ORDER = (
    ("__main__",),
    ("main", "embed", "knn", "keys", "check", "input_benchmark", "api", "report"),
    ("pages",),
    ("ablate",),
    ("convert", "plan", "segmentation"),
    ("pretraining", "supervised"),
    ("health",),
    ("weights",),
    ("encoders",),
    ("config", "variants"),
    ("training", "contrastive"),
    ("data.preview", "data.prepare", "data.benchmark"),
    ("data.view_table",),
    ("data.loading", "data.augment"),
    ("data.sources",),
    ("models", "buckets"),
    ("terminal",),
    ("parallel",),
    ("text", "configs"),
)
ROWS = {name: row for row, names in enumerate(ORDER) for name in names}
MOST_FILES, MOST_LINES, MOST_FUNCTION_LINES = 14, 400, 70
MOST_EXPERIMENTS = 20  # a catalogue: one file each


def room(module: str) -> str:
    """Returns the name in ORDER that a module belongs to: data has rooms of its own."""
    parts = module.split(".")
    return ".".join(parts[:2] if parts[0] == "data" else parts[:1])


def imported(file: pathlib.Path) -> Iterator[str]:
    """Yields the modules of the package that a file imports, wherever the import stands."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("moco_jax.") for name in names if name[:9] == "moco_jax.")


def upward_imports(package: pathlib.Path) -> list[str]:
    """Returns the imports that do not point down."""
    found = []
    for file in sorted(package.rglob("*.py")):
        module = ".".join(file.relative_to(package).with_suffix("").parts)
        if module == "__init__":  # the front door: it loads the encoder on demand
            continue
        for name in imported(file):
            own, other = room(module), room(name)
            if own != other and not own.startswith("data.__") and ROWS[own] >= ROWS[other]:
                found.append(f"{module} imports {name}")
    return found


def test_imports_point_down():
    assert upward_imports(ROOT / "moco_jax") == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("models/resnet.py", "from moco_jax.training import loop"),
        ("training/loop.py", "from moco_jax.contrastive.train_step import TrainState"),
        ("data/sources/digits.py", "from moco_jax.data import loading"),
        ("parallel/mesh.py", "import moco_jax.config"),
        ("contrastive/state.py", "def f():\n    from moco_jax import main"),
    ],
)
def test_an_upward_import_is_found(tmp_path, module, line):
    file = tmp_path / module
    file.parent.mkdir(parents=True)
    file.write_text(line + "\n")
    assert len(upward_imports(tmp_path)) == 1


def sources() -> list[pathlib.Path]:
    folders = ("moco_jax", "configs", "tests", "benchmarks")
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def test_folders_and_files_are_small():
    folders = [file.parent for file in sources()]
    most = {ROOT / "configs": MOST_EXPERIMENTS}
    assert [str(f) for f in set(folders) if folders.count(f) > most.get(f, MOST_FILES)] == []
    assert [str(f) for f in sources() if len(f.read_text().splitlines()) > MOST_LINES] == []


def test_functions_are_short():
    long = [
        f"{file}:{node.lineno} {node.name}"
        for file in sources()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef)
        and node.end_lineno - node.lineno >= MOST_FUNCTION_LINES
    ]
    assert long == []
