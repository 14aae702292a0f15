"""What SECURITY.md says of code and data, held against the sources and against files that mean harm.

That a tokenizer's own code never runs is held in test_hf.py, names outside of a workdir in
test_remote.py, queries that reach for files in test_table.py, the sandbox in shellworld/tests.
"""

import ast
import json
import re
from pathlib import Path

import jinja2
import numpy as np
import pytest

from subtransfer.models.chat import ChatFormat
from subtransfer.runtime.errors import UserError
from subtransfer.store import trajectories

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parent.parent
SECURITY = (ROOT / "SECURITY.md").read_text()

# Every place of the package where data could become code or another program, and why it is there.
PLACES = {
    "config/reading.py": "exec_module",  # config files
    "config/plugins.py": "exec",
    "settings/user_files.py": "exec",
    "distillation/token_weights.py": "exec",
    "rollout/episodes.py": "pickle",  # between the processes of one run
    "settings/__init__.py": "import_module",  # of the built-in settings' own table
    "sources/pypi.py": "subprocess",  # pip, which downloads and installs nothing
    "store/provenance.py": "subprocess",  # git, about the package's own checkout
    "sweeps/runner.py": "subprocess",  # workers: this program itself
}
CALLS = {"exec", "eval", "exec_module", "import_module", "__import__", "system", "popen", "spawnv"}
MODULES = {"pickle", "subprocess", "marshal", "shelve", "dill", "cloudpickle", "runpy"}


def test_code_is_run_where_the_document_says():
    found = {}
    for path in sorted((ROOT / "subtransfer").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            what = ""
            if isinstance(node, ast.Call):
                called = node.func
                name = (
                    called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
                )
                what = name if name in CALLS else ""
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                what = node.value.id if node.value.id in MODULES else ""
            if what:
                found.setdefault(str(path.relative_to(ROOT / "subtransfer")), set()).add(what)
    assert found == {name: {what} for name, what in PLACES.items()}
    for name in ("config/reading.py", "config/plugins.py", "settings/user_files.py"):
        assert f"`{name}`" in SECURITY
    assert "`distillation/token_weights.py`" in SECURITY and "`rollout/episodes.py`" in SECURITY


def test_nothing_is_unpickled_from_files():
    for path in (ROOT / "subtransfer").rglob("*.py"):
        text = path.read_text()
        assert "allow_pickle" not in text and "torch.load" not in text, path
        assert not re.search(r"trust_remote_code\s*=\s*True", text), path


def test_the_document_is_found():
    for name in ("README.md", "CONTRIBUTING.md", "docs/own_habit.md"):
        assert "SECURITY.md)" in (ROOT / name).read_text(), name


ATTACKS = [
    "{{ cycler.__init__.__globals__.os.system(COMMAND) }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ COMMAND }}",
    "{% set f = namespace.__init__ %}{{ f.__globals__['__builtins__'].open(PATH, 'w') }}",
    "{{ messages.append(1) }}{{ lipsum.__globals__['os'].popen(COMMAND).read() }}",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_template_reaches_no_python(chat, setting, tmp_path, attack):
    ran = tmp_path / "ran"
    attack = attack.replace("COMMAND", repr(f"touch {ran}")).replace("PATH", repr(str(ran)))
    before = chat.tokenizer.chat_template
    try:
        chat.tokenizer.chat_template = attack + before
        with pytest.raises((UserError, jinja2.exceptions.TemplateError)):
            ChatFormat(chat.tokenizer, setting)
    finally:
        chat.tokenizer.chat_template = before
    assert not ran.exists()


def test_a_trajectory_store_imports_nothing(tmp_path, monkeypatch):
    """TFDS imports the module of any class that a store's features name."""
    one = trajectories.Trajectory(
        episode_id="a", task_id="a", kind="safe", policy="p", policy_version=0, seed=0,
        tokens=np.zeros(2, np.int32), loss_mask=np.ones(2, bool),
        behavior_logprobs=np.zeros(2, np.float32), turn_ids=np.zeros(2, np.int32),
        messages=[{"role": "user", "content": "hi"}], actions=[], solved=True, truncated=False,
    )  # fmt: skip
    trajectories.write(tmp_path / "t", [one], "A test.")
    assert len(trajectories.read(tmp_path / "t")) == 1
    (tmp_path / "evil_features.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "t" / "features.json"
    value = json.loads(file.read_text())
    value["featuresDict"]["features"]["kind"]["pythonClassName"] = "evil_features.Text"
    file.write_text(json.dumps(value))
    with pytest.raises(UserError, match="names the class 'evil_features.Text', which is not of"):
        trajectories.read(tmp_path / "t")
    assert not (tmp_path / "ran").exists()
