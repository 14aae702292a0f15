"""The ahead-of-time tool: a tiny config for a small topology, and what it says of mistakes."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import tpu_time  # noqa: E402

TINY = """
from subtransfer.config import defaults
def get_config():
    config = defaults()
    config.base.dtype, config.base.num_layers = "bfloat16", 2
    config.base.width, config.base.num_heads, config.base.num_kv_heads = 256, 4, 2
    config.rollouts.batch_size = 16
    config.arms.other_init = False
    return config
"""

HLO = """HloModule m

%cond (p: (s32[], f32[8])) -> pred[] {
  %c = s32[] constant(5)
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %f = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused, backend_config={"window_config":{"estimated_cycles":"100"}}
  %r = bf16[4,8]{1,0} all-reduce(%f), replica_groups={{0,1},{2,3}}, to_apply=%add
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %g = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused, backend_config={"window_config":{"estimated_cycles":"7"}}
  %k = f32[8]{0} custom-call(%g), custom_call_target="tpu_custom_call"
  %w = (s32[], f32[8]) while(%t), condition=%cond, body=%body
}
"""


def _tool(*arguments):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tools/aot_tpu.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)


def test_cycles_of_loops_and_bytes_of_collectives():
    time = tpu_time.Program(HLO).whole
    assert time.cycles == 7 + 5 * 100 and time.unknown == 1 and time.moved == 2 * 32  # read and written
    assert time.sent == 5 * 2 * 64 / 2  # a ring of two: each sends half of the array twice
    chip = tpu_time.CHIPS["v5e"]
    assert time.seconds(chip, least_bytes=819e9) == pytest.approx(1 + time.sent / chip.ici)


def test_an_unknown_chip_is_a_sentence(tmp_path):
    (tmp_path / "tiny.py").write_text(TINY)
    done = _tool(f"--config={tmp_path}/tiny.py", "--topology=v9x:4x4")
    assert done.returncode == 2 and "There is no chip 'v9x' in v4, v5e, v5p, v6e" in done.stderr


def test_what_does_not_fit_is_a_sentence():
    row = {"model": "m", "program": "decode", "gib": 17.25}
    (sentence,) = tpu_time.refusal(row, "v5e")
    assert (
        sentence.startswith("decode of m needs 17.2 GiB of a chip's 16: lower rollouts.batch_size")
        and tpu_time.refusal(row, "v5p") == []
    )


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install -e '.[tpu]'")
def test_a_tiny_config_compiles_for_a_small_topology(tmp_path):
    (tmp_path / "tiny.py").write_text(TINY)
    out = tmp_path / "out.json"
    done = _tool(
        f"--config={tmp_path}/tiny.py", "--topology=v5e:2x2", "--config.mesh.tensor=2", f"--json={out}",
        "--config.base.attention=pallas",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = {row["program"]: row for row in json.loads(out.read_text())["programs"]}
    assert set(rows) == {"prefill", "decode", "probe", "train"}
    assert all(0 < row["gib"] < 1 for row in rows.values())
    assert rows["train"]["kernels_without_estimate"] > 0 and 0 < rows["decode"]["of_bandwidth_limit"] <= 1
