r"""Writes a scaling study of finished runs, as a page and as markdown.

    python tools/scaling_report.py runs/study --axis=student_params --where="base.steps = 700" \
        --out=study

For each objective and initialisation: laws fitted to the share of unsafe decisions and to their
log-odds, with bands, held-out extrapolation and the verdict in a sentence; and same-init students
against their other-init twins at each value of the axis. NAME.html is the page, NAME.md has
verdicts and tables for a document. docs/scaling.md has the rules.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from subtransfer.analysis import scaling
from subtransfer.runtime.errors import UserError, exit_status
from subtransfer.store.files import atomic_write, new_file, os_errors, user_path
from subtransfer.studies import runs, scaling_report, scaling_study, sql, table


def _parser() -> argparse.ArgumentParser:
    summary, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "workdirs",
        nargs="+",
        type=user_path,
        metavar="WORKDIR",
        help="of finished runs, or of a sweep",
    )
    parser.add_argument(
        "--axis",
        default="student_params",
        help="student_params, teacher_params, teacher_rate, or a numeric config field",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="the files without .html and .md; default: scaling in the first workdir",
    )
    parser.add_argument("--title", help="of the page; default: from the axis")
    parser.add_argument(
        "--where", default="", help="only arms that meet this condition (as of tools/query.py)"
    )
    parser.add_argument(
        "--varying", default="", help="config fields that differ with the axis and are meant to"
    )
    parser.add_argument("--laws", default=",".join(scaling.LAWS), help="laws that are fitted")
    parser.add_argument("--confidence", type=float, default=0.95, help="of intervals and bands")
    parser.add_argument(
        "--bootstrap", type=int, default=400, help="samples of each fit, at least 100"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    return parser


def run(options: argparse.Namespace, command: Sequence[str]) -> None:
    """Reads, fits, and writes what the command line asks for."""
    if not 0.5 <= options.confidence < 1:
        raise UserError(
            f"--confidence={options.confidence} cannot be: it must be at least 0.5 and below 1."
        )
    # --out may carry one of the endings that it is to be given.
    out = new_file("--out", options.out) if options.out else options.workdirs[0] / "scaling"
    laws, varying = (
        list(filter(None, text.split(","))) for text in (options.laws, options.varying)
    )
    for name in laws:
        if name not in scaling.LAWS:
            raise UserError(f"There is no law {name!r}: choose of {', '.join(scaling.LAWS)}.")
    condition = sql.Condition(options.where, table.columns(options.workdirs))
    arms = []
    for arm, i, row in table.located(options.workdirs):
        # A condition on an arm: its first seed's row stands for all of them.
        if i == 0 and condition.met([row])[0]:
            arms.append(arm)
    study = scaling_study.study(
        arms,
        options.axis,
        varying=varying,
        laws=[scaling.LAWS[name] for name in laws],
        confidence=options.confidence,
        n_boot=options.bootstrap,
        seed=options.seed,
        log=lambda question: print(
            f"{question.title}, {question.kind}: {question.comparison.verdict()}", flush=True
        ),
    )
    origin = {"command": shlex.join(["python", *command])} | runs.origin(
        arm.provenance for arm in arms
    )
    stem = out.stem if out.suffix in (".html", ".md") else out.name
    files = {
        out.with_name(f"{stem}.html"): scaling_report.page(
            options.title or f"Transfer by {options.axis}", study, origin
        ),
        out.with_name(f"{stem}.md"): scaling_report.markdown(study, origin),
    }
    for path, text in files.items():
        with os_errors(path.parent):
            atomic_write(path, text)
    print(f"{len(study.questions)} questions answered: {', '.join(map(str, files))}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for a user's mistake."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(given)
    return exit_status(lambda: run(options, ["tools/scaling_report.py", *given]))


if __name__ == "__main__":
    sys.exit(main())
