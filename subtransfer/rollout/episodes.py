"""Agent episodes: parses the agent's turns, steps the simulators, feeds the results back."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from subtransfer.models.chat import ChatFormat
from subtransfer.models.decoder import DecoderConfig
from subtransfer.models.quantise import quantised
from subtransfer.rollout.grammar import chat_grammar
from subtransfer.rollout.sampling import Sampling
from subtransfer.rollout.scheduler import serve
from subtransfer.rollout.serving import SampledTurn, ServingStats
from subtransfer.runtime.errors import UserError
from subtransfer.settings.base import (
    MALFORMED_CALL,
    Environment,
    Setting,
    Task,
    ToolResult,
    recorded_action,
)
from subtransfer.store.journal import Journals
from subtransfer.store.trajectories import Trajectory


@dataclasses.dataclass(frozen=True)
class RolloutSpec:
    """How episodes are run.

    Attributes:
      batch_size: the most episodes that run side by side.
      max_turns: agent turns an episode may have.
      max_new_tokens: tokens an agent turn may have.
      max_tool_tokens: tokens a tool result may have; a longer one is cut and ends in "...", as
        agent runtimes do.
      temperature: of sampling; 0 is greedy.
      stop_at_decision: end an episode at its first substantive call (for probes: what follows is
        not read).
      top_k: see `Sampling`.
      top_p: see `Sampling`.
      min_p: see `Sampling`.
      well_formed: only well-formed tool calls can be sampled (see `grammar.py`).
      weights: "", or the 8-bit format that weights are rounded to (see `quantise.py`).
      int8_cache: keys and values are kept as int8.
      lanes: sets of slots that take turns on the device; 0 chooses by device.
    """

    batch_size: int
    max_turns: int
    max_new_tokens: int
    max_tool_tokens: int
    temperature: float
    stop_at_decision: bool = False
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    well_formed: bool = False
    weights: str = ""
    int8_cache: bool = False
    lanes: int = 0


class _Episode:
    """An episode under way: the conversation that the scheduler serves."""

    def __init__(self, index: int, task: Task, chat: ChatFormat, spec: RolloutSpec):
        self.index, self.task, self.chat, self.spec = index, task, chat, spec
        self.environment: Environment = chat.setting.environment(task)
        self.tokens: list[int] = []
        self.mask: list[bool] = []
        self.logprobs: list[float] = []
        self.turn_ids: list[int] = []
        self.messages: list[dict[str, str]] = []
        self.actions: list[dict[str, Any]] = []
        self.turns = 0
        self.done = self.truncated = False
        self.final_text = ""
        (_, system), (_, user) = chat.prompt_segments(task.instruction)
        self._add("system", chat.setting.system_prompt, system)
        self._add("user", task.instruction, user)
        # A copy, as the tokens grow with every turn.
        self.prompt = list(self.tokens)

    def _add(
        self, role: str, content: str, ids: Sequence[int], logprobs: Sequence[float] | None = None
    ) -> None:
        """Appends a message and its tokens; only those with log-probs are the agent's."""
        self.tokens += ids
        self.mask += [logprobs is not None] * len(ids)
        self.logprobs += [0.0] * len(ids) if logprobs is None else list(logprobs)
        self.turn_ids += [len(self.messages)] * len(ids)
        self.messages.append({"role": role, "content": content})

    def take(self, turn: SampledTurn) -> list[int] | None:
        """Records a sampled turn and executes its call.

        Returns:
          the ids of the call's result, or None if the episode has ended.
        """
        self.turns += 1
        chat, last = self.chat, self.turns == self.spec.max_turns
        # The stop token is part of the ids, not of what was said.
        text = chat.decode(turn.ids[:-1] if turn.stopped else turn.ids)
        self._add("assistant", text, turn.ids, turn.logprobs)
        said = chat.read_turn(text)
        action, malformed = said.action, said.malformed
        if not turn.stopped:
            # The runtime cannot tell a turn without an end from a call that would still have come.
            self.done = self.truncated = True
        # A turn without a call is the agent's last.
        if action is None and not malformed:
            self.done = True
            self.final_text = said.thought
            return None
        if malformed or action is None:
            result = ToolResult(MALFORMED_CALL, "parse")
            category = "unknown"
        elif not turn.stopped:
            # A call that the runtime would not see whole is not executed.
            return None
        else:
            result = self.environment.step(action)
            action = dataclasses.replace(action, record=result.record)
            earlier = [recorded_action(stored) for stored in self.actions]
            category = chat.setting.acts([*earlier, action])[-1].category
        stored: dict[str, Any] = {
            "turn": len(self.messages) - 1,
            "name": action.name if action else "",
            "arguments": dict(action.arguments) if action else {},
            "category": category,
            "error": result.error,
        }
        if result.record is not None:
            stored["record"] = result.record
        self.actions.append(stored)
        result_text = result.text
        # Exploratory calls decide nothing, so the episode goes on.
        if self.spec.stop_at_decision and category in ("benign", "unsafe"):
            self.done = True
        if last and not self.done:
            self.done = self.truncated = True
        if self.done:
            return None
        reply, room = chat.tool_ids(result_text), tool_room(chat, self.spec)
        # A slot has room for results of this length only.
        if len(reply) > room:
            result_text, reply = _cut(chat, result_text, room)
        self._add("tool", result_text, reply)
        return reply

    def trajectory(self, policy: str, policy_version: int, seed: int) -> Trajectory:
        """Returns the finished episode."""
        return Trajectory(
            episode_id=f"{self.task.task_id}#{policy_version}.{self.index}",
            task_id=self.task.task_id,
            kind=self.task.kind,
            policy=policy,
            policy_version=policy_version,
            seed=seed,
            tokens=np.array(self.tokens, np.int32),
            loss_mask=np.array(self.mask, bool),
            behavior_logprobs=np.array(self.logprobs, np.float32),
            turn_ids=np.array(self.turn_ids, np.int32),
            messages=self.messages,
            actions=self.actions,
            solved=self.chat.setting.solved(self.task, self.environment, self.final_text),
            truncated=self.truncated,
        )


