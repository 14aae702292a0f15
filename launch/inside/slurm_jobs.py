"""Jobs of a file of launch/slurm.py, through submitit. Runs in submitit's environment, not in ours.

python launch/inside/slurm_jobs.py validate|submit FILE
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import submitit
from submitit.core.utils import UncompletedJobError
from submitit.helpers import Checkpointable, DelayedSubmission

MANY = 1000  # times that a job may run out of its wall time


class RestartedCommand(Checkpointable):
    """A command that is run again until it ends with another status than `restart`.

    submitit's handler of SIGUSR2 calls `checkpoint`, puts the job back into the queue and ends the
    process.
    """

    def __init__(self, command: list[str], restart: int):
        self.command, self.restart = command, restart
        self.process: subprocess.Popen | None = None

    def __call__(self) -> int:
        """Runs the command once; returns its exit status, which is 0."""
        self.process = subprocess.Popen(self.command)
        status = self.process.wait()
        if status == self.restart:
            # The program had SIGTERM, or lost a peer, and has saved: as if Slurm had sent its
            # notice to this process. Only the first of a job's processes puts it back.
            signal.raise_signal(signal.Signals[f"SIG{submitit.JobEnvironment().USR_SIG}"])
            raise SystemExit(status)
        if status:
            raise RuntimeError(f"{' '.join(self.command)} ends with status {status}")
        return status

    def checkpoint(self) -> DelayedSubmission:
        """Ends the command, which saves, and returns what submitit puts back into the queue."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait()
        return DelayedSubmission(RestartedCommand(self.command, self.restart))


def validate(content: dict, folder: Path) -> None:
    """Makes the sbatch file, which refuses unknown parameters, beside the jobs' file."""
    # On a machine without Slurm its executor can make files, if it is not asked for srun.
    submitit.SlurmExecutor.affinity = classmethod(lambda cls: 1)
    executor = submitit.AutoExecutor(folder / "logs", cluster="slurm")
    executor.update_parameters(**content["parameters"])
    slurm = executor._executor
    slurm.parameters["map_count"] = len(content["jobs"])
    (folder / "array.sbatch").write_text(
        slurm._make_submission_file_text(slurm._submitit_command_str, "validate")
    )
    print(f"array of {len(content['jobs'])} jobs: sbatch file by submitit {submitit.__version__}")


def submit(content: dict, folder: Path) -> int:
    """Submits all jobs as one array; returns the exit status.

    On this machine it also waits for them.
    """
    cluster = content["cluster"]
    executor = submitit.AutoExecutor(
        folder / "logs", cluster=cluster, **{f"{cluster}_max_num_timeout": MANY}
    )
    executor.update_parameters(**content["parameters"])
    with executor.batch():
        made = []
        for job in content["jobs"]:
            made.append(executor.submit(RestartedCommand(job["command"], content["restart"])))
    for submitted, job in zip(made, content["jobs"], strict=True):
        print(f"{job['name']}: job {submitted.job_id}", flush=True)
    return _wait(made, content["jobs"]) if cluster == "local" else 0


def _wait(made: list, jobs: list[dict]) -> int:
    failed = 0
    for submitted, job in zip(made, jobs, strict=True):
        try:
            submitted.result()
        except UncompletedJobError as error:
            failed += 1
            last_line = str(error).strip().splitlines()[-1]
            print(f"{job['name']} failed, see {submitted.paths.stderr}: {last_line}")
        else:
            print(f"{job['name']}: finished")
    return int(failed > 0)


def read(file: Path) -> dict:
    """Reads what launch/slurm.py rendered; ends the process with a sentence if it is not that."""
    # No helper of ours is at hand in submitit's environment.
    try:
        content = json.loads(file.read_bytes())
        if not {"cluster", "parameters", "restart", "jobs"} <= set(dict(content)):
            raise ValueError("it lacks what launch/slurm.py writes")
        for job in content["jobs"]:
            if not {"name", "command"} <= set(dict(job)):
                raise ValueError("one of its jobs has no name or no command")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        print(f"error: {file} cannot be used ({error}): render it again.", file=sys.stderr)
        raise SystemExit(2) from error
    return content


if __name__ == "__main__":
    verb, file = sys.argv[1:]
    data = read(Path(file))
    if verb == "validate":
        validate(data, Path(file).parent)
    else:
        sys.exit(submit(data, Path(file).parent))
