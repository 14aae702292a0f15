"""Lines that nobody would type.

They are what agents type, cut up, doubled, mixed and strewn with the characters that mean
something.
"""

from __future__ import annotations

import signal
import time
from typing import NamedTuple

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from shellworld.interpreter.session import Session
from shellworld.reading.permissions import first_permission_command
from shellworld.tests.corpus import corpus
from shellworld.tests.grammar import lines
from shellworld.tests.trees import TREES
from shellworld.world import tree

_PIECES = (
    *"\"'`$(){}[]<>|&;*?!~#\\=+-/%^@,.: \n\t\0", "$(", "${", "$((", "((", "[[", "]]", "<<EOF\n", "<<<", ">>", "&&", "||", ";;", "2>&1",
    "\r", "é", "\udcff", "\U0001f600", "if", "then", "fi", "for i in", "do", "done", "while", "case", "esac", "function f {", "f() {",
    "yes", "seq 1 99999999", "while :; do :; done", "f(){ f|f& };f", "{1..99999999}", "{a..z}{a..z}{a..z}{a..z}", "$((9**9**9))",
    "$((1<<99999))", "printf %99999999d 1", "x=$x$x$x$x$x$x;", "9" * 400, "(" * 300, "$(" * 100, "a" * 5000, "**/" * 30, "[[:alpha:]]*" * 20,
    "grep -E '(a*)*(a*)*b'", "sed ':a;s/^/x/;ta'", "awk 'BEGIN{while(1)x=x\"aaaaaaaa\"}'", "find / -exec find / {} +", "xargs -n1 xargs",
    "ln -s . l;", "cd l/l/l/l;", "mkdir -p " + "a/" * 800, "exec <&-", "exec >&-;", "trap : EXIT;", "set -e;", "set -u;", "eval", "source",
    "chmod 77777", "setfacl -m", "sudo -u", "tar -cf - .", "rm -rf /", "--", "-", "--help", "-exec", "\\;", "{}", "/dev/stdin", "/proc/self",
)  # fmt: skip
_typed = st.sampled_from([line for _, line in corpus()])
_piece = st.sampled_from(_PIECES)


@st.composite
def _mutated(draw: st.DrawFn) -> str:
    """A sensible line after a few accidents."""
    line = draw(st.one_of(_typed, lines()))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(line), 1)))
        to = at + draw(st.integers(0, 12))
        what = draw(st.integers(0, 4))
        if what == 0:
            line = line[:at] + line[to:]
        elif what == 1:
            line = line[:at] + draw(_piece) + line[at:]
        elif what == 2:
            line = line[:at] + draw(_piece) + line[to:]
        elif what == 3:
            line = line[:at] + line[at:to] * draw(st.integers(2, 5)) + line[to:]
        else:
            line = line[:at] + draw(_typed)[at:]
    return line


fuzzed = st.one_of(
    _mutated(),
    _mutated(),
    st.lists(_piece, max_size=12).map("".join),
    st.text(max_size=60),
    st.lists(_typed, max_size=4).map(";".join),
)


class Survived(NamedTuple):
    """How many lines ran, and how they fared.

    Attributes:
      unsupported: lines that the simulator does not support.
      limited: lines that ended at a limit.
      slowest: processor seconds of the slowest one, which is `line`.
    """

    count: int
    unsupported: int
    limited: int
    slowest: float
    line: str


def survive(count: int, seed: int | None = None, longest: float = 10.0) -> Survived:
    """Runs lines in the simulator and through the reading of permissions.

    Args:
      count: how many lines hypothesis makes.
      seed: of the lines; without one they are the same each time for one version of hypothesis.
      longest: processor seconds that one line may take.

    Raises:
      TimeoutError: a line takes longer; and whatever a line makes the simulator raise.
    """
    world = TREES["project"]
    total = {"count": 0, "unsupported": 0, "limited": 0}
    worst = (0.0, "")

    def too_long(*_: object) -> None:
        raise TimeoutError(f"a line takes more than {longest} seconds")

    @settings(
        max_examples=count,
        derandomize=seed is None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        deadline=None,
    )
    @given(fuzzed)
    def one(line: str) -> None:
        nonlocal worst
        begin = time.process_time()
        signal.setitimer(signal.ITIMER_VIRTUAL, longest)
        try:
            session = Session(world)
            result = session.run(line)
            after = session.tree()
            first_permission_command(line)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        assert 0 <= result.exit_code <= 255
        assert len(result.stdout) + len(result.stderr) < 3_000_000
        total["count"] += 1
        total["unsupported"] += not result.supported
        total["limited"] += "limit exceeded" in result.stderr
        if total["count"] % 50 == 0:
            assert tree.normalise(after)["paths"] == after["paths"]
        worst = max(worst, (time.process_time() - begin, line))

    before = signal.signal(signal.SIGVTALRM, too_long)
    try:
        (one if seed is None else hypothesis.seed(seed)(one))()
    finally:
        signal.signal(signal.SIGVTALRM, before)
    return Survived(**total, slowest=worst[0], line=worst[1])