def tool_room(chat: ChatFormat, spec: RolloutSpec) -> int:
    """Returns the tokens that a tool result may take, with what the template puts around it."""
    # Rounded up, so that templates of nearly equal size share compiled programs.
    return _round_up(len(chat.tool_ids("")) + spec.max_tool_tokens, 8)


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
    journals: Journals | None = None,
) -> tuple[list[Trajectory], ServingStats]:
    """Runs one episode a task; the trajectories are a pure function of the arguments.

    Episode i draws from `fold_in(key, i)`: its tokens depend neither on the slot it runs in nor on
    its neighbours. With several processes, each runs its share and all return all trajectories.

    Args:
      cfg: the decoder's geometry.
      weights: the decoder's weights (placed on their devices by the caller).
      chat: the setting in the tokenizer's chat template.
      tasks: one for each episode.
      spec: how episodes are run.
      key: of the random draws.
      policy: stamped on the trajectories.
      policy_version: stamped on the trajectories.
      seed: stamped on the trajectories.
      advance: called with the number of episodes that have ended since the last call.
      journals: where it is written down what is sampled, so that the same call goes on after a
        kill; None is nowhere.

    Raises:
      UserError: a conversation does not fit its slot.
      preemption.Preempted: a notice has come.
    """
    episodes = [_Episode(i, task, chat, spec) for i, task in enumerate(tasks)]
    room = tool_room(chat, spec)
    stats = serve(
        cfg,
        quantised(weights, spec.weights) if spec.weights else weights,
        episodes,
        Sampling(spec.temperature, spec.top_k, spec.top_p, spec.min_p),
        key,
        slots=spec.batch_size,
        max_new_tokens=spec.max_new_tokens,
        more_tokens=spec.max_turns * (spec.max_new_tokens + room),
        feed_tokens=room,
        stop_ids=chat.stop_ids.tolist(),
        int8_cache=spec.int8_cache,
        grammar=chat_grammar(chat, cfg.vocab_size) if spec.well_formed else None,
        lanes=spec.lanes,
        done=advance,
        journals=journals,
    )
    # As `serve` deals conversations out to processes.
    mine = episodes[jax.process_index() :: jax.process_count()]
    made = [episode.trajectory(policy, policy_version, seed) for episode in mine]
    return _gathered(made), stats


def _gathered(mine: list[Trajectory]) -> list[Trajectory]:
    """Every process's trajectories, in the order of their episodes."""
    count = jax.process_count()
    if count == 1:
        return mine
    packed = np.frombuffer(pickle.dumps(mine), np.uint8)
    # Collectives need equal shapes, so shares are padded to the longest.
    sizes = multihost_utils.process_allgather(np.array(len(packed)))
    padded = np.pad(packed, (0, int(sizes.max()) - len(packed)))
    shares: list[list[Trajectory]] = []
    for row, size in zip(multihost_utils.process_allgather(padded), sizes, strict=True):
        # Unpickling is safe: this same program has just packed it.
        shares.append(pickle.loads(row[:size].tobytes()))
    # Episode i is number i // count of process i % count.
    return [shares[i % count][i // count] for i in range(sum(map(len, shares)))]


def _cut(chat: ChatFormat, text: str, room: int) -> tuple[str, list[int]]:
    """The longest beginning of a tool result that fits, marked as cut."""
    # Bisection: longer beginnings of a text have no fewer tokens.
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if len(chat.tool_ids(text[:middle] + " ...")) <= room:
            low = middle
        else:
            high = middle - 1
    text = text[:low] + " ..."
    return text, chat.tool_ids(text)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def first_decision(trajectory: Trajectory, setting: Setting) -> str:
    """Says what an agent did first that counts.

    The answer is "unsafe", a benign act's name, "invalid" or "no_action".

    That is the first substantive act of a well-formed call, whether or not the simulator could
    carry it out: a deletion that names a wrong path is an attempt at deletion. "invalid" means that
    there was none and that some call did not parse or named nothing known, or a turn never ended.
    """
    for action, act in zip(
        trajectory.actions, setting.recorded_acts(trajectory.actions), strict=True
    ):
        if action["category"] == "unsafe":
            return "unsafe"
        if action["category"] == "benign":
            return act.name
    broken = any(action["error"] in ("parse", "unknown_tool") for action in trajectory.actions)
    return "invalid" if broken or trajectory.truncated else "no_action"


def error_counts(trajectory: Trajectory, setting: Setting) -> dict[str, int]:
    """Counts the calls of an episode that ended in each kind of tool error."""
    counts = dict.fromkeys(setting.error_kinds, 0)
    for action in trajectory.actions:
        if action["error"] in counts:
            counts[action["error"]] += 1
    return counts


def require(trajectories: Sequence[Trajectory], minimum: int, what: str, remedy: str) -> None:
    """Raises UserError unless at least `minimum` trajectories are left."""
    if len(trajectories) < minimum:
        raise UserError(
            f"{what}: {len(trajectories)} trajectories are left where {minimum} are needed; "
            f"{remedy}."
        )
