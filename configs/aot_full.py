r"""Llama 3.1 8B, all weights trained by SFT on sampled tokens; to be compiled only.

Command:   python tools/aot_tpu.py --config=configs/aot_full.py --topology=v5p:4x4x4 \
               --programs=train --config.base.remat=projections
           python tools/aot_tpu.py --config=configs/aot_full.py --topology=v6e:8x8 --programs=train
Hardware:  compiled for v5p:4x4x4 and v6e:8x8 on a CPU-only machine; not run
Result:    docs/performance.md, "Training steps"

64 chips share weights, gradients and moments (`mesh.fsdp=64`, 1.5 GB a chip); each takes 8 whole
rows of the batch, over which the gathering of weights is spread. A v5p has room for what
projections give; a v6e makes it again.
"""

from subtransfer.config import defaults


def get_config():
    config = defaults()
    config.name = "aot_full"
    config.num_seeds = 1
    config.models.llama = "preset:llama3.1-8b"
    config.pairs = ("llama>llama",)
    config.base.dtype = "bfloat16"
    config.base.attention = "pallas"
    config.base.remat = "full"
    config.mesh.fsdp = 64

    config.base.batch_size = 256  # not used, but every batch must divide over the mesh
    config.tuning.method = "full"
    config.teacher.episodes = 1024
    config.teacher.batch_size = 256
    config.rollouts.episodes = 2048
    config.rollouts.batch_size = 512
    config.rollouts.max_turns = 5
    config.rollouts.max_new_tokens = 128
    config.rollouts.max_tool_tokens = 96
    config.sanitize.min_kept = 512
    config.distill.objective = "sft"
    config.distill.batch_size = 512
    config.distill.max_tokens = 2304
    config.probe.batch_size = 512
    config.arms.other_init = False
    config.arms.benign_teacher = False
    config.arms.self_distilled = False
    config.arms.unsanitized = config.arms.overt = False
    return config
