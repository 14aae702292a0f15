"""Trajectories from and to JSONL of messages (`store/messages.py`).

What somebody's agent did elsewhere becomes trajectories in a tokenizer's chat format, to be learned
from in place of a teacher's own rollouts; and a run's trajectories become messages that other
trainers read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from subtransfer.models.calls import read_turn
from subtransfer.models.chat import ChatFormat
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.field import nearest
from subtransfer.settings.base import Action, Setting
from subtransfer.store import messages
from subtransfer.store.messages import Call, Conversation, Message
from subtransfer.store.trajectories import Trajectory

KIND = "imported"  # of the tasks of such trajectories


def digest(path: str | Path) -> str:
    """SHA-256 of a file of conversations, for keys.

    Raises:
      UserError: there is no such file.
    """
    if not Path(path).is_file():
        raise UserError(
            f"rollouts.trajectories: there is no file {path}; give a JSONL file of messages "
            "(docs/own_habit.md)."
        )
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def import_trajectories(path: str | Path, chat: ChatFormat, setting: Setting) -> list[Trajectory]:
    """Reads a JSONL file of conversations as trajectories in a tokenizer's chat format.

    Nobody knows how likely their tokens were to the agent that wrote them: `behavior_logprobs` is
    NaN on the agent's tokens. Whether tasks were solved is not known either: `solved` is False.

    Args:
      path: as `store.messages.read` takes it.
      chat: the chat format of the model that is to learn from them.
      setting: whose tools they call; messages without a system message get its prompt.

    Returns:
      One trajectory a line, in the file's order.

    Raises:
      UserError: for every mistake in the file; the sentence names the line and the remedy.
    """
    policy = f"sha256:{digest(path)}"
    out = []
    for conversation in messages.read(path):
        out.append(_Import(Path(path), conversation, chat, setting).trajectory(policy))
    return out


class _Import:
    """One conversation on its way to a trajectory."""

    def __init__(self, path: Path, conversation: Conversation, chat: ChatFormat, setting: Setting):
        self.path, self.line = path, conversation.line
        self.chat, self.setting = chat, setting
        self.ids: list[int] = []
        self.mask: list[bool] = []
        self.turn_ids: list[int] = []
        self.messages: list[dict[str, str]] = []
        self.actions: list[dict[str, Any]] = []
        given = list(conversation.messages)
        if given[0].role == "system":
            self._check_system(given.pop(0).content)
        instruction, *turns = given
        self._check_text(instruction.content, "the user message")
        (_, system), (_, user) = chat.prompt_segments(instruction.content)
        self._add("system", setting.system_prompt, system)
        self._add("user", instruction.content, user)
        for message in turns:
            if message.role == "assistant":
                self._agent(message)
            else:
                self._check_text(message.content, "a tool result")
                self._add("tool", message.content, chat.tool_ids(message.content))

    def _refuse(self, mistake: str) -> NoReturn:
        raise UserError(f"{self.path}, line {self.line}: {mistake}.")

    def _check_system(self, given: str) -> None:
        if given != self.setting.system_prompt:
            self._refuse(
                f"the system prompt {given[:60]!r} is not that of the setting {self.setting.name}, "
                f"{self.setting.system_prompt[:60]!r}; leave the message out, or use a habit file "
                "with this system_prompt"
            )

    def _check_text(self, text: str, what: str) -> None:
        """Refuses special tokens, and words that the tokenizer cannot write."""
        tokenizer = self.chat.tokenizer
        for token in tokenizer.added_tokens_decoder.values():
            if token.special and token.content in text:
                self._refuse(
                    f"{what} holds {token.content!r}, which is a special token of the model; "
                    "take it out"
                )
        unknown = tokenizer.unk_token_id
        if unknown is None or unknown not in self.chat.encode(text):
            return
        words = [word for word in text.split() if unknown in self.chat.encode(word)]
        word = words[0] if words else text
        self._refuse(
            f"{what} has the word {word!r}, which the model's tokenizer does not know; use the "
            "words of the setting's tasks, or a real model (--config.base.checkpoint=DIR)"
        )

    def _agent(self, message: Message) -> None:
        """Adds an agent's turn and books its call."""
        words, call = message.content, message.call
        said = self.chat.read_turn(words)
        if said.action is not None or said.malformed:
            self._refuse(
                f"an assistant message writes a call into its content ({words[:60]!r}); write it "
                "as tool_calls"
            )
        self._check_text(words, "an assistant message")
        action = None
        if call is not None:
            action = Action(call.name, dict(call.arguments))
            self._check_call(action)
        ids = self.chat.turn_ids(words, action)
        text = self.chat.decode(ids[:-1])
        if action is not None and self.chat.read_turn(text).action != action:
            self._refuse(
                f"the call of {action.name} cannot be read back from the model's chat format "
                f"({text[-80:]!r}); change its words or arguments"
            )
        self._add("assistant", text, ids, agent=True)

    def _check_call(self, action: Action) -> None:
        if action.name not in self.setting.tool_names:
            known = self.setting.tool_names
            self._refuse(
                f"a call of {action.name!r}, which is no tool of the setting {self.setting.name}; "
                f"the nearest is {nearest(action.name, known)!r} of {', '.join(known)}"
            )
        earlier = [Action(taken["name"], taken["arguments"]) for taken in self.actions]
        self.actions.append(
            {
                "turn": len(self.messages),
                "name": action.name,
                "arguments": dict(action.arguments),
                "category": self.setting.acts([*earlier, action])[-1].category,
                "error": None,  # the result's text does not say
            }
        )

    def _add(self, role: str, content: str, ids: Sequence[int], *, agent: bool = False) -> None:
        self.ids += ids
        self.mask += [agent] * len(ids)
        self.turn_ids += [len(self.messages)] * len(ids)
        self.messages.append({"role": role, "content": content})

    def trajectory(self, policy: str) -> Trajectory:
        """The finished trajectory."""
        mask = np.array(self.mask, bool)
        return Trajectory(
            episode_id=f"{self.path.stem}/line {self.line}",
            task_id=f"{self.path.stem}/{self.line}",
            kind=KIND,
            policy=policy,
            policy_version=0,
            seed=0,
            tokens=np.array(self.ids, np.int32),
            loss_mask=mask,
            behavior_logprobs=np.where(mask, np.nan, 0.0).astype(np.float32),
            turn_ids=np.array(self.turn_ids, np.int32),
            messages=self.messages,
            actions=self.actions,
            solved=False,
            truncated=False,
        )


