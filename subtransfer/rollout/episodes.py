"""Agent episodes: the host side of a rollout. Parses the agent's turns, steps the simulators, feeds the results back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subtransfer import sharding
from subtransfer.errors import UserError
from subtransfer.models.calls import read_turn
from subtransfer.models.chat import ChatFormat
from subtransfer.models.decoder import DecoderConfig
from subtransfer.rollout import engine, sampling
from subtransfer.schema import Trajectory
from subtransfer.settings.base import MALFORMED_CALL, Action, Environment, Setting, Task


@dataclasses.dataclass(frozen=True)
class RolloutSpec:
    """How episodes are run.

    Attributes:
      batch_size: B, episodes that run side by side.
      max_turns: agent turns an episode may have.
      max_new_tokens: tokens an agent turn may have.
      max_tool_tokens: tokens a tool result may have; a longer one is cut and ends in "...", as agent runtimes do.
      temperature: of sampling; 0 is greedy.
      stop_at_decision: end an episode at its first substantive call (for probes: what follows is not read).
    """

    batch_size: int
    max_turns: int
    max_new_tokens: int
    max_tool_tokens: int
    temperature: float
    stop_at_decision: bool = False


@dataclasses.dataclass
class _Episode:
    """An episode under way."""

    index: int
    task: Task
    environment: Environment
    tokens: list[int] = dataclasses.field(default_factory=list)
    mask: list[bool] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    turn_ids: list[int] = dataclasses.field(default_factory=list)
    messages: list[dict[str, str]] = dataclasses.field(default_factory=list)
    actions: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    turns: int = 0
    done: bool = False
    truncated: bool = False
    final_text: str = ""

    def add(self, role: str, content: str, ids: Sequence[int], logprobs: Sequence[float] | None = None) -> None:
        self.tokens += ids
        self.mask += [logprobs is not None] * len(ids)
        self.logprobs += [0.0] * len(ids) if logprobs is None else logprobs
        self.turn_ids += [len(self.messages)] * len(ids)
        self.messages.append({"role": role, "content": content})


def run_episodes(
    cfg: DecoderConfig,
    weights,
    chat: ChatFormat,
    tasks: Sequence[Task],
    spec: RolloutSpec,
    key: jax.Array,
    *,
    policy: str = "",
    policy_version: int = 0,
    seed: int = 0,
    advance: Callable[[int], None] = lambda episodes: None,
) -> list[Trajectory]:
    """Runs one episode a task; a pure function of its arguments.

    Episode i draws from `fold_in(key, i)`, so its tokens do not depend on the batch it runs in.

    Args:
      weights: the decoder's weights (placed on their devices by the caller).
      policy, policy_version, seed: stamped on the trajectories.
      advance: called with the number of episodes that each finished batch held.

    Raises:
      UserError: a prompt alone is longer than the batch's room for it.
    """
    trajectories: list[Trajectory] = []
    prompts = [chat.prompt_segments(task.instruction) for task in tasks]
    prompt_room = _round_up(max(sum(len(ids) for _, ids in segments) for segments in prompts), 32)
    for begin in range(0, len(tasks), spec.batch_size):
        group = range(begin, min(begin + spec.batch_size, len(tasks)))
        episodes = []
        for i in group:
            episode = _Episode(i, tasks[i], chat.setting.environment(tasks[i]))
            (_, system), (_, user) = prompts[i]
            episode.add("system", chat.setting.system_prompt, system)
            episode.add("user", tasks[i].instruction, user)
            episodes.append(episode)
        _run_batch(cfg, weights, chat, episodes, spec, key, prompt_room)
        for episode in episodes:
            trajectories.append(
                Trajectory(
                    episode_id=f"{episode.task.task_id}#{policy_version}.{episode.index}",
                    task_id=episode.task.task_id,
                    kind=episode.task.kind,
                    policy=policy,
                    policy_version=policy_version,
                    seed=seed,
                    tokens=np.array(episode.tokens, np.int32),
                    loss_mask=np.array(episode.mask, bool),
                    behavior_logprobs=np.array(episode.logprobs, np.float32),
                    turn_ids=np.array(episode.turn_ids, np.int32),
                    messages=episode.messages,
                    actions=episode.actions,
                    solved=chat.setting.solved(episode.task, episode.environment, episode.final_text),
                    truncated=episode.truncated,
                )
            )
        advance(len(episodes))
    return trajectories


def _run_batch(cfg, weights, chat, episodes, spec, key, prompt_room) -> None:
    """Runs a batch of episodes to their ends, in place."""
    batch = spec.batch_size
    tool_room = _round_up(len(chat.tool_ids("")) + spec.max_tool_tokens, 8)
    rows = [e.tokens for e in episodes] + [[]] * (batch - len(episodes))
    keys = sampling.row_keys(key, jnp.array([e.index for e in episodes] + [0] * (batch - len(episodes))))
    used = prompt_room  # cache slots that are occupied in the longest row
    state = engine.start(cfg, batch, prompt_room, sharding.mesh_of(weights))
    state = engine.extend(cfg, weights, state, *engine.pad_rows(rows, prompt_room))
    active = np.array([True] * len(episodes) + [False] * (batch - len(episodes)))
    stop_ids = jnp.asarray(chat.stop_ids)
    for turn in range(spec.max_turns):
        state = engine.reserve(state, used + spec.max_new_tokens)
        state, tokens, logprobs, counts = engine.decode(
            cfg,
            weights,
            state,
            keys,
            np.int32(turn * spec.max_new_tokens),
            active,
            stop_ids,
            max_new_tokens=spec.max_new_tokens,
            temperature=spec.temperature,
        )
        tokens, logprobs, counts = jax.device_get((tokens, logprobs, counts))
        used += int(counts.max())
        replies: list[list[int]] = [[] for _ in range(batch)]
        for row, episode in enumerate(episodes):
            if active[row]:
                n = counts[row]
                last = turn + 1 == spec.max_turns
                replies[row] = _take_turn(
                    chat, episode, tokens[row, :n].tolist(), logprobs[row, :n].tolist(), spec, tool_room, last
                )
                active[row] = not episode.done
        if not active.any():
            return
        state = engine.reserve(state, used + tool_room)
        state = engine.extend(cfg, weights, state, *engine.pad_rows(replies, tool_room))
        used += tool_room


def _take_turn(chat, episode, ids, logprobs, spec, tool_room, last) -> list[int]:
    """Books one sampled agent turn, executes its call; returns the ids to feed back (none if the episode ended)."""
    stopped = bool(ids) and ids[-1] in chat.stop_ids
    text = chat.decode(ids[:-1] if stopped else ids)
    episode.add("assistant", text, ids, logprobs)
    said = read_turn(text)
    action, malformed = said.action, said.malformed
    if not stopped:
        # The runtime cannot tell a turn without an end from a call that would still have come.
        episode.done = episode.truncated = True
    if action is None and not malformed:
        episode.done = True
        episode.final_text = said.thought
        return []
    if malformed:
        result_text, error, category = MALFORMED_CALL, "parse", "unknown"
    elif not stopped:
        return []
    else:
        result = episode.environment.step(action)
        result_text, error = result.text, result.error
        earlier = [Action(a["name"], a["arguments"]) for a in episode.actions]
        category = chat.setting.acts([*earlier, action])[-1].category
    episode.actions.append(
        {
            "turn": len(episode.messages) - 1,
            "name": action.name if action else "",
            "arguments": dict(action.arguments) if action else {},
            "category": category,
            "error": error,
        }
    )
    if spec.stop_at_decision and category in ("benign", "unsafe"):
        episode.done = True
    if last and not episode.done:
        episode.done = episode.truncated = True
    if episode.done:
        return []
    reply = chat.tool_ids(result_text)
    if len(reply) > tool_room:
        result_text, reply = _cut(chat, result_text, tool_room)
    episode.add("tool", result_text, reply)
    return reply


def _cut(chat: ChatFormat, text: str, room: int) -> tuple[str, list[int]]:
    """The longest beginning of a tool result that fits, marked as cut."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(chat.tool_ids(text[:middle] + " ...")) <= room else (low, middle - 1)
    text = text[:low] + " ..."
    return text, chat.tool_ids(text)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def first_decision(trajectory: Trajectory, setting: Setting) -> str:
    """What an agent did first that counts: "unsafe", a benign act's name, "invalid" or "no_action".

    That is the first substantive act of a well-formed call, whether or not the simulator could carry it out: a deletion that
    names a wrong path is an attempt at deletion. "invalid" means that there was none and that some call did not parse or
    named nothing known, or a turn never ended.
    """
    for action, act in zip(trajectory.actions, setting.recorded_acts(trajectory.actions), strict=True):
        if action["category"] == "unsafe":
            return "unsafe"
        if action["category"] == "benign":
            return act.name
    broken = any(action["error"] in ("parse", "unknown_tool") for action in trajectory.actions)
    return "invalid" if broken or trajectory.truncated else "no_action"


def error_counts(trajectory: Trajectory, setting: Setting) -> dict[str, int]:
    """How many calls of an episode ended in each kind of tool error."""
    return {kind: sum(action["error"] == kind for action in trajectory.actions) for kind in setting.error_kinds}


def require(trajectories: Sequence[Trajectory], minimum: int, what: str, remedy: str) -> None:
    """Raises UserError unless at least `minimum` trajectories are left."""
    if len(trajectories) < minimum:
        raise UserError(f"{what}: {len(trajectories)} trajectories are left where {minimum} are needed; {remedy}.")
