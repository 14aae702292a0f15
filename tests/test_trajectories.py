"""The trajectory store, read back by tfds without this project."""

import subprocess
import sys

import numpy as np
import pytest

from subtransfer.runtime.errors import UserError
from subtransfer.store import trajectories
from subtransfer.store.trajectories import Trajectory

READER = """
import sys
import tensorflow_datasets as tfds
source = tfds.builder_from_directory(sys.argv[1]).as_data_source("train")
assert len(source) == 20
first = source[3]
assert first["tokens"].tolist() == list(range(8)), first["tokens"]
assert first["loss_mask"].tolist() == [True, False] * 4
assert "messages" in first and b"\\u00e9" in first["messages"], first["messages"]
assert "tensorflow" not in sys.modules and "subtransfer" not in sys.modules
print("read", len(source))
"""


def _store():
    out = []
    for i in range(20):
        n = 5 + i
        mask = np.arange(n) % 2 == 0
        out.append(
            Trajectory(
                f"e{i}", "t", "safe", "p", 1, 2, np.arange(n, dtype=np.int32), mask, np.linspace(-3, 0, n, dtype=np.float32),
                np.zeros(n, np.int32), [{"role": "user", "content": "é"}], [{"turn": 1, "name": "x", "arguments": {"a": 1}}],
                i % 2 == 0, False,
            )
        )  # fmt: skip
    return out


def test_round_trip_and_equal_bytes(tmp_path):
    for name in ("a", "b"):
        trajectories.write(tmp_path / name, _store(), "test")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file
    for old, new in zip(_store(), trajectories.read(tmp_path / "a"), strict=True):
        for field, value in vars(old).items():
            np.testing.assert_array_equal(getattr(new, field), value)
            if isinstance(value, np.ndarray):
                assert getattr(new, field).dtype == value.dtype


def test_tfds_reads_it_without_this_project(tmp_path):
    trajectories.write(tmp_path / "s", _store(), "test")
    command = [sys.executable, "-I", "-c", READER, str(tmp_path / "s")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "read 20"


def test_bad_stores_are_named(tmp_path):
    with pytest.raises(UserError, match="no trajectories"):
        trajectories.write(tmp_path / "x", [], "test")
    with pytest.raises(UserError, match="no trajectory store"):
        trajectories.read(tmp_path / "x")
    trajectories.write(tmp_path / "y", _store(), "test")
    for file in (tmp_path / "y").glob("*array_record*"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        trajectories.read(tmp_path / "y")