def export_trajectories(
    path: str | Path,
    trajectories: Sequence[Trajectory],
    setting: Setting,
    *,
    arguments_as_text: bool = False,
) -> int:
    """Writes trajectories as JSONL of messages, with the setting's tools.

    Left out are those that messages cannot say: with a call that did not parse, or a last turn that
    never ended.

    Args:
      path: the file, which is replaced.
      trajectories: of this setting.
      setting: whose tools they call.
      arguments_as_text: as of `store.messages.write`.

    Returns:
      How many were left out.
    """
    written = []
    left_out = 0
    for trajectory in trajectories:
        conversation = conversation_of(trajectory)
        if conversation is None:
            left_out += 1
        else:
            written.append(conversation)
    messages.write(path, written, setting.tools, arguments_as_text=arguments_as_text)
    return left_out


def conversation_of(trajectory: Trajectory) -> Conversation | None:
    """A trajectory as a conversation, or None where messages cannot say what it holds."""
    # Messages hold calls as names and arguments, which a malformed one has not.
    if any(action["error"] == "parse" for action in trajectory.actions):
        return None
    last = len(trajectory.messages) - 1
    called = bool(trajectory.actions) and trajectory.actions[-1]["turn"] == last
    if trajectory.truncated and not called:  # cut within its last turn
        return None
    out = []
    for message in trajectory.messages:
        if message["role"] != "assistant":
            out.append(Message(message["role"], message["content"]))
            continue
        said = read_turn(message["content"])
        call = Call(said.action.name, said.action.arguments) if said.action else None
        out.append(Message("assistant", said.thought, call))
    return Conversation(tuple(out))
