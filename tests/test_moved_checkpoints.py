"""A checkpoint is known by its files' digest, wherever it lies."""

import json
import os
import shutil

import numpy as np
import pytest

from subtransfer.config import reading as configuration
from subtransfer.config.checks import validate
from subtransfer.experiment import policies
from subtransfer.experiment.context import Context
from subtransfer.experiment.graph import Experiment
from subtransfer.rollout.saved_policy import load_policy
from subtransfer.runtime.errors import UserError
from subtransfer.store import artifacts, digests

from .families import reference

TOKENS = np.arange(24).reshape(2, 12)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, chat):
    """Two directories of one geometry, and with it of files of equal sizes."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, seed in (("right", 0), ("wrong", 1)):
        reference("llama mha tied", vocab=len(chat.tokenizer), seed=seed).save_pretrained(
            folder / name
        )
        chat.tokenizer.save_pretrained(folder / name)
    sizes = {(folder / name / "model.safetensors").stat().st_size for name in ("right", "wrong")}
    assert len(sizes) == 1
    return folder


@pytest.fixture(autouse=True)
def another_process(monkeypatch):
    """Nothing is known from an earlier test."""
    monkeypatch.setattr(digests, "_known", {})


class Run:
    """The imported base of one run."""

    def __init__(self, workdir, mesh, checkpoint):
        config = configuration.defaults()
        changes = {
            "base.checkpoint": str(checkpoint),
            "arms.other_init": "false",
            "base.dtype": "float32",
        }
        configuration.apply_overrides(config, changes)
        validate(config)
        self.experiment = Experiment(config, workdir, mesh)
        self.workdir, self.mesh = workdir, mesh
        self.base = self.experiment.path("base")

    def make(self):
        stage = self.experiment.plan["base"]
        with artifacts.Store(self.workdir) as store:
            store.stage(stage.name, stage.key, stage.build, log=lambda _: None, facts={})
            return store.events

    def logits(self):
        resident = self.experiment._bases._planner.resident
        context = Context("student", None, self.mesh, self.experiment.path, resident)
        return policies.policy(context, "base").logits(TOKENS)


def test_a_moved_directory_is_used_where_it_lies_now(tmp_path, mesh, checkpoints):
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(checkpoints / "right", old)
    first = Run(tmp_path / "w", mesh, old)
    first.make()
    expected = load_policy(checkpoints / "right").logits(TOKENS)
    np.testing.assert_array_equal(first.logits(), expected)
    old.rename(new)
    # Gone, and then other weights in its place: neither is what the config names now.
    for _ in range(2):
        again = Run(tmp_path / "w", mesh, new)
        assert again.base == first.base
        assert ("reused", "base") in again.make()
        np.testing.assert_array_equal(again.logits(), expected)
        if not old.exists():
            shutil.copytree(checkpoints / "wrong", old)


def test_other_weights_at_the_old_path_are_refused(tmp_path, mesh, checkpoints):
    """As a library too, which knows no config; it says where and which, and takes the new path."""
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(checkpoints / "right", old)
    run = Run(tmp_path / "w", mesh, old)
    run.make()
    old.rename(new)
    with pytest.raises(UserError, match=f"checkpoint {old} that {run.base} stands for is gone"):
        load_policy(run.base)
    shutil.copytree(checkpoints / "wrong", old)
    wrong, right = (digests.of_checkpoint(path, tmp_path / "w")[:16] for path in (old, new))
    with pytest.raises(UserError, match=f"{old} holds another .*{wrong}.*{run.base}.*{right}"):
        load_policy(run.base)
    found = load_policy(run.base, checkpoint=new)
    np.testing.assert_array_equal(
        found.logits(TOKENS), load_policy(checkpoints / "right").logits(TOKENS)
    )
    # A run from the old path is a run of the other weights.
    assert Run(tmp_path / "w", mesh, old).base != run.base


@pytest.mark.parametrize("when", ["before its own stage", "before it is loaded", "by one tensor"])
def test_weights_that_are_replaced_in_the_midst_of_a_run_are_noticed(
    tmp_path, mesh, checkpoints, when
):
    """Also with the size and the time of change that the right ones had."""
    lies, file = tmp_path / "model", tmp_path / "model" / "model.safetensors"
    shutil.copytree(checkpoints / "right", lies)
    run = Run(tmp_path / "w", mesh, lies)
    status = file.stat()

    def replace():
        if when == "by one tensor":
            data = bytearray(file.read_bytes())
            data[-1] ^= 1
            file.write_bytes(data)
        else:
            shutil.copy(checkpoints / "wrong" / file.name, file)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert file.stat().st_mtime_ns == status.st_mtime_ns

    if when == "before its own stage":
        replace()
        with pytest.raises(UserError, match="holds another checkpoint"):
            run.make()
        return
    run.make()
    replace()
    with pytest.raises(UserError, match="holds another checkpoint"):
        run.logits()


def test_a_policy_of_an_earlier_version_is_refused(tmp_path, mesh, checkpoints):
    run = Run(tmp_path / "w", mesh, checkpoints / "right")
    run.make()
    old = tmp_path / "base-old"
    old.mkdir()
    meta = json.loads((run.base / "policy.json").read_text())
    (old / "policy.json").write_text(json.dumps({**meta, "checkpoint": str(checkpoints / "right")}))
    with pytest.raises(UserError, match="is of another version of this package"):
        load_policy(old)


def test_a_file_is_hashed_once_a_workdir(tmp_path, checkpoints, monkeypatch):
    (tmp_path / "w").mkdir()
    first = digests.of_checkpoint(checkpoints / "right", tmp_path / "w")
    monkeypatch.setattr(digests, "_known", {})
    monkeypatch.setattr(digests.hashlib, "file_digest", lambda *_: pytest.fail("read again"))
    assert digests.of_checkpoint(checkpoints / "right", tmp_path / "w") == first
