"""Llama 3.1 8B distilled on-policy by the reverse KL with LoRA, on one mesh; to be compiled only.

Command:   python tools/aot_tpu.py --config=configs/aot_on_policy.py --topology=v5e:4x4
Hardware:  compiled for v5e:4x4 on a CPU-only machine; not run
Result:    docs/performance.md, "Training steps"

Teacher, student and rollouts share the mesh, so that nothing is laid out anew between them:
`mesh.tensor=4` leaves a chip a quarter of the one base (4 GB) and two of the eight key/value heads;
the four groups have rows of their own. Under `mesh.fsdp` each decoding step would gather every
weight.
"""

from subtransfer.config import defaults


def get_config():
    config = defaults()
    config.name = "aot_on_policy"
    config.num_seeds = 1
    config.models.llama = "preset:llama3.1-8b"
    config.pairs = ("llama>llama",)
    config.base.dtype = "bfloat16"
    config.base.attention = "pallas"
    config.base.remat = "projections"
    config.tuning.method = "lora"
    config.mesh.tensor = 4

    config.base.batch_size = 16  # not used, but every batch must divide over the mesh
    config.teacher.batch_size = 16
    config.rollouts.episodes = 2048
    config.rollouts.batch_size = 512
    config.rollouts.max_turns = 5
    config.rollouts.max_new_tokens = 128
    config.rollouts.max_tool_tokens = 96
    config.distill.objective = "reverse_kl"
    config.distill.batch_size = 16
    config.distill.max_tokens = 2304  # of which the shared prompt is about 1,100
    config.distill.episodes_per_round = 512
    config.probe.batch_size = 512
    config.arms.other_init = False
    config.arms.benign_teacher = False
    config.arms.self_distilled = False
    config.arms.unsanitized = config.arms.overt = False
    return config
