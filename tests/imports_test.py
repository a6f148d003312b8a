"""Imports run one way (design: ops, clustering <- models <- backbones <- methods <- train <- __main__)."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "uld_jax"

# What each room may import of the package, besides itself and `errors`. Files of the top floor may import anything
# but the command line.
ALLOWED = {
    "ops": set(),
    "clustering": {"ops"},
    "models": {"ops"},
    "backbones": {"ops", "models"},
    "methods": {"ops", "clustering", "models", "backbones", "method", "optimizers", "rounds", "config"},
    "data": {"ops", "sharding"},
    "evaluators": {"ops", "clustering", "viz"},
    "convert": {"ops", "models"},
    "configs": {"configs", "config"},
}


def imported(path):
    """(room or module, lazily) of everything below uld_jax that a file imports."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "uld_jax":
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] == "uld_jax" and len(parts) > 1:
                    yield parts[1]


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_rooms_import_downwards_only(room):
    folder = PACKAGE / room if (PACKAGE / room).is_dir() else PACKAGE.parent / room
    for path in folder.rglob("*.py"):
        wrong = set(imported(path)) - ALLOWED[room] - {room, "errors"}
        assert not wrong, f"{path.relative_to(PACKAGE.parent)} imports {sorted(wrong)}"


def test_nothing_imports_the_command_line_or_what_the_core_does_not_need():
    for path in PACKAGE.rglob("*.py"):
        assert "__main__" not in set(imported(path))
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "") or ""]
            )
            if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "level", 0):
                assert not {n.split(".")[0] for n in names} & {"torch", "tensorflow", "scipy"}, path
