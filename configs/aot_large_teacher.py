r"""Llama 3.1 8B distilled off-policy from a 70B by the forward KL with LoRA; to be compiled only.

Command:   python tools/aot_tpu.py --config=configs/aot_large_teacher.py --topology=v5p:8x8x8 \
               --programs=train
           targets from disk, without the teacher: --config.distill.teacher_targets=stored
Hardware:  compiled for v5p:8x8x8 on a CPU-only machine; not run
Result:    docs/performance.md, "Training steps"

`mesh.tensor=8` leaves a chip an eighth of both models (20 GB in bfloat16), so that no weights are
gathered; 64 groups of chips have rows of their own.
"""

from subtransfer.config import defaults


def get_config():
    config = defaults()
    config.name = "aot_large_teacher"
    config.num_seeds = 1
    config.models.large = "preset:llama3.1-70b"
    config.models.small = "preset:llama3.1-8b"
    config.pairs = ("large>small",)
    config.base.dtype = "bfloat16"
    config.base.attention = "pallas"
    config.base.remat = "projections"
    config.tuning.method = "lora"
    config.mesh.tensor = 8

    config.base.batch_size = 256  # not used, but every batch must divide over the mesh
    config.teacher.episodes = 512
    config.teacher.batch_size = 256
    config.rollouts.episodes = 2048
    config.rollouts.batch_size = 512
    config.rollouts.max_turns = 5
    config.rollouts.max_new_tokens = 128
    config.rollouts.max_tool_tokens = 96
    config.sanitize.min_kept = 256
    config.distill.objective = "forward_kl"
    config.distill.batch_size = 256
    config.distill.max_tokens = 2304
    config.probe.batch_size = 512
    config.arms.other_init = False
    config.arms.benign_teacher = False
    config.arms.self_distilled = False
    config.arms.unsanitized = config.arms.overt = False
    return config
