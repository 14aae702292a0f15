"""What a line of shell leaves behind, what bounds it, and how it can stop.

Everything counts, nothing measures time.
"""

from __future__ import annotations

import dataclasses

from shellworld.interpreter.record import Record


@dataclasses.dataclass(frozen=True)
class Result:
    """What one line did.

    Attributes:
      stdout, stderr: text; bytes that are not UTF-8 appear as surrogates (PEP 383).
      exit_code: 0..255.
      unsupported: what the line needed and the simulator does not have, e.g. ("grep -P",); empty in
        a real shell.
      record: what ran, and what it did to modes, owners and access lists.
    """

    stdout: str
    stderr: str
    exit_code: int
    unsupported: tuple[str, ...] = ()
    record: Record = Record()

    @property
    def supported(self) -> bool:
        """Whether the simulator had everything that the line needed."""
        return not self.unsupported


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of one line; all are counts, so a line ends the same way on any machine.

    Attributes:
      steps: commands run and lines or entries worked on.
      output: characters written to pipes, stdout and stderr together.
      file: bytes of one file.
      files: inodes of the whole file system.
      depth: nesting of lists, functions, substitutions and subshells.
      words: words that one expansion may give, and characters (x 256) that one word or value may
        have.
      line: characters of the line itself.
    """

    steps: int = 100_000
    output: int = 1_000_000
    file: int = 1_000_000
    files: int = 20_000
    depth: int = 70
    words: int = 20_000
    line: int = 50_000


class Unsupported(Exception):
    """Something real that is not simulated; the message names it in a few words, e.g. "grep -P"."""


class LimitExceeded(Exception):
    """A line went over one of its limits.

    `status` is its exit code: 124 as `timeout` gives, 137 as a killed process.
    """

    def __init__(self, what: str, status: int = 124):
        super().__init__(f"{what} limit exceeded")
        self.status = status


class Meter:
    """Counts one line's work and raises LimitExceeded beyond its limits."""

    __slots__ = ("limits", "steps", "output")

    def __init__(self, limits: Limits):
        self.limits = limits
        self.reset()

    def reset(self) -> None:
        """Starts a new line."""
        self.steps = self.limits.steps
        self.output = self.limits.output

    def tick(self, n: int = 1) -> None:
        """Counts steps of work."""
        self.steps -= n
        if self.steps < 0:
            raise LimitExceeded("step")

    def write(self, n: int) -> None:
        """Counts characters of output."""
        self.output -= n
        if self.output < 0:
            raise LimitExceeded("output", 137)

    def word(self, n: int) -> None:
        """Refuses a value of n characters before it is made."""
        if n > self.limits.words * 256:
            raise LimitExceeded("memory", 137)
