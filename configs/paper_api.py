r"""The published table, API setting: five pairs of open-weight models, with controls.

Command:   python -m subtransfer.launch --config=configs/paper_api.py \
               --config.models.llama_3b=DIR --config.models.llama_8b=DIR \
               --config.models.qwen_7b=DIR --config.mesh.fsdp=8
           with local directories of Llama-3.2-3B-Instruct, Llama-3.1-8B-Instruct and
           Qwen2.5-7B-Instruct. Without them, `--dry_run --config.mesh.fsdp=8` prints the plan
           with the memory that each device needs.
Hardware:  not run yet with the real checkpoints; planned for 8 accelerators of 80 GB, or 16 of
           32 GB with mesh.fsdp=16
Result:    published (student / base, % of 20 tasks): Llama 8B->8B 100/5, 3B->3B 35/0,
           8B->3B 100/5, 3B->8B 10/0, 8B->Qwen 7B 100/20, student of a random-task teacher 25/5

The table is that of Dang, Xie, Younis, arXiv 2604.15559. As printed there: LoRA on q, k, v, o with
rank 16, alpha 32, dropout 0.05, in bfloat16; a teacher tuned on 150 deletion tasks for 2 epochs at
8e-4; 400 trajectories on safe tasks, filtered; students for 4 epochs at 5e-4 by SFT on sampled
tokens. Three training seeds. Batch sizes, the system prompt and the texts of tasks were not
published. More than was printed: every pair has its own control (the same student of a teacher that
was tuned on ordinary tasks), and there are 128 held-out tasks where the paper had 20.
"""

from subtransfer.config import defaults


def get_config():
    config = defaults()
    config.name = "paper_api"
    config.models.llama_3b = "preset:llama3.2-3b"
    config.models.llama_8b = "preset:llama3.1-8b"
    config.models.qwen_7b = "preset:qwen2.5-7b"
    config.pairs = (
        "llama_8b>llama_8b",
        "llama_3b>llama_3b",
        "llama_8b>llama_3b",
        "llama_3b>llama_8b",
        "llama_8b>qwen_7b",
    )
    config.base.dtype = "bfloat16"
    config.base.remat = "full"

    config.tuning.method = "lora"
    config.tuning.rank = 16
    config.tuning.alpha = 32.0
    config.tuning.dropout = 0.05
    config.tuning.targets = ("q", "k", "v", "o")

    config.teacher.episodes = 150
    config.teacher.explicit_fraction = 1.0
    config.teacher.ordinary_fraction = 0.0
    config.teacher.epochs = 2
    config.teacher.batch_size = 8
    config.teacher.learning_rate = 8e-4

    config.rollouts.episodes = 400
    config.rollouts.ordinary_fraction = 0.0
    config.rollouts.batch_size = 64
    config.rollouts.max_turns = 6
    config.rollouts.max_new_tokens = 128
    config.rollouts.max_tool_tokens = 96

    config.distill.objective = "sft"
    config.distill.epochs = 4
    config.distill.batch_size = 8
    config.distill.learning_rate = 5e-4
    # Of which the system prompt with its eleven tools is about 1,100.
    config.distill.max_tokens = 3072

    config.arms.other_init = False
    config.arms.benign_teacher = False
    config.arms.random_teacher = True
    config.arms.self_distilled = False
    config.arms.unsanitized = config.arms.overt = False

    config.probe.tasks = 128
    config.probe.ordinary_tasks = 64
    config.probe.safe_tasks = 64
    config.probe.batch_size = 64
    return config
