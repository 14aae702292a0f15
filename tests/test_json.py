"""JSON of the right syntax and the wrong shape: caught at each place where JSON is read.

The list of places is made from the sources, so that a new one fails here until it has a case.
"""

import ast
import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import fsspec
import pytest

from subtransfer.experiment import policies, registration, trainings
from subtransfer.experiment.stages import audit, match, results
from subtransfer.models import families, hf_export, hf_load, peft_adapter, stop_tokens
from subtransfer.report import files
from subtransfer.rollout import saved_policy
from subtransfer.runtime.errors import UserError
from subtransfer.sources import checkpoints
from subtransfer.store import (
    buckets,
    digests,
    history,
    provenance,
    seals,
    shipped,
    trajectories,
)
from subtransfer.studies import runs
from subtransfer.training import metrics
from tests import studies
from tools import gpu_report

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parent.parent
# The helpers that check a shape, and the one that reads a checkpoint's files through them.
HELPERS = {"read_json", "read_json_lines", "parse_json"}

# Where JSON is read without the helpers, and why that is right.
APART = {
    "subtransfer/runtime/json_files.py: parse_json": "the helper itself",
    "subtransfer/runtime/processes.py: _watching": "what this program's own processes tell",
    "subtransfer/sweeps/runner.py: outcomes": "what this program's own workers tell",
    "subtransfer/sweeps/service.py: listen": "what this program's own command asks of a worker",
    "subtransfer/sweeps/worker.py: main": "the argument that this program gives its worker",
    "subtransfer/settings/bash.py: _image": "a text that was made from a checked tree before",
    "subtransfer/studies/sql.py: _serialised": "duckdb's own answer",
    "subtransfer/models/calls.py": "what models write, of which nothing can be expected",
    "subtransfer/store/claims.py: _read": "one that is no claim is left to its lease",
    "subtransfer/store/journal.py: _read": "what has a checksum beside it: test_journal",
    "subtransfer/store/messages.py: _objects": "people's files, with their lines: test_messages",
    "subtransfer/store/messages.py: _call": "people's files, with their lines: test_messages",
    "subtransfer/store/messages.py: _tool_names": "people's files, with their lines: test_messages",
    "subtransfer/runtime/processes.py: agree": "what this program's own first process tells",
    "tools/gpu_report.py: measure": "what this program's own benchmark has written",
    "tools/check_export.py: read": "what this program's own script has written",
    "launch/inside/slurm_jobs.py: read": "in an environment without this package: tested below",
    "tools/peers/environment.py: _read": "what this program's own peers tell",
    "tools/peers/serve.py: serve": "what this program's own benchmark asks of a peer",
    "tools/peers/tunix_peer.py: sampler": "a file that this program's own benchmark has written",
}


def _functions(path):
    """The functions of a file, each with the calls in it that lie in no inner function."""

    def visit(node, function, found):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef):
                visit(child, child.name, found)
                continue
            if isinstance(child, ast.Call):
                found.append((function, child))
            visit(child, function, found)
        return found

    return visit(ast.parse(path.read_text()), "", [])


