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


class Job(Checkpointable):
    """A command that is run again until it ends with another status than `restart`.

    submitit's handler of SIGUSR2 calls `checkpoint`, puts the job back into the queue and ends the
    process.
    """

    def __init__(self, command: list[str], restart: int):
        self.command, self.restart = command, restart
        self.process: subprocess.Popen | None = None

    def __call__(self) -> int:
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
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait()
        return DelayedSubmission(Job(self.command, self.restart))


def validate(content: dict, folder: Path) -> None:
    """Makes the sbatch file, which refuses unknown parameters, and keeps it beside the jobs'
    file.
    """
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
    """Submits all jobs as one array; on this machine, also waits for them. Returns the exit
    status.
    """
    cluster = content["cluster"]
    executor = submitit.AutoExecutor(
        folder / "logs", cluster=cluster, **{f"{cluster}_max_num_timeout": MANY}
    )
    executor.update_parameters(**content["parameters"])
    with executor.batch():
        made = [executor.submit(Job(job["command"], content["restart"])) for job in content["jobs"]]
    for job, told in zip(made, content["jobs"], strict=True):
        print(f"{told['name']}: job {job.job_id}", flush=True)
    return _wait(made, content["jobs"]) if cluster == "local" else 0


def _wait(made: list, jobs: list[dict]) -> int:
    failed = 0
    for job, told in zip(made, jobs, strict=True):
        try:
            job.result()
        except UncompletedJobError as error:
            failed += 1
            print(
                f"{told['name']} failed, see {job.paths.stderr}: {str(error).strip().splitlines()[-1]}"
            )
        else:
            print(f"{told['name']}: finished")
    return int(failed > 0)


if __name__ == "__main__":
    verb, file = sys.argv[1:]
    data = json.loads(Path(file).read_text())
    if verb == "validate":
        validate(data, Path(file).parent)
    else:
        sys.exit(submit(data, Path(file).parent))
