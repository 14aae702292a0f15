"""The package as others use it: its README, its public names, and what it leans on."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import shellworld
from shellworld.sandbox import pool

PACKAGE = Path(shellworld.__file__).parent
README = (PACKAGE / "README.md").read_text()
SHELL_PAGE = (PACKAGE / "docs" / "shell.md").read_text()
DEPENDENCIES = {"absl", "tree_sitter", "tree_sitter_bash"}
# Each room may import the rooms before it; the interpreter and the commands know each other.
ROOMS = ["errors", "language", "world", "reading", "interpreter", "commands", "sandbox", "cli"]
BELOW_ALL = "shellworld.interpreter.result"  # limits and results, used from everywhere


def modules():
    """(name of the module, path) of the package's code, without tests and tools."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if parts[1] not in ("tests", "tools"):
            yield ".".join(part for part in parts if part != "__init__"), path


def imported(path):
    """The modules that a file names in its import statements, also within functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}" if node.module == "shellworld" else node.module


@pytest.mark.quick
def test_it_leans_on_the_standard_library_and_three_packages():
    used = set()
    for name, path in modules():
        for module in imported(path):
            top = module.split(".")[0]
            known = top == "shellworld" or top in sys.stdlib_module_names or top in DEPENDENCIES
            assert known, f"{name} imports {module}"
            used.add(top)
    assert used >= DEPENDENCIES, "a declared dependency is not used"


@pytest.mark.quick
def test_rooms_import_only_rooms_before_them():
    for name, path in modules():
        room = name.split(".")[1] if "." in name else ""
        if room in ("", "__main__"):  # the public face and the command see everything
            continue
        last = max(ROOMS.index(room), ROOMS.index("commands") if room == "interpreter" else 0)
        for module in imported(path):
            if module.startswith("shellworld.") and module != BELOW_ALL:
                there = module.split(".")[1]
                assert ROOMS.index(there) <= last, f"{name} imports {module}"


@pytest.mark.quick
def test_each_public_name_is_there_and_named_in_the_docstring():
    assert shellworld.__all__ == list(shellworld._PUBLIC)
    for name in shellworld.__all__:
        assert getattr(shellworld, name).__doc__, name
        assert name in shellworld.__doc__
        assert name in dir(shellworld)
    with pytest.raises(AttributeError, match="no attribute 'Sesion'"):
        shellworld.Sesion  # noqa: B018 (that it fails is the test)


def test_importing_it_needs_no_library():
    """As the sandbox's supervisor does: isolated, and without site packages."""
    code = (
        "import sys; sys.path.append(sys.argv[1]); import shellworld; "
        "from shellworld.sandbox import supervisor; assert 'tree_sitter' not in sys.modules; "
        "print(shellworld.__version__)"
    )
    command = [sys.executable, "-I", "-S", "-c", code, str(PACKAGE.parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == shellworld.__version__


def example(marker):
    """The code block after <!-- marker --> in the README, and the output that the page shows."""
    pattern = rf"<!-- {marker} -->\n```python\n(.*?)```\n\nprints\n\n```text\n(.*?)```"
    (found,) = re.findall(pattern, README, re.DOTALL)
    return found


@pytest.mark.quick
@pytest.mark.parametrize("marker", ["example", "sandbox example"])
def test_the_readmes_examples_print_what_it_says(marker, capsys):
    if marker == "sandbox example" and (why := pool.unavailable()):
        pytest.skip(why)
    code, output = example(marker)
    exec(code, {})
    assert capsys.readouterr().out == output


def commands(page):
    """The lines of shell that a page shows after <!-- command example -->."""
    blocks = re.findall(r"<!-- command example -->\n```bash\n(.*?)```", page, re.DOTALL)
    assert blocks
    return blocks


@pytest.mark.parametrize("block", commands(README) + commands(SHELL_PAGE))
def test_the_pages_commands_run(block, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    trees = re.findall(r"```json\n(.*?)```", SHELL_PAGE, re.DOTALL)
    (tmp_path / "TREE.json").write_text(trees[0])
    (tmp_path / "LINES").write_text("ls -l\nchmod 600 x.txt\n")
    done = subprocess.run(
        ["bash", "-c", block.replace("python -m", f"{sys.executable} -m")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.count("first_permission_command") == 2
    assert done.stderr == "0 of 2 lines were not supported.\n"


@pytest.mark.quick
def test_the_readmes_map_is_the_package():
    (listing,) = re.findall(r"## The rooms\n\n```text\n(.*?)```", README, re.DOTALL)
    listed = {line.split()[0].rstrip("/") for line in listing.splitlines()}
    there = {path.name for path in PACKAGE.iterdir()} - {"README.md", "__pycache__"}
    assert listed == there


@pytest.mark.parametrize("tool", ["bench", "record", "agreement"])
def test_tools_start(tool):
    command = [sys.executable, "-m", f"shellworld.tools.{tool}", "--help"]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and f"{tool}.py:" in done.stdout  # absl's status for --help
