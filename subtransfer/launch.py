"""The one command: `python -m subtransfer.launch --config=configs/quickstart.py --workdir=DIR`.

Every field of the config can be overridden, as in `--config.distill.objective=reverse_kl`.
`--dry_run` prints the plan and stops; `--help` prints all flags and all fields of the config. A
mistake of the user's ends in one sentence on stderr and exit status 2; status 75 asks to be run
again.

Several processes run the same command, each with `--coordinator=HOST:PORT --num_processes=N
--process_id=I`, or with `--distributed=auto` where a cluster says these itself.
"""

from __future__ import annotations

from subtransfer.runtime import preemption

if __name__ == "__main__":
    # Before all other imports, which take a while.
    preemption.listen(at_once=True)

import math
import os
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeGuard

from absl import flags

from subtransfer.runtime import processes, terminal
from subtransfer.runtime.errors import UserError
from subtransfer.store import buckets
from subtransfer.store.claims import LEASE
from subtransfer.store.files import os_errors

_CONFIG = flags.DEFINE_string(
    "config", "configs/quickstart.py", "Config file with a get_config() function."
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run, also gs://BUCKET/FOLDER, s3:// and az://; default: runs/NAME, from the "
    "config's name.",
)
_LOCAL = flags.DEFINE_string(
    "local", "~/.cache/subtransfer/workdirs", "Below which runs work whose workdir is in a bucket."
)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print the plan (stages, sizes, estimated memory) and stop."
)
_PROFILE = flags.DEFINE_string(
    "profile", "", "STAGE:FIRST-LAST: profile these steps of a training, into WORKDIR/metrics."
)
_SWEEP = flags.DEFINE_bool(
    "sweep", False, "Run all members of the config file's sweep() (docs/sweeps.md)."
)
_WORKERS = flags.DEFINE_integer(
    "workers", 1, "Processes of this machine that share a sweep's stages.", lower_bound=1
)
_RETRIES = flags.DEFINE_integer(
    "retries",
    2,
    "How often a sweep's stage is tried again whose worker died or whose failure may go away.",
    lower_bound=0,
)
_LEASE = flags.DEFINE_float(
    "lease",
    LEASE,
    "Seconds of silence after which another process may take over what this one is making.",
    lower_bound=1.0,
)
_DISTRIBUTED = flags.DEFINE_enum(
    "distributed",
    "off",
    ["off", "auto"],
    "auto: one of several processes that Cloud TPU, Slurm or Open MPI has started.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0: one of several processes."
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "How many processes there are.", lower_bound=1
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Which of them this is, from 0.", lower_bound=0
)
_JOIN_TIMEOUT = flags.DEFINE_integer(
    "join_timeout",
    300,
    "Seconds that a process waits for the others when it starts.",
    lower_bound=1,
)
_PEER_TIMEOUT = flags.DEFINE_integer(
    "peer_timeout",
    60,
    "Seconds after which a process that is not heard of ends the others.",
    lower_bound=3,
)

_OVERRIDE = "--config."


