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

%begun (p: bf16[1,4]) -> (bf16[1,4], bf16[2,4]) {
  %g.1 = bf16[2,4]{1,0} all-gather(%p), channel_id=9, replica_groups={{0,1},{2,3}}
  ROOT %s.1 = (bf16[1,4]{1,0}, bf16[2,4]{1,0}) custom-call(%g.1), custom_call_target="AsyncCollectiveStart"
}

%beside (p: bf16[1,4], q: f32[8]) -> (f32[8], bf16[2,4]) {
  %g.2 = bf16[2,4]{1,0} all-gather(%p), channel_id=9, replica_groups={{0,1},{2,3}}, \
backend_config={"async_collective_fusion_config":{}}
}

%ended (p: bf16[1,4]) -> bf16[2,4] {
  %g.3 = bf16[2,4]{1,0} all-gather(%p), channel_id=9, replica_groups={{0,1},{2,3}}, \
backend_config={"async_collective_fusion_config":{}}
  ROOT %d.3 = bf16[2,4]{1,0} custom-call(%g.3), custom_call_target="AsyncCollectiveDone"
}

%scattered (p: bf16[2,4]) -> bf16[1,4] {
  %r.4 = bf16[2,4]{1,0} all-reduce(%p), channel_id=8, replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %d.4 = bf16[1,4]{1,0} dynamic-slice(%r.4), dynamic_slice_sizes={1,4}
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %f = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused, backend_config={"window_config":{"estimated_cycles":"100"}}
  %r = bf16[4,8]{1,0} all-reduce(%f), replica_groups={{0,1},{2,3}}, to_apply=%add
}

%fused (p: f32[8]) -> f32[8] {
  ROOT %n = f32[8]{0} negate(%p)
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %h = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused, backend_config={"window_config":{"estimated_cycles":"7"}}
  %k = f32[8]{0} custom-call(%h), custom_call_target="tpu_custom_call"
  %splash_mha_fwd.1 = bf16[2,64,128]{2,1,0} custom-call(%m, %q, %k, %v), custom_call_target="tpu_custom_call", \
operand_layout_constraints={s8[1,1,1]{2,1,0}, bf16[2,64,128]{2,1,0}, bf16[2,32,128]{2,1,0}, bf16[2,32,128]{2,1,0}}
  %w = (s32[], f32[8]) while(%t), condition=%cond, body=%body
  %p.1 = (bf16[4,8]{1,0}, bf16[4,8]{1,0}, u32[]) collective-permute-start(%w), source_target_pairs={{0,1},{1,0}}
  %j = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused, backend_config={"window_config":{"estimated_cycles":"10"}}
  %p.2 = bf16[4,8]{1,0} collective-permute-done(%p.1)
  %a.1 = (bf16[1,4]{1,0}, bf16[2,4]{1,0}) fusion(%j), kind=kCustom, calls=%begun
  %a.2 = (f32[8]{0}, bf16[2,4]{1,0}) fusion(%a.1), calls=%beside, backend_config={"estimated_cycles":"1000"}
  %a.3 = bf16[2,4]{1,0} fusion(%a.2), kind=kCustom, calls=%ended
  %s = bf16[1,4]{1,0} fusion(%a.3), kind=kCustom, calls=%scattered
  %send = (f32[2,4]{1,0}, u32[], token[]) send(%s), frontend_attributes={_xla_host_transfer_rendezvous="r"}
  %recv = (f32[2,4]{1,0}, u32[], token[]) recv(%t), frontend_attributes={_xla_host_transfer_rendezvous="r"}
  %recv-done = (f32[2,4]{1,0}, token[]) recv-done(%recv)
}
""".replace("\\\n", "")


def _tool(*arguments):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tools/aot_tpu.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)


def test_a_schedule_is_walked():
    """Against sums by hand, on a chip of round figures: 1 byte a second in a ring, 2 to a
    neighbour, 8 between slices.
    """
    chip = tpu_time.Chip(
        gib=1, hbm=16.0, flops=1e5, clock=1.0, ici=2.0, links=2, dcn=8.0, splash=0.5
    )
    time = tpu_time.Program(HLO, chip).whole
    assert time.unknown == 1 and time.between == 32
    products = (
        2 * 2 * 64 * 32 * 128 / (1e5 * 0.5)
    )  # two of the causal half of 2 x 64 x 32 scores, at half of the peak
    assert time.kernels == pytest.approx(products)
    reduced, permuted, gathered, scattered = (
        5 * 2 * 64 / 2,
        64 / 2,
        16 / 2,
        16 / 2,
    )  # a ring of two sends half, or half twice
    assert time.collectives == pytest.approx(reduced + permuted + gathered + scattered)
    # Of the permutation 10 s lie beside a product, and all of the gathering; the rest is waited
    # for.
    assert time.waiting == pytest.approx(reduced + (permuted - 10) + scattered + 32 / 8)
    worked = 7 + 64 / 16 + products + 5 * 100 + 10 + 1000
    assert time.total == pytest.approx(worked + time.waiting)
    assert time.reading(2 * worked) == pytest.approx(2 * worked + time.waiting)


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


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install -e '.[tpu]'",
)
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
    assert (
        rows["train"]["kernels_without_estimate"] > 0
        and 0 < rows["decode"]["of_bandwidth_limit"] <= 1
    )
