"""Data flows one way: a folder imports only folders that come before it, and no import is circular."""

import ast
import functools
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "subtransfer"
# The rooms in the order in which data passes them.
FLOW = """
runtime store settings models sources rollout filtering training distillation probes config
analysis report experiment studies sweeps launch
""".split()


def _modules(package=PACKAGE):
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__"), path


MODULES = dict(_modules())


@functools.cache
def _imports(path):
    """The modules that a file imports, also within functions; not what only type checkers read."""
    found, waiting = [], [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.append(whole if whole in MODULES else node.module or "")
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return found


def _room(module):
    return module.split(".")[1] if "." in module else ""


def test_every_room_has_its_place():
    rooms = {path.stem if path.is_file() else path.name for path in PACKAGE.iterdir()}
    # Bases are data that come with the package.
    assert rooms - {"__init__", "__pycache__", "bases"} == set(FLOW)


def test_imports_point_upstream():
    for name, path in MODULES.items():
        for imported in _imports(path):
            if not imported.startswith("subtransfer.") or name == "subtransfer":
                continue
            here, there = FLOW.index(_room(name)), FLOW.index(_room(imported))
            assert there <= here, f"{name} imports {imported}, which comes later"


def test_no_import_is_circular():
    graph = {name: {i for i in _imports(path) if i in MODULES} for name, path in MODULES.items()}
    done, under_way = set(), []

    def visit(name):
        assert name not in under_way, " imports ".join([*under_way[under_way.index(name) :], name])
        if name not in done:
            under_way.append(name)
            for imported in sorted(graph[name] - {name}):
                visit(imported)
            done.add(under_way.pop())

    for name in graph:
        visit(name)


def test_the_shell_stands_alone():
    for name, path in _modules(ROOT / "shellworld"):
        assert not any(i.split(".")[0] == "subtransfer" for i in _imports(path)), name
    users = {
        n for n, p in MODULES.items() if any(i.split(".")[0] == "shellworld" for i in _imports(p))
    }
    assert users == {"subtransfer.settings.bash"}
