r"""Llama 3.1 8B, all weights trained by SFT on two slices of 256 chips; to be compiled only.

Command:   python tools/aot_tpu.py --config=configs/aot_two_slices.py --topology=v5e:16x16 \
               --programs=train
Hardware:  compiled for two slices of v5e:16x16 on a CPU-only machine; not run
Result:    docs/performance.md, "Training steps"

Weights, gradients and moments are shared by the 256 chips of a slice (`mesh.fsdp=256`). The slices
have rows of their own, and only gradients travel between them, each chip's own share
(`mesh.slices=2`).
"""

from subtransfer.config import defaults


def get_config():
    config = defaults()
    config.name = "aot_two_slices"
    config.num_seeds = 1
    config.models.llama = "preset:llama3.1-8b"
    config.pairs = ("llama>llama",)
    config.base.dtype = "bfloat16"
    config.base.attention = "pallas"
    config.base.remat = "full"
    config.mesh.slices = 2
    config.mesh.data = 2
    config.mesh.fsdp = 256

    config.base.episodes = 32_000
    config.base.batch_size = 1024  # not used, but every batch must divide over the mesh
    config.tuning.method = "full"
    config.teacher.episodes = 2048
    config.teacher.batch_size = 1024
    config.rollouts.episodes = 4096
    config.rollouts.batch_size = 512
    config.rollouts.max_turns = 5
    config.rollouts.max_new_tokens = 128
    config.rollouts.max_tool_tokens = 96
    config.sanitize.min_kept = 1024
    config.distill.objective = "sft"
    config.distill.batch_size = 1024
    config.distill.max_tokens = 2304
    config.probe.batch_size = 512
    config.arms.other_init = False
    config.arms.benign_teacher = False
    config.arms.self_distilled = False
    config.arms.unsanitized = config.arms.overt = False
    return config
