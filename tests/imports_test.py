"""Imports run one way (ops, clustering <- models <- backbones <- methods <- engine <- studies <- cli)."""

import ast
import graphlib
import pathlib
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "uld_jax"

# What each room, a folder or a file of the package, may import of it besides itself and `BASE`.
BASE = {"checksums", "devices", "errors", "files"}
ALLOWED = {
    "checksums": set(),
    "devices": set(),
    "errors": set(),
    "files": set(),
    "version": set(),
    "compiler": set(),
    "hyperparameters": set(),
    "interrupts": set(),
    "landmark_names": set(),
    "large_pages": set(),
    "legacy": set(),
    "lookup": set(),
    "optimizers": set(),
    "processes": set(),
    "sharding": set(),
    "weights": set(),
    "ops": set(),
    "models": {"ops", "sharding"},
    "clustering": {"ops", "models", "sharding"},
    "bank": {"ops"},
    "method": {"bank", "hyperparameters"},
    "backbones": {"ops", "models", "weights", "lookup"},
    "methods": {
        "ops",
        "clustering",
        "models",
        "backbones",
        "bank",
        "hyperparameters",
        "method",
        "optimizers",
        "sharding",
        "weights",
    },
    "config": {"backbones", "configs", "hyperparameters", "legacy", "lookup", "method"},
    "configs": {"configs", "config", "evaluation"},
    "convert": {"ops", "models", "weights"},
    "data": {"ops", "sharding"},
    "viz": {"ops"},
    "evaluation": {"ops", "clustering", "viz", "data", "config", "method", "optimizers", "sharding", "interrupts"},
    "engine": {
        "backbones",
        "bank",
        "config",
        "data",
        "evaluation",
        "interrupts",
        "method",
        "sharding",
        "version",
        "viz",
    },
    "detector": {"data", "engine", "evaluation", "method", "ops", "sharding"},
    "predict": {"data", "detector", "landmark_names", "ops", "viz"},
    "studies": {
        "backbones",
        "bank",
        "clustering",
        "config",
        "data",
        "engine",
        "evaluation",
        "landmark_names",
        "method",
        "ops",
        "sharding",
        "version",
        "viz",
        "weights",
    },
    "plan": {
        "backbones",
        "compiler",
        "config",
        "convert",
        "data",
        "engine",
        "method",
        "sharding",
        "weights",
    },
    "cli": {
        "config",
        "convert",
        "data",
        "detector",
        "engine",
        "evaluation",
        "landmark_names",
        "plan",
        "predict",
        "sharding",
        "studies",
        "weights",
    },
    "__init__": {"compiler", "config", "detector", "engine", "version"},
    "__main__": {"cli", "interrupts", "large_pages", "processes"},
}
# `config` looks up the folder of the configs that ship with the package, inside a function; it runs none of them.
LOOKED_UP = {"config": {"configs"}}


def imported(path, lazy=True):
    """Room or module of everything below uld_jax that a file imports; without `lazy`, only to be imported itself."""
    for node in nodes_of(path, lazy):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "uld_jax":
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] == "uld_jax" and len(parts) > 1:
                    yield parts[1]


def nodes_of(path, lazy=True):
    """All syntax nodes of a file; without `lazy`, those that run when it is imported."""
    nodes = [ast.parse(path.read_text())]
    for node in nodes:
        if lazy or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            nodes.extend(ast.iter_child_nodes(node))
        yield node


def files_of(room):
    """All files of a room."""
    for folder in (PACKAGE / room, PACKAGE.parent / room):  # an installed package has the configs in itself
        if folder.is_dir():
            return sorted(folder.rglob("*.py"))
    return [PACKAGE / f"{room}.py"]


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_rooms_import_downwards_only(room):
    for path in files_of(room):
        wrong = set(imported(path)) - ALLOWED[room] - {room} - BASE
        assert not wrong, f"{path.relative_to(PACKAGE.parent)} imports {sorted(wrong)}"


def test_every_room_is_in_the_table():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders | {path.stem for path in PACKAGE.glob("*.py")} | {"configs"} == set(ALLOWED)


def test_the_table_runs_one_way():
    """No room is below itself, so that every one can be read with what it imports and without what imports it."""
    below = {room: rooms - {room} - LOOKED_UP.get(room, set()) for room, rooms in ALLOWED.items()}
    list(graphlib.TopologicalSorter(below).static_order())  # raises where there is a circle
    for room, looked_up in LOOKED_UP.items():
        for path in files_of(room):
            assert not set(imported(path, lazy=False)) & looked_up, path


H5PY = [PACKAGE / "convert", PACKAGE / "data" / "labels", PACKAGE / "data" / "builders"]


def test_nothing_imports_the_command_line_or_what_the_core_does_not_need():
    for path in PACKAGE.rglob("*.py"):
        used = set(imported(path))
        assert "__main__" not in used
        assert "cli" not in used or path == PACKAGE / "__main__.py" or path.parent == PACKAGE / "cli"
        assert "tensorflow" not in packages(path), path
        readers = packages(path, lazy=path.parent != PACKAGE / "data" / "builders")
        assert not readers & {"scipy", "lmdb", "cdflib"}, f"{path}: in `data/builders` alone, inside functions"
        readers = packages(path, lazy=path.parent != PACKAGE / "convert")
        assert not readers & {"torch", "safetensors"}, f"{path}: in `convert` alone, inside functions"
        readers = packages(path, lazy=path.parent not in H5PY)
        assert "h5py" not in readers, f"{path}: in `convert`, `data/labels` and `data/builders` alone, inside functions"
        assert not packages(path) & {"pickle"} or "labels" not in path.parts, f"{path}: labels are never unpickled"


def test_commands_import_what_they_compute_with_inside_functions():
    for path in [*(PACKAGE / "cli").glob("*.py"), PACKAGE / "__main__.py"]:
        assert not packages(path, lazy=False) - set(sys.stdlib_module_names) - {"absl", "uld_jax"}, path
        assert set(imported(path, lazy=False)) <= {"cli", "errors", "files", "interrupts", "large_pages"}, path


def packages(path, lazy=True):
    """What a file imports from outside; without `lazy`, only what it needs to be imported itself."""
    found = set()
    for node in nodes_of(path, lazy):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found


def test_lazy_imports_are_told_apart(tmp_path):
    path = tmp_path / "file.py"
    path.write_text("import a.b\nif a:\n    from c import d\ndef f():\n    import e\nclass G:\n    from h import i\n")
    assert packages(path) == {"a", "c", "e", "h"}
    assert packages(path, lazy=False) == {"a", "c", "h"}


def test_a_finished_run_predicts_without_what_measures():
    """`detector.py` and what it takes of `evaluation` know neither reports nor pictures."""
    measuring = {"measure", "pictures", "report", "run"}
    for name in ("detector", "evaluation/predictor", "evaluation/landmark_regression"):
        tree = ast.parse((PACKAGE / f"{name}.py").read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("uld_jax.evaluation"):
                taken = {node.module.split(".")[-1], *(alias.name for alias in node.names)}
                assert not taken & measuring, f"{name}.py takes {taken & measuring} of evaluation"