def _name(function):
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _places():
    """The places where JSON is read: with a helper, and without one."""
    checked, bare = {}, set()
    for folder in ("subtransfer", "launch", "tools"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for function, call in _functions(path):
                file = str(path.relative_to(ROOT))
                place = file if file in APART else f"{file}: {function}"
                name = _name(call.func)
                of_json = isinstance(call.func, ast.Attribute) and _name(call.func.value) == "json"
                if of_json and name in ("load", "loads") or name in ("JSONDecoder", "raw_decode"):
                    bare.add(place)
                elif name in HELPERS and file != "subtransfer/runtime/json_files.py":
                    checked.setdefault(place, []).append(call)
    return checked, bare


CHECKED, BARE = _places()
_IMPORTS = {
    place.partition(":")[0]: (ROOT / place.partition(":")[0]).read_text() for place in CHECKED
}


def test_json_is_read_by_the_helpers_or_for_a_reason():
    assert set(APART) == BARE


def test_each_reading_says_a_shape():
    for place, calls in CHECKED.items():
        for call in calls:
            given = [*call.args[1:], *(word.value for word in call.keywords)]
            # `families.read_json` asks for an object wherever nothing else is said.
            assert given or "families" in _IMPORTS[place.partition(":")[0]], place
            assert "object" not in map(ast.unparse, given), place


# -- each place is fed what it cannot use ----------------------------------------------------------


def _bundle(folder):
    """Results of a run that nobody trained."""
    studies.write_run(folder / "run", studies.config_of(distill__objective="sft"), tasks=4)
    return folder / "run"


def _policy(folder):
    (folder / "policy.json").touch()
    return folder


def _context(folder):
    return types.SimpleNamespace(input=lambda stage: folder, stage="a")


def _log(folder):
    return metrics.Writer(folder / "a", "", tensorboard=False, wandb="").start(7)


def _published(reader):
    def read(folder):
        return reader(folder / "run")

    return read


def _checkpoint(folder):
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")


def _of_checkpoint(folder):
    # Whose digest this process does not know: a known one asks for no file of digests.
    path = folder / "model" / "config.json"
    path.write_text("{}")
    return digests.of_checkpoint(folder / "model", folder)


def _mirror(folder):
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/there/files.json", (folder / "files.json").read_bytes())
    mirror = buckets.Mirror("memory://there", folder)
    return mirror._read(f"{mirror._root}/files.json", [str])


def _trajectory(folder):
    text = (folder / "text").read_bytes().decode(errors="surrogateescape")
    example = dict.fromkeys(trajectories._TEXT, "a") | dict.fromkeys(trajectories._NUMBERS, 1)
    example |= dict.fromkeys((*trajectories._FLAGS, *trajectories._ARRAYS), 0)
    return trajectories._trajectory(folder / "text", example | {"actions": "[]", "messages": text})


# place -> (what makes the surroundings, the file that is damaged, what reads it, texts that fit)
CASES = {
    "subtransfer/training/metrics.py: _written_until": (
        lambda f: (f / "metrics").mkdir(), "metrics/a.jsonl", _log, ()),
    "subtransfer/report/files.py: read_bundle": (
        _bundle, "run/results.json", _published(files.read), ()),
    "subtransfer/report/files.py: _read_episodes": (
        _bundle, "run/results.jsonl", _published(files.read), ()),
    "subtransfer/experiment/stages/match.py: read": (None, "chosen.json", match.read, ()),
    "subtransfer/experiment/stages/audit.py: _kept_of": (
        None, "training.json", lambda f: audit._kept_of(_context(f), "student"), ()),
    "subtransfer/experiment/trainings.py: one_of": (
        None, "members.json",
        lambda f: trainings.one_of(f / "out", _context(f), base="b", population="p"), ()),
    "subtransfer/experiment/stages/results.py: _read": (
        None, "choices.json", lambda f: results._read(_context(f), "choice", "choices.json"), ()),
    "subtransfer/experiment/registration.py: check_unseen": (
        lambda f: (f / "a").mkdir(), "a/artifact.json",
        lambda f: registration.check_unseen(f, f / "prereg", ["b"]), ()),
    "subtransfer/experiment/policies.py: _base_of": (
        None, "policy.json", policies._base_of, ()),
    "subtransfer/store/digests.py: _of_files": (
        _checkpoint, ".digests.json", _of_checkpoint, ("{}",)),
    "subtransfer/experiment/models.py: _geometry": (
        None, "config.json", lambda f: families.read_json(f / "config.json"), ("{}",)),
    "subtransfer/studies/runs.py: members": (None, "sweep.json", runs.members, ()),
    "subtransfer/store/history.py: read": (
        lambda f: (f / "stages").mkdir(), "stages/a.jsonl", history.read, ()),
    "subtransfer/store/seals.py: _marker": (None, "artifact.json", seals.check, ()),
    "subtransfer/store/shipped.py: _manifest": (None, "manifest.json", shipped.read, ()),
    "subtransfer/store/provenance.py: stages": (None, "stages.json", provenance.stages, ("{}",)),
    "subtransfer/store/buckets.py: _read": (None, "files.json", _mirror, ("[]",)),
    "subtransfer/store/trajectories.py: _check_features": (
        None, "features.json", trajectories._check_features, ()),
    "subtransfer/store/trajectories.py: _trajectory": (None, "text", _trajectory, ("[]",)),
    "subtransfer/models/families.py: read_json": (
        None, "config.json", lambda f: families.read_json(f / "config.json"), ("{}",)),
    "subtransfer/models/families.py: read_config": (
        None, "config.json", families.read_config, ()),
    "subtransfer/models/peft_adapter.py: read_adapter_config": (
        None, "adapter_config.json", peft_adapter.read_adapter_config, ()),
    "subtransfer/models/peft_adapter.py: _is_multimodal": (
        None, "config.json", peft_adapter._is_multimodal, ("{}",)),
    "subtransfer/models/hf_export.py: _write_for_older_readers": (
        None, "tokenizer_config.json",
        lambda f: hf_export._write_for_older_readers(f / "tokenizer_config.json"), ("{}",)),
    "subtransfer/models/hf_export.py: _write_stop_tokens": (
        None, "generation_config.json",
        lambda f: hf_export._write_stop_tokens(
            f / "generation_config.json", types.SimpleNamespace(eos_token_id=None)), ("{}",)),
    "subtransfer/models/hf_load.py: __init__": (
        None, hf_load.INDEX, hf_load.Checkpoint, ()),
    "subtransfer/sources/checkpoints.py: _has_template": (
        None, "tokenizer_config.json", checkpoints._has_template, ("{}",)),
    "subtransfer/models/stop_tokens.py: remember": (
        None, stop_tokens.FILES[0], lambda f: stop_tokens.remember(types.SimpleNamespace(), f), ("{}",)),
    "subtransfer/rollout/saved_policy.py: _meta": (
        _policy, "policy.json", saved_policy.load_policy, ()),
    "tools/gpu_report.py: kept": (
        None, "population_64.json", lambda f: gpu_report.kept(f / "population_64.json", "cpu"), ()),
}  # fmt: skip
# With a helper, but to no user's eyes.
ELSEWHERE = {
    "subtransfer/models/families.py: source_fields": "read_config has just found it right",
    "subtransfer/store/trajectories.py: of_text": "checkpoints have sums; test_student reads them",
    "subtransfer/store/bucket_claims.py: _read": "one that is no claim is left to its lease, as in "
    "test_remote",
}
DAMAGE = {
    "list": b"[]",
    "object": b"{}",
    "null": b"null",
    "text": b'"x"',
    "number": b"3",
    "truth": b"true",
    "cut": b'{"a": [1, 2',
    "nothing": b"",
    "no UTF-8": b'{"a": "\xff\xfe"}',
    "deep": b"[" * 100_000,
}


def test_every_place_has_a_case():
    assert set(CASES) | set(ELSEWHERE) == set(CHECKED)


def _contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("place", CASES)
def test_what_cannot_be_used_is_a_sentence_and_stays(tmp_path, place):
    prepare, name, read, fits = CASES[place]
    if prepare:
        prepare(tmp_path)
    path = tmp_path / name
    lines = name.endswith("jsonl")
    for kind, data in DAMAGE.items():
        # Of a file of lines, one without its end is what a killed writer leaves.
        path.write_bytes(data + b"\n" if lines else data)
        before = _contents(tmp_path)
        if data.decode(errors="replace") in fits:
            read(tmp_path)
            continue
        with pytest.raises(UserError) as error:
            read(tmp_path)
        sentence = str(error.value)
        assert path.name in sentence and "\n" not in sentence, kind
        assert sentence.endswith(".") and ": " in sentence, kind
        assert _contents(tmp_path) == before, kind


def _mutations(value, path=()):
    """Each part of a JSON value in turn, as (its path, the values that take its place)."""
    yield path, [other for other in ([], {}, None, "x", 3) if other != value]
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _mutations(part, (*path, name))
    elif isinstance(value, list) and value:
        yield from _mutations(value[0], (*path, 0))


def _replaced(value, path, part):
    if not path:
        return part
    out = dict(value) if isinstance(value, dict) else list(value)
    out[path[0]] = _replaced(value[path[0]], path[1:], part)
    return out


def test_any_part_of_the_results_may_be_of_another_shape(tmp_path):
    """Whatever part of results.json is of another kind: the table is made, or a sentence says why
    not.
    """
    run = _bundle(tmp_path)
    whole = json.loads((run / "results.json").read_text())
    refused = 0
    for path, others in _mutations(whole):
        for other in others:
            (run / "results.json").write_text(json.dumps(_replaced(whole, path, other)))
            try:
                for arm in runs.read([run]):
                    assert arm.name
            except UserError as error:
                refused += 1
                assert "\n" not in str(error) and str(error).endswith("."), path
                # A checkpoint is looked for, and may be anywhere.
                assert str(run) in str(error) or "checkpoint" in path[-1], path
    assert refused > 100


def test_jobs_of_slurm(tmp_path):
    """The program that submits has submitit's environment, and no helper of this package."""
    name = ROOT / "launch" / "inside" / "slurm_jobs.py"
    submitit = types.ModuleType("submitit")
    utils, helpers = types.ModuleType("submitit.core.utils"), types.ModuleType("submitit.helpers")
    utils.UncompletedJobError = Exception
    helpers.Checkpointable, helpers.DelayedSubmission = object, object
    stubs = {"submitit": submitit, "submitit.core": types.ModuleType("submitit.core")}
    stubs |= {"submitit.core.utils": utils, "submitit.helpers": helpers}
    with pytest.MonkeyPatch.context() as patch:
        for module, stub in stubs.items():
            patch.setitem(sys.modules, module, stub)
        spec = importlib.util.spec_from_file_location("slurm_jobs", name)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    file = tmp_path / "jobs.json"
    whole = {"cluster": "local", "parameters": {}, "restart": 75, "jobs": []}
    file.write_text(json.dumps(whole))
    assert module.read(file) == whole
    for data in (*DAMAGE.values(), json.dumps(whole | {"jobs": [3]}).encode()):
        file.write_bytes(data)
        with pytest.raises(SystemExit) as ended:
            module.read(file)
        assert ended.value.code == 2


def test_commands_end_with_status_2(tmp_path):
    """A real command on a damaged file, to its end."""
    run = _bundle(tmp_path)
    (run / "results.json").write_text("[]")
    done = subprocess.run(
        [sys.executable, "tools/query.py", str(run)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
