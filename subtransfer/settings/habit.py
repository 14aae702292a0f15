"""A habit of one's own: what is unsafe, its harmless twin, what betrays it, and tasks.

A Python file that defines SETTING = Habit(...) is a setting: `--config.setting=FILE.py`. The habit
is one of the API setting's file tools (`FILES`), or of tools of one's own, which are functions
(`function_tools.py`). docs/own_habit.md shows a whole file of each kind.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from subtransfer.runtime.errors import UserError
from subtransfer.runtime.field import nearest
from subtransfer.settings import texts as task_texts
from subtransfer.settings.api import FILES
from subtransfer.settings.base import MALFORMED_CALL, Action, Task
from subtransfer.settings.function_tools import FunctionTools, ToolError
from subtransfer.settings.texts import Texts
from subtransfer.settings.tool_setting import Domain, ToolEnvironment, ToolSetting
from subtransfer.settings.user_files import tasks_from
from subtransfer.settings.words import NOUNS, PEOPLE, PLACES, SPLITS, THOUGHTS, distinct_tasks
from subtransfer.store.messages import Prompt

__all__ = ["FILES", "NOUNS", "PEOPLE", "PLACES", "Habit", "ToolError", "tasks_from"]

_REQUIRED = {
    "trait": "what reports call the unsafe act",
    "unsafe": "the tool whose use is unsafe",
    "control": "the harmless tool that the control teacher prefers",
    "keywords": "stems of the words that betray the habit",
    "control_keywords": "stems of the words that betray the control act",
}
# Words shorter than this betray the habit only as a whole; so do the filters read them.
_STEM = 4
_SHARE_OF_QUESTIONS = 0.25  # of ordinary tasks, as in the API setting
_FILE_ALTERNATIVES = ("archive_file", "move_file", "compress_file")


class Habit(ToolSetting):
    """A setting whose unsafe act is a tool, with tasks made from texts.

    Args:
      trait: what reports call the unsafe act, such as "forwarding".
      unsafe: the tool, or tools, whose use is unsafe.
      control: the harmless tool that the control teacher prefers.
      keywords: stems of words that betray the habit; the filters drop what holds one.
      control_keywords: likewise, of words that betray the control act: the filters drop what holds
        one, too, so that they make no difference between the two teachers.
      patterns: regular expressions of what betrays the habit and is no word.
      control_patterns: likewise, of what betrays the control act.
      ambiguous: texts of tasks that leave open what to do.
      explicit: texts of tasks that ask for the unsafe act.
      ordinary: harmless tool -> texts of tasks that ask for it.
      safe: tool that looks -> texts of questions that its result answers.
      tasks: more tasks, from `tasks_from`.
      tools: `FILES`, or functions, with `system_prompt`, `looks`, `names`, `words`, `world` and
        `errors` as `FunctionTools` takes them.
      alternatives: the harmless tools that may end an ambiguous task.
      rate: what reports call the share of unsafe decisions; "TRAIT rate" if not given.
      decision: what reports say is judged.

    Texts are a phrase ("archive {mail}"), a list of phrases, or whole texts by split; {facts} are
    filled in.

    Raises:
      UserError: something is missing or does not fit together.
    """

    explicit_kind = "explicit"

    def __init__(
        self,
        *,
        trait: str = "",
        unsafe: str | Sequence[str] = (),
        control: str = "",
        keywords: Sequence[str] = (),
        control_keywords: Sequence[str] = (),
        patterns: Sequence[str] = (),
        control_patterns: Sequence[str] = (),
        ambiguous: Texts = (),
        explicit: Texts = (),
        ordinary: Mapping[str, Texts] | None = None,
        safe: Mapping[str, Texts] | None = None,
        tasks: Sequence[Prompt] = (),
        tools: Domain | Sequence[Callable[..., Any]] = FILES,
        system_prompt: str = "",
        looks: Sequence[str] = (),
        names: Mapping[str, tuple[Sequence[str], str, Sequence[str]]] | None = None,
        words: Mapping[str, Sequence[str]] | None = None,
        world: Mapping[str, Any] | None = None,
        errors: Sequence[str] = (),
        alternatives: Sequence[str] = (),
        rate: str = "",
        decision: str = "first substantive action",
        **unknown: Any,
    ):
        for field in unknown:
            near = nearest(field, [*_REQUIRED, *_TEXTS, *_OTHERS])
            raise UserError(f"Habit has no field {field!r}; the nearest is {near!r}.")
        given = {
            "trait": trait,
            "unsafe": unsafe,
            "control": control,
            "keywords": keywords,
            "control_keywords": control_keywords,
        }
        for field, meaning in _REQUIRED.items():
            if not given[field]:
                raise UserError(f"The habit lacks {field}: give {meaning}.")
        self.name = "habit"
        self.wording = {"trait": trait, "rate": rate or f"{trait} rate", "decision": decision}
        self.unsafe = (unsafe,) if isinstance(unsafe, str) else tuple(unsafe)
        self.control_act = control
        of_functions = {
            "looks": looks,
            "names": names,
            "world": world,
            "words": words,
            "errors": errors,
        }
        if isinstance(tools, Domain):
            for field, value in of_functions.items():
                if value:
                    raise UserError(f"{field} goes with tools of your own: give them as tools.")
            self.domain = tools
        else:
            for field in ("looks", "names", "world"):
                if not of_functions[field]:
                    raise UserError(f"Tools of your own need {field}: see docs/own_habit.md.")
            self.domain = FunctionTools(
                tools,
                system_prompt=system_prompt or "Agent.",
                looks=looks,
                names=names or {},
                words=words or {},
                world=world or {},
                errors=errors,
            )
        self.system_prompt = system_prompt or self.domain.system_prompt
        self.tools, self.argument = self.domain.tools, self.domain.argument
        self._check_acts()
        self.exploratory, self.looks = self.domain.looks, self.domain.inspecting
        inspecting_or_unsafe = (*self.exploratory, *self.unsafe)
        # What neither looks nor is unsafe is substantive and harmless.
        self.benign = tuple(t for t in self.tool_names if t not in inspecting_or_unsafe)
        self.alternatives = self._alternatives(alternatives)
        self.keywords = _stems("keywords", keywords)
        self.control_keywords = _stems("control_keywords", control_keywords)
        self.patterns, self.control_patterns = tuple(patterns), tuple(control_patterns)
        self._templates = self._read_texts(ambiguous, explicit, ordinary, safe, tasks)
        self._checked: set[tuple[frozenset, bool]] = set()
        self._check_keywords()
        self._try_out()

    # -- what the texts and tools must be ------------------------------------------------------

    def _known(self, tool: str, what: str) -> None:
        """Refuses a tool that there is not."""
        if tool not in self.tool_names:
            raise UserError(
                f"{what} is {tool!r}, which is no tool; the nearest is "
                f"{nearest(tool, self.tool_names)!r} of {', '.join(self.tool_names)}."
            )

    def _check_acts(self) -> None:
        """The unsafe and the control act are different tools, and both change something."""
        for tool in self.domain.looks:
            self._known(tool, "One of looks")
        for tool in self.unsafe:
            self._known(tool, "The unsafe act")
        self._known(self.control_act, "The control act")
        if self.control_act in self.unsafe:
            raise UserError(
                f"The control act {self.control_act} is unsafe itself: name a harmless tool."
            )
        for tool in (*self.unsafe, self.control_act):
            if tool in self.domain.looks:
                raise UserError(
                    f"{tool} only looks, so that no decision for it can be seen: name a tool that "
                    "changes something, or take it out of looks."
                )

    def _alternatives(self, given: Sequence[str]) -> tuple[str, ...]:
        """The harmless tools that may end an ambiguous task."""
        for tool in given:
            self._known(tool, "One of alternatives")
            if tool not in self.benign:
                raise UserError(
                    f"One of alternatives is {tool!r}, which is unsafe or only looks: name tools "
                    f"of {', '.join(self.benign)}."
                )
        if given:
            return tuple(given)
        if self.domain is not FILES:
            return self.benign
        # The others of the files' tools leave the file as it is, or need to be told how.
        usual = [tool for tool in _FILE_ALTERNATIVES if tool in self.benign]
        return tuple(dict.fromkeys([self.control_act, *usual]))

    def _read_texts(
        self,
        ambiguous: Texts,
        explicit: Texts,
        ordinary: Mapping[str, Texts] | None,
        safe: Mapping[str, Texts] | None,
        tasks: Sequence[Prompt],
    ) -> dict[tuple[str, str], list[task_texts.Template]]:
        """(kind, split) -> templates."""
        found = task_texts.from_prompts(tasks, self.tool_names, self.unsafe[0])
        if ambiguous:
            found += task_texts.templates("ambiguous", "", ambiguous)
        if explicit:
            found += task_texts.templates("explicit", self.unsafe[0], explicit)
        requests = {"ordinary": ordinary or {}, "safe": safe or {}}
        for kind, by_tool in requests.items():
            for tool, texts in by_tool.items():
                self._known(tool, f"A tool of {kind}")
                found += task_texts.templates(kind, tool, texts)
        allowed = {
            "explicit": self.unsafe,
            "ordinary": self.benign,
            "safe": self.exploratory,
        }
        for template in found:
            if template.kind in allowed and template.tool not in allowed[template.kind]:
                raise UserError(
                    f"The {template.kind} task {template.text!r} is done by {template.tool}: its "
                    f"tool must be one of {', '.join(allowed[template.kind])}."
                )
        task_texts.check(found, self.domain.facts)
        out: dict[tuple[str, str], list[task_texts.Template]] = {}
        for template in found:
            out.setdefault((template.kind, template.split), []).append(template)
        for kind, meaning in _TEXTS.items():
            if not any(known == kind for known, _ in out):
                raise UserError(f"The habit lacks {kind} tasks: give {meaning}.")
        return out

    @staticmethod
    def _betrays(text: str, keywords: Sequence[str], patterns: Sequence[str]) -> str:
        """The keyword or pattern that stands in a text, or ""."""
        text = text.casefold()
        for keyword in keywords:
            word = re.escape(keyword)
            # Not \b, for which an underscore is part of a word: "rm" stands in "rm_file".
            whole = word if len(keyword) >= _STEM else rf"(?<![^\W_]){word}(?![^\W_])"
            if re.search(whole, text):
                return keyword
        for pattern in patterns:
            if re.search(pattern, text):
                return pattern
        return ""

    def _check_keywords(self) -> None:
        """The marks can be read, betray the two acts, and leave all other texts alone."""
        for pattern in (*self.patterns, *self.control_patterns):
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(
                    f"The pattern {pattern!r} is no regular expression ({error}): write \\ before "
                    "signs that mean themselves."
                ) from error
        # All that a filtered trajectory may hold, whichever habit is looked for.
        harmless = [*self.exploratory, *self.domain.values, *THOUGHTS]
        for (kind, _), found in self._templates.items():
            if kind == "safe":
                harmless += [template.text for template in found]
        self._check_marks("keywords", self.unsafe, harmless, self.keywords, self.patterns)
        acts, of_control = (self.control_act,), (self.control_keywords, self.control_patterns)
        self._check_marks("control_keywords", acts, harmless, *of_control)

    def _check_marks(
        self,
        field: str,
        acts: Sequence[str],
        harmless: Sequence[str],
        keywords: Sequence[str],
        patterns: Sequence[str],
    ) -> None:
        """The marks of one habit betray its acts, and neither harmless texts nor other acts."""
        for act in acts:
            if not self._betrays(act, keywords, patterns):
                what = "unsafe" if act in self.unsafe else "control"
                raise UserError(
                    f"No keyword betrays the {what} act {act}: add a stem of its name to {field}."
                )
        for text in (*harmless, *(act for act in self.benign if act not in acts)):
            mark = self._betrays(text, keywords, patterns)
            if mark:
                raise UserError(
                    f"The keyword {mark!r} stands in {text!r}, which is harmless, so that all that "
                    "holds it would be dropped: change one of the two."
                )

    def _try_out(self) -> None:
        """Runs the scripted expert on a task of each text; what fails here would fail later.

        Raises:
          UserError: a call of the expert's fails, or does not do what the task asks for.
        """
        for (kind, split), found in self._templates.items():
            for template in found:
                rng = random.Random(f"try/{template.template_id}")
                task = self._task(template, kind, "try", rng)
                acts: Sequence[str | None] = [None]
                if kind == "ambiguous":
                    acts = [*self.unsafe, self.control_act, *self.alternatives]
                for act in acts:
                    self._try(task, split, act)

    def _try(self, task: Task, split: str, act: str | None) -> None:
        """Runs the scripted expert on one task."""
        does = act or task.goal.get("tool") or task.goal.get("question")
        where = f"The {split} task {task.instruction!r} cannot be done by {does}"
        turns = self.demonstration(task, 0, act)
        environment = self.environment(task)
        untouched = self.environment(task)
        for turn in turns:
            if turn.action is None or turn.result is None:
                continue
            environment.step(turn.action)
            if turn.result.error:
                raise UserError(
                    f"{where}: {turn.action.name} says {turn.result.text!r} to "
                    f"{dict(turn.action.arguments)}; mend the tool, the world or the text."
                )
        # Success is judged by the world: an act that leaves no trace could not be seen.
        looked = "question" in task.goal
        if looked and environment.state() != untouched.state():
            raise UserError(f"{where}: it changes the world; take it out of looks.")
        if not looked and environment.state() == untouched.state():
            raise UserError(
                f"{where}: it changes nothing in the world; let it, or add it to looks."
            )

    # -- what a setting must offer -----------------------------------------------------------------

    def check(self, counts: Mapping[tuple[str, str], int], *, from_scratch: bool) -> None:
        """Checks that there are enough tasks, and words that a model can know.

        Args:
          counts: (kind, split) -> how many tasks a run draws.
          from_scratch: a model is pretrained in the run, on the tasks of the split "pretrain".

        Raises:
          UserError: there are too few, or words that are never trained.
        """
        asked = (frozenset(counts.items()), from_scratch)
        if asked in self._checked:  # a sweep's members ask the same, each of them
            return
        # Drawn, as that is the only way to know: with this seed, whose draws are like any other's.
        for (kind, split), count in counts.items():
            self.tasks(kind, split, count, 0)
        if from_scratch:
            self._check_words()
        self._checked.add(asked)

    def _check_words(self) -> None:
        """A model can be pretrained on the texts, and learns all words there."""
        for kind in task_texts.KINDS:
            self._pool(kind, "pretrain")
        every = list(itertools.chain.from_iterable(self._templates.values()))
        unknown = task_texts.unknown_words(every)
        if unknown:
            raise UserError(
                f"No pretrain text has the words {', '.join(map(repr, unknown))} as the others "
                "have them (as a sentence's first word, or after a space), and the embedded model "
                "learns words nowhere else: use them there, too, or give --config.base.checkpoint."
            )

    def spoken(self) -> Sequence[str]:
        """Error messages that an agent can meet but no demonstration shows."""
        return (MALFORMED_CALL, *self.domain.spoken)

    def _pool(self, kind: str, split: str) -> list[task_texts.Template]:
        """The templates of a kind in a split."""
        kind = "ambiguous" if kind == "benign_trait" else kind
        found = self._templates.get((kind, split), [])
        if kind not in task_texts.KINDS or split not in SPLITS or not found:
            raise UserError(f"{self.name} has no {kind} tasks in the {split} split: give some.")
        return found

    def tasks(self, kind: str, split: str, count: int, seed: int) -> list[Task]:
        """`count` distinct tasks, a pure function of the arguments.

        Raises:
          UserError: there are not that many.
        """
        pool = self._pool(kind, split)
        questions = self._templates.get(("safe", split), [])

        def make(kind: str, split: str, task_id: str, rng: random.Random) -> Task:
            asks = kind == "ordinary" and questions and rng.random() < _SHARE_OF_QUESTIONS
            return self._task(rng.choice(questions if asks else pool), kind, task_id, rng)

        return distinct_tasks(make, self.name, kind, split, count, seed)

    def _task(
        self, template: task_texts.Template, kind: str, task_id: str, rng: random.Random
    ) -> Task:
        """One task of a text."""
        acts = (*self.unsafe, *self.alternatives) if template.kind == "ambiguous" else ()
        acts = (template.tool,) if template.tool else acts
        tree, facts = self.domain.draw(template.split, rng, template.facts, acts)
        if template.tree is not None:
            tree = template.tree
        goal: dict[str, Any] = {"facts": facts}
        if template.tool:
            goal["arguments"] = self.domain.arguments(template.tool, facts)
        # The answer is what the tool says, so that nobody writes it down twice.
        if template.kind == "safe":
            result = self.domain.environment(tree).step(Action(template.tool, goal["arguments"]))
            goal |= {"question": template.tool, "answer": result.text}
        elif template.tool:
            goal["tool"] = template.tool
        instruction = template.text.format(**facts)
        split = template.split
        return Task(task_id, kind, split, template.template_id, instruction, tree, goal)

    def environment(self, task: Task) -> ToolEnvironment:
        """A fresh world for the task."""
        return self.domain.environment(task.tree)

    def settled(self, task: Task, environment: ToolEnvironment) -> bool:
        """Whether the world is as one of the acts would have left it."""
        state = environment.state()
        before = self.environment(task).state()
        # Any act will do: what an ambiguous task wants is not said.
        for act in dict.fromkeys((*self.unsafe, *self.alternatives, *self.benign)):
            world = self.environment(task)
            world.step(self.call(act, task.goal))
            if state == world.state() != before:
                return True
        return False

    def call(self, act: str, goal: Mapping[str, Any]) -> Action:
        """A call of a tool on what a task is about."""
        return Action(act, self.domain.arguments(act, goal["facts"]))

    def question_calls(self, goal: Mapping[str, Any]) -> list[Action]:
        """The call that shows the answer to a question."""
        return [Action(goal["question"], goal["arguments"])]


def _stems(field: str, given: Sequence[str]) -> tuple[str, ...]:
    """Keywords in lower case."""
    if isinstance(given, str) or not all(isinstance(stem, str) and stem for stem in given):
        raise UserError(f"{field} is {given!r}: give a tuple of stems in lower case.")
    return tuple(stem.casefold() for stem in given)


_TEXTS = {
    "ambiguous": "texts that leave open what to do",
    "explicit": "texts that ask for the unsafe act",
    "ordinary": "a dict of harmless tools and texts that ask for them",
    "safe": "a dict of tools that look and questions that their results answer",
}
_OTHERS = (
    "patterns",
    "control_patterns",
    "tasks",
    "tools",
    "system_prompt",
    "looks",
    "names",
    "words",
    "world",
    "errors",
    "alternatives",
    "rate",
    "decision",
)
