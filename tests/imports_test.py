"""Imports run one way (ops, clustering <- models <- backbones <- methods <- engine <- studies <- cli)."""

import ast
import pathlib
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "uld_jax"

# What each room may import of the package, besides itself, `errors` and `files`. Files of the top floor may import
# anything but the command line.
ALLOWED = {
    "ops": set(),
    "clustering": {"ops", "models", "sharding"},
    "models": {"ops"},
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
        "weights",
    },
    "data": {"ops", "sharding"},
    "evaluation": {"ops", "clustering", "viz", "data", "config", "method", "optimizers", "sharding", "interrupts"},
    "viz": {"ops"},
    "convert": {"ops", "models", "weights"},
    "configs": {"configs", "config", "evaluation"},
}


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


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_rooms_import_downwards_only(room):
    folder = PACKAGE / room if (PACKAGE / room).is_dir() else PACKAGE.parent / room
    for path in folder.rglob("*.py"):
        wrong = set(imported(path)) - ALLOWED[room] - {room, "errors", "files"}
        assert not wrong, f"{path.relative_to(PACKAGE.parent)} imports {sorted(wrong)}"


def test_nothing_imports_the_command_line_or_what_the_core_does_not_need():
    for path in PACKAGE.rglob("*.py"):
        used = set(imported(path))
        assert "__main__" not in used
        assert "cli" not in used or path == PACKAGE / "__main__.py" or path.parent == PACKAGE / "cli"
        assert not packages(path) & {"tensorflow", "scipy"}, path
        readers = packages(path, lazy=path.parent != PACKAGE / "convert")
        assert not readers & {"torch", "safetensors", "h5py"}, f"{path}: in `convert` alone, inside functions"


def test_commands_import_what_they_compute_with_inside_functions():
    for path in [*(PACKAGE / "cli").glob("*.py"), PACKAGE / "__main__.py"]:
        assert not packages(path, lazy=False) - set(sys.stdlib_module_names) - {"absl", "uld_jax"}, path
        assert set(imported(path, lazy=False)) <= {"cli", "errors", "files", "interrupts"}, path


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
