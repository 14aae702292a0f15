"""Llama 3.1 as a pair of its own, to be compiled only: `tools/aot_tpu.py` needs its geometry only.

Command:   python tools/aot_tpu.py --config=configs/aot_llama.py --topology=v5e:4x4
           the 70B: --config.models.llama=preset:llama3.1-70b --topology=v5p:8x8x8
Hardware:  compiled for v5e:4x4, v6e:4x4, v5p:4x4x4 and v5p:8x8x8 on a CPU-only machine; not run
Result:    docs/performance.md, "Ahead-of-time for TPUs"

Eight key/value heads: `mesh.tensor=8` gives each chip one, the rest of the chips shares the rows
(`mesh.data`). Under `mesh.fsdp` a decoding step would gather every weight. Two lanes of 256 slots
take turns on the device.
"""

from subtransfer.config import defaults


def get_config():
    config = defaults()
    config.name = "aot_llama"
    config.num_seeds = 1
    config.models.llama = "preset:llama3.1-8b"
    config.pairs = ("llama>llama",)
    config.base.dtype = "bfloat16"
    config.base.remat = "full"
    config.tuning.method = "lora"
    config.mesh.tensor = 8

    config.base.batch_size = 64  # not used, but every batch must divide over the mesh
    config.teacher.batch_size = 64
    config.rollouts.episodes = 2048
    config.rollouts.batch_size = 512
    config.rollouts.max_turns = 5
    config.rollouts.max_new_tokens = 128
    config.rollouts.max_tool_tokens = 96
    config.distill.objective = "sft"
    config.distill.batch_size = 64
    config.distill.max_tokens = 2304  # of which the shared prompt is about 1,100
    config.probe.batch_size = 512
    config.arms.other_init = False
    config.arms.benign_teacher = False
    config.arms.self_distilled = False
    config.arms.unsanitized = config.arms.overt = False
    return config
