"""Data flows one way: every import points to an earlier room, and no file is a maze."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "subtransfer"
FLOW = """
errors schema settings.base settings.filesystem settings.api_tasks settings.api settings artifacts progress encodings sanitize
trajectories distill.objectives arms sharding models.attention models.decoder models.presets config models.families models.lora models.hf
models.calls models.tokenizer models.chat rollout.sampling
rollout.engine memory rollout.scheduler rollout.grammar rollout.episodes distill.trainer distill.student pretrain policy probes.choice probes.behavior probes.capability
statistics report.summary report.tables report.figures report.html results stages experiment launch
""".split()


def _modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(p for p in parts if p != "__init__"), path


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("subtransfer"):
            base = node.module.removeprefix("subtransfer").lstrip(".")
            for alias in node.names:
                yield f"{base}.{alias.name}".lstrip("."), base
        elif isinstance(node, ast.Import):
            assert not any(a.name.startswith("subtransfer") for a in node.names), path


def test_imports_point_upstream():
    order = {name: i for i, name in enumerate(FLOW)}
    empty = {"models", "rollout", "distill", "probes", "report"}
    for name, path in _modules():
        if not name:
            continue  # the package's own face: what a library user imports
        if name in empty:
            assert not path.read_text().strip(), f"{path} should be empty"
            continue
        assert name in order, f"{name} has no place in the flow"
        for imported, base in _imports(path):
            target = imported if imported in order else base
            if name == "settings" and target == "settings.api":
                continue  # the register of settings names its members
            assert order[target] < order[name], f"{name} imports {target}, which comes later"


def test_no_file_is_a_maze():
    for _, path in _modules():
        assert len(path.read_text().splitlines()) <= 460, path
