"""Data flows one way: every import points to an earlier room, and no file is a maze."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "subtransfer"
# The shell: its world, its language, its commands, the real one, and what reads commands without running them.
SHELL = """
result users acl tree inodes filesystem world streams ast arithmetic automaton pattern regex_parser regexes variables commands
conditions known redirect programs control grammar quoting lexer braces parameters expand tokens simple_parser parser syntax
subshell launch pipelines interpreter session commands.awk_lexer commands.awk_parser commands.awk_values commands.differing commands.modes
commands.builtins commands.declaring commands.lookup commands.unsimulated commands.options commands.acl_entries commands.times commands.find_tests commands.awk_runtime
commands.awk_builtins commands.awk_statements commands.awk_compiler commands.awk commands.columns commands.evaluate commands.gzip commands.encode
commands.identity commands.launching commands.merging commands.output commands.perl commands.reading commands.sed_parser
commands.sed_machine commands.sed commands.sequences commands.sorting commands.testing commands.text commands.walking commands.acls
commands.diff commands.files commands.copying commands.find_printf commands.find commands.grep commands.linking commands.ls commands.disk
commands.naming commands.permissions commands.removing commands.tar commands.xargs sandbox_kernel sandbox_line sandbox_users
sandbox_world sandbox sandbox_supervisor launchers static trait cli
""".split()
FLOW = """
errors schema preemption processes claims remote settings.base settings.words settings.filesystem settings.api_tasks settings.api
settings.shell {shell} settings.bash_tasks settings.bash settings artifacts provenance progress metrics distributed encodings sanitize
trajectories distill.objectives arms sharding distill.vocabulary models.primitives models.attention models.attention_kernels models.quantise models.decoder models.presets validation conditions config models.families models.lora models.hf
models.calls models.tokenizer models.chat rollout.sampling
rollout.engine memory rollout.scheduler rollout.grammar rollout.episodes distill.examples distill.token_weights distill.checkpoints distill.run distill.trainer distill.population distill.teacher_targets distill.agreement distill.student pretrain policy probes.choice probes.behavior probes.capability
statistics scaling_laws scaling_noise scaling report.summary report.tables report.figures report.html report.scaling_page results runs scaling_runs scaling_study report.scaling_report table report.sweep_chooser report.sweep_page workbench stages costs plan experiment sweeps.jobs sweeps.schedule sweep sweeps.devices sweeps.show sweeps.runner sweeps.worker sweeps.command launch
""".format(shell=" ".join(f"settings.shell.{name}" for name in SHELL)).split()
# Running a command means running commands: the interpreter calls these, and they call it.
RECURSIVE = {"settings.shell.launch", "settings.shell.subshell"}


def _modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(p for p in parts if p != "__init__"), path


def _imports(path):
    tree = ast.parse(path.read_text())
    typing = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    only_typing = {id(inner) for node in typing for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in only_typing:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("subtransfer"):
            base = node.module.removeprefix("subtransfer").lstrip(".")
            for alias in node.names:
                yield f"{base}.{alias.name}".lstrip("."), base
        elif isinstance(node, ast.Import):
            assert not any(a.name.startswith("subtransfer") for a in node.names), path


def test_imports_point_upstream():
    order = {name: i for i, name in enumerate(FLOW)}
    empty = {"models", "rollout", "distill", "probes", "report", "sweeps"}
    for name, path in _modules():
        if not name:
            continue  # the package's own face: what a library user imports
        if name in empty:
            assert not path.read_text().strip(), f"{path} should be empty"
            continue
        assert name in order, f"{name} has no place in the flow"
        for imported, base in _imports(path):
            if imported == "__version__":
                continue  # on the package's face, where installers read it
            target = imported if imported in order else base
            if name == "settings" and target in ("settings.api", "settings.bash"):
                continue  # the register of settings names its members
            if name in RECURSIVE and target == "settings.shell.interpreter":
                continue
            assert order[target] < order[name], f"{name} imports {target}, which comes later"


def test_no_file_is_a_maze():
    for _, path in _modules():
        assert len(path.read_text().splitlines()) <= 460, path
