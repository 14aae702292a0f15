"""How a checkpoint is read: no more than one tensor on the host at a time, and by each process only
its own slices.
"""

import os
import socket
import subprocess
import sys

import pytest

from .families import reference

MEASURE = """
import json, sys
import jax
from subtransfer.runtime import sharding
from subtransfer.models import families, hf_load, hf_names

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

directory, shape = sys.argv[1], json.loads(sys.argv[2])
cfg = families.read_config(directory)
mesh = sharding.make_mesh(*shape)
jax.block_until_ready(jax.numpy.zeros(8).sum())
before = peak()
params = jax.block_until_ready(hf_load.load_params(directory, cfg, mesh))
copies = sum(shard.data.nbytes for x in jax.tree.leaves(params) for shard in x.addressable_shards)
largest = max(x.nbytes if x.ndim == 2 and len(x) == cfg.vocab_size else x.nbytes // len(x) for x in jax.tree.leaves(params))
print(json.dumps({"above": peak() - before - copies, "largest": largest, "total": sum(x.nbytes for x in jax.tree.leaves(params))}))
"""


def _write(directory, layers, width):
    """A sharded Llama checkpoint of bfloat16 tensors, one file a layer."""
    import json

    import ml_dtypes
    import numpy as np
    from safetensors.numpy import save_file

    from subtransfer.models import hf_names
    from subtransfer.models.decoder import DecoderConfig
    from subtransfer.models.families import config_json

    class NoTokenizer:
        bos_token_id = eos_token_id = pad_token_id = 0

    cfg = DecoderConfig(32_000, width, 3 * width, layers, width // 128, width // 512, 128)
    placed, rng = {}, np.random.default_rng(0)
    for i in [None, *range(layers)]:
        file = f"model-{'rest' if i is None else i}.safetensors"
        tensors = {}
        for leaf in hf_names.leaves(cfg):
            if leaf.stacked == (i is not None):
                name = leaf.name.format(i)
                tensors[name] = rng.random(leaf.shape, np.float32).astype(ml_dtypes.bfloat16)
                placed[name] = file
        save_file(tensors, directory / file)
    (directory / hf_names.INDEX).write_text(json.dumps({"weight_map": placed}))
    (directory / "config.json").write_text(json.dumps(config_json(cfg, NoTokenizer(), "bfloat16")))


@pytest.mark.parametrize(
    ("layers", "width", "least"),
    [(4, 1024, 100 << 20), pytest.param(22, 2048, 2 << 30, marks=pytest.mark.slow)],
)
def test_peak_host_memory(tmp_path, layers, width, least):
    """Above the device copy (here host memory too): at most twice the largest tensor and 1 GiB, on
    any mesh.
    """
    import json

    _write(tmp_path, layers, width)
    for devices, shape in ((1, [1, 1, 1]), (8, [1, 4, 2])):
        env = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices),
        }
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(tmp_path), json.dumps(shape)],
            env=env,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        measured = json.loads(done.stdout.splitlines()[-1])
        print(devices, {k: f"{v / 2**20:.0f} MiB" for k, v in measured.items()})
        assert measured["total"] >= least
        # The small checkpoint must stay within twice its largest tensor and what the runtime itself
        # takes.
        slack = 1 << 30 if least > 1 << 30 else 256 << 20
        assert measured["above"] <= 2 * measured["largest"] + slack, measured


PROCESS = """
import sys
import jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from pathlib import Path
import numpy as np
from subtransfer.runtime import sharding
from subtransfer.models import families, hf_load, hf_names

directory = Path(sys.argv[3])
assert len(jax.devices()) == 8 and len(jax.local_devices()) == 4
cfg = families.read_config(directory)
checkpoint = hf_load.Checkpoint(directory)
checkpoint.check(cfg)
params = hf_load.read_params(checkpoint, cfg, sharding.make_mesh(1, 4, 2))
total = sum(x.nbytes for x in jax.tree.leaves(params))
print("share", checkpoint.bytes_read / total)
single = hf_load.load_params(directory, cfg)
for mine, whole in zip(jax.tree.leaves(params), jax.tree.leaves(single), strict=True):
    for shard in mine.addressable_shards:
        np.testing.assert_array_equal(shard.data, np.asarray(whole)[shard.index])
print("equal")
"""


@pytest.mark.slow
def test_two_processes_read_their_own_slices(tmp_path):
    reference("llama mha tied", vocab=64).save_pretrained(tmp_path)
    with socket.socket() as s:
        s.bind(("localhost", 0))
        address = f"localhost:{s.getsockname()[1]}"
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "4",
    }
    command = [sys.executable, "-c", PROCESS, address]
    running = [
        subprocess.Popen(
            [*command, str(i), str(tmp_path)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    for process in running:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err[-3000:]
        assert "equal" in out
        assert 0.4 < float(out.split("share")[1].split()[0]) < 0.6, out