def split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Separates `--config.FIELD=VALUE` (or `--config.FIELD VALUE`) from the other arguments."""
    rest: list[str] = []
    overrides: dict[str, str] = {}
    arguments = iter(argv)
    for argument in arguments:
        if not argument.startswith(_OVERRIDE):
            rest.append(argument)
            continue
        field, equals, value = argument[len(_OVERRIDE) :].partition("=")
        if not equals:
            value = next(arguments, "--")
            if value.startswith("--"):
                raise UserError(f"{argument} has no value: write {argument}=VALUE.")
        overrides[field] = value
    return rest, overrides


def help_text(overrides: Mapping[str, str]) -> str:
    """All flags and all config fields, for `--help`.

    Args:
      overrides: of which `plugins` counts: what these files bring is printed as well.
    """
    from subtransfer.config import fields, help, plugins

    paths = plugins.load(fields.declared()["plugins"].read("plugins", overrides.get("plugins", "")))
    lines = [(__doc__ or "").strip(), "", "flags", "-----"]
    for flag in flags.FLAGS.get_flags_for_module(sys.modules[__name__]):
        default = "" if flag.default is None else f"={flag.default}"
        lines.append(f"  --{flag.name}" + ("" if flag.boolean else default))
        lines += textwrap.wrap(flag.help, 96, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines) + "\n" + help.help_text(paths)


def run(config_file: str, overrides: dict[str, str], workdir: str | None, *, dry_run: bool) -> int:
    """Validates, plans and runs an experiment, or a sweep of them; returns the exit status."""
    from rich.console import Console

    from subtransfer.config import reading as configuration

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 144  # a log file has room
    if workdir == "":
        raise UserError(
            "--workdir= names no folder: give one, or leave the flag out to work in runs/NAME."
        )
    if not math.isfinite(_LEASE.value):
        raise UserError(f"--lease={_LEASE.value} cannot be: it must be at least 1 and finite.")
    if flags.FLAGS["local"].present and not _in_a_bucket(workdir):
        raise UserError(
            "--local goes with a --workdir in a bucket, such as gs://BUCKET/FOLDER: a run works in "
            "any other itself."
        )
    for flag in ("workers", "retries"):
        if flags.FLAGS[flag].present and not _SWEEP.value:
            raise UserError(f"--{flag} goes with --sweep: a single run works in one process.")
    if dry_run and _several():
        raise UserError(
            "--dry_run plans in one process: leave out --coordinator and --distributed."
        )
    if _SWEEP.value:
        return _run_sweep(config_file, overrides, workdir, console, dry_run=dry_run)
    config = configuration.load(config_file, overrides)
    if _in_a_bucket(workdir):
        folder = _local(workdir)
    else:
        folder = Path(workdir or f"runs/{config.name}").expanduser()

    if not dry_run:
        if _several():
            preemption.listen()  # the others are told
        _join()
    import jax

    from subtransfer import settings
    from subtransfer.analysis import verdicts
    from subtransfer.experiment.graph import Experiment
    from subtransfer.report import crossing, files, tables
    from subtransfer.runtime import sharding
    from subtransfer.store import artifacts

    if not dry_run:
        # A restarted run finds what an earlier attempt compiled.
        jax.config.update("jax_compilation_cache_dir", str(folder / ".compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    mesh = (sharding.plan_mesh if dry_run else sharding.make_mesh)(**config.mesh)
    if not dry_run:
        with os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
    if _in_a_bucket(workdir):
        buckets.attach(workdir, folder)
    experiment = Experiment(config, folder, mesh, _PROFILE.value, weights=not dry_run)
    if dry_run:
        print_plan(experiment, mesh.size, console)
        return 0
    begin = time.monotonic()
    preemption.listen()
    with (
        os_errors(folder),
        artifacts.Store(folder, _LEASE.value, config.checkpoint.stall_seconds) as store,
    ):
        results = experiment.run(store, log=_say)
        computed = sum(what != "reused" for what, _ in store.events)
    if not processes.leads():
        return 0
    rows = files.read_csv(results / "results.csv")
    words = settings.get(config.setting).wording
    bundle = files.read_bundle(results)
    title = f"{words['decision']} is {words['trait']}"
    if bundle["effects"]:
        console.print(f"{title}, of {len(rows)} arms (one by one in results.csv)")
        for heading, table in crossing.all_tables(bundle, rows):
            tables.print_cells(table, console, heading)
    else:
        tables.print_table(rows, console, title)
    console.print(verdicts.headline(bundle, rows), soft_wrap=True)
    for sentence in verdicts.sentences(bundle, rows):
        console.print(f"- {sentence}", soft_wrap=True)
    console.print(
        f"{computed} stages computed, {len(experiment.plan) - computed} reused, "
        f"{time.monotonic() - begin:.0f} s. Results: {folder / 'results.csv'}, "
        f"{folder / 'results.jsonl'}; report: {folder / 'report.html'}"
        + (f"; copied to {workdir}" if _in_a_bucket(workdir) else ""),
        soft_wrap=True,
    )
    return 0


def _say(line: str) -> None:
    """Prints a line, in one of the processes only."""
    if processes.leads():
        print(line, flush=True)


def _in_a_bucket(workdir: str | None) -> TypeGuard[str]:
    return "://" in (workdir or "")


def _local(workdir: str) -> Path:
    """Where a run works whose workdir is in an object store.

    Raises:
      UserError: the address cannot be read, or several processes would work apart.
    """
    place = Path(*buckets.parse(workdir))
    if _several():
        raise UserError(
            f"Several processes need one folder, and {workdir} is a copy of one machine's: mount "
            "the bucket, whose namespace must be hierarchical (gcsfuse renames folders in no "
            "other), and give the mount's path."
        )
    return Path(_LOCAL.value).expanduser() / place


def _several() -> bool:
    return (
        _DISTRIBUTED.value == "auto"
        or _COORDINATOR.value is not None
        or _NUM_PROCESSES.value is not None
    )


def _run_sweep(
    config_file: str, overrides: dict[str, str], workdir: str | None, console, *, dry_run: bool
) -> int:
    if _in_a_bucket(workdir):
        raise UserError(
            f"Runs of a sweep share a folder with claims and locks, which {workdir} has not: mount "
            "the bucket and give the mount's path, or run the members one by one without --sweep."
        )
    if _several():
        raise UserError(
            "--sweep runs each member in one process: start the same command on several machines "
            "instead, with one --workdir, or run members one by one with --coordinator or "
            "--distributed."
        )
    if _PROFILE.value:
        raise UserError(
            "--profile goes with a single run: leave out --sweep and give the member's fields."
        )
    from subtransfer.sweeps import command

    preemption.listen()
    return command.run(
        config_file,
        overrides,
        Path(workdir).expanduser() if workdir else None,
        console,
        workers=_WORKERS.value,
        retries=_RETRIES.value,
        lease=_LEASE.value,
        dry_run=dry_run,
    )


def _join() -> None:
    """Becomes one of several processes if the flags say so."""
    coordinator, count, number = _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
    auto = _DISTRIBUTED.value == "auto"
    timeouts = {"peer_timeout": _PEER_TIMEOUT.value, "join_timeout": _JOIN_TIMEOUT.value}
    if coordinator is None and count is None and number is None:
        if auto:
            processes.join(None, None, None, **timeouts)
        return
    if auto or coordinator is None or count is None or number is None:
        raise UserError(
            "--coordinator, --num_processes and --process_id go together, and without "
            "--distributed=auto."
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(
            f"--coordinator={coordinator} is no address: write HOST:PORT of process 0, such as "
            "node0:8476."
        )
    if number >= count:
        raise UserError(
            f"--process_id={number} cannot be: they are numbered from 0 to --num_processes - 1."
        )
    processes.join(coordinator, count, number, **timeouts)


def print_plan(experiment, devices: int, console) -> None:
    """The stages of a run, what each has to do, and what it needs.

    Args:
      experiment: the plan.
      devices: of its mesh.
      console: where it is printed.
    """
    from rich.table import Table

    from subtransfer import settings

    def finished(stage) -> bool:
        path = experiment.workdir / stage.folder
        return (path / "artifact.json").is_file() or buckets.holds(path)

    title = f"plan of {experiment.workdir} on a mesh of {experiment.mesh_text}"
    table = Table("stage", "state", "work", "MiB a device (est.)", title=title, box=None)
    for stage in experiment.plan.values():
        done = finished(stage)
        memory = stage.memory() / 2**20
        table.add_row(
            stage.name,
            "finished" if done else "to do",
            stage.work,
            f"{memory:,.0f}" if memory else "",
        )
    console.print(table)
    setting = settings.get(experiment.config.setting)
    console.print(
        f"Setting {setting.name}: the unsafe act is {setting.wording['trait']} "
        f"({', '.join(setting.unsafe)}), its harmless twin {setting.control_act}.",
        soft_wrap=True,
    )
    left = [stage for stage in experiment.plan.values() if not finished(stage)]
    console.print(f"{len(experiment.plan)} stages, {len(left)} to do.")
    console.print(_cost(experiment, left, devices), soft_wrap=True)


def _cost(experiment, left, devices: int) -> str:
    """What the stages that are left take, on so many devices, in a sentence."""
    import jax

    from subtransfer.experiment import timing
    from subtransfer.sweeps import show

    most = max((stage.memory() for stage in left), default=0) / 2**20
    memory = f"at most {most:,.0f} MiB a device"
    # A plan may be one for another machine.
    if jax.default_backend() != "cpu" or devices != jax.device_count():
        return f"To do: {memory}; times are reckoned for this machine's CPU only."
    takes = timing.seconds(experiment, timing.product_rate())
    total = sum(takes.get(stage.name, 0.0) for stage in left)
    return (
        f"To do: about {show.in_words(total)} on this machine (trainings and episodes, from the "
        f"rate of products just measured); {memory}."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Returns:
      The exit status: 0, 1 if members of a sweep failed, 2 for a user's mistake, 75 after a notice
      such as SIGTERM (run again, it goes on), 130 after Ctrl-C, which saves likewise.
    """
    preemption.listen(at_once=True)
    try:
        rest, overrides = split_overrides(sys.argv if argv is None else argv)
        if {"--help", "-h"} & set(rest):
            print(help_text(overrides), end="")
            return 0
        try:
            positional = flags.FLAGS(rest)
        except flags.Error as error:
            raise UserError(f"{error}: see python -m subtransfer.launch --help.") from error
        if len(positional) > 1:
            raise UserError(
                f"Unexpected argument {positional[1]!r}: settings are given as "
                "--config.FIELD=VALUE."
            )
        # Without accelerators JAX would print a warning that says nothing to the user of a laptop.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
        try:
            status = run(_CONFIG.value, overrides, _WORKDIR.value, dry_run=_DRY_RUN.value)
        except (UserError, preemption.Preempted):
            raise
        except BaseException:
            # What is raised by a notice may arrive as another error: an import turns it into one.
            preemption.check()
            processes.await_verdict()  # the error may be how a peer's death shows here
            raise
    except UserError as error:
        code, sentence = 2, f"error: {error}"
    except preemption.Preempted as notice:
        code, sentence = preemption.status(), str(notice) or preemption.sentence()
    else:
        return processes.leave(status, "")
    print(sentence, file=sys.stderr)
    return processes.leave(code, sentence)


if __name__ == "__main__":
    terminal.survive_lost_readers()
    processes.end(main())
