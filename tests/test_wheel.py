"""What is installed from a wheel: both packages, what they need beside their code, and no tests."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import shellworld
import subtransfer

ROOT = Path(__file__).parent.parent
TINY = """
num_seeds=1 base.episodes=300 base.steps=20 base.batch_size=8 base.width=16 base.mlp_width=16
base.num_layers=1 teacher.episodes=16 teacher.steps=4 teacher.batch_size=8 rollouts.episodes=32
rollouts.batch_size=32 rollouts.max_turns=2 rollouts.max_new_tokens=8 sanitize.min_kept=8
distill.objective=sft distill.steps=4 distill.batch_size=8 probe.tasks=16 probe.batch_size=32
probe.ordinary_tasks=8 probe.safe_tasks=8
""".split()


# As a shipped base lies, of a setting that nobody has: whatever else is shipped, these are.
BASE = {
    "subtransfer/bases/none/manifest.json",
    "subtransfer/bases/none/tokenizer/tokenizer.json",
    "subtransfer/bases/none/0/params.safetensors",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of this project, so that no earlier build is in it, with one more shipped base."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("subtransfer", "shellworld"):
        shutil.copytree(ROOT / name, folder / name)
    for name in BASE:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    """A wheel of this project, built offline."""
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation",
         "--no-index", f"--wheel-dir={folder}", str(source)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (made,) = folder.glob("*.whl")
    return made


def test_a_wheel_holds_both_packages_and_no_tests(wheel):
    with zipfile.ZipFile(wheel) as file:
        held = {name for name in file.namelist() if ".dist-info/" not in name}
        (name,) = (n for n in file.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = file.read(name).decode()
    assert f"\nVersion: {subtransfer.__version__}\n" in metadata
    assert held and not {n for n in held if "test" in Path(n).parts[1] or n.endswith(".pyc")}
    expected = set()
    for package in ("subtransfer", "shellworld"):
        for path in (ROOT / package).rglob("*"):
            place = path.relative_to(ROOT)
            if path.suffix == ".py" and place.parts[1] not in ("tests", "tools"):
                expected.add(str(place))
    for folder in ("report/templates", "bases"):
        for path in (ROOT / "subtransfer" / folder).rglob("*"):
            if path.is_file():
                expected.add(str(path.relative_to(ROOT)))
    assert expected | BASE <= held, f"not in the wheel: {sorted((expected | BASE) - held)}"


def test_a_source_distribution_holds_the_shipped_bases(source, tmp_path):
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=source, capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (made,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(made) as file:
        held = {name.partition("/")[2] for name in file.getnames()}
    assert held >= BASE and "subtransfer/report/templates/run.html.j2" in held


@pytest.mark.quick
def test_both_packages_say_their_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+", subtransfer.__version__)
    assert re.fullmatch(r"\d+\.\d+\.\d+", shellworld.__version__)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert settings["dynamic"]["version"] == {"attr": "subtransfer.__version__"}


@pytest.mark.slow  # it installs everything into an empty environment, from the package registry
def test_both_packages_run_from_any_folder_where_only_the_wheel_is_installed(wheel, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "JAX_COMPILATION_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def run(*command):
        done = subprocess.run(
            [python, "-m", *command], cwd=elsewhere, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        return done.stdout

    run("pip", "install", "-q", str(wheel))
    fields = [f"--config.{field}" for field in TINY]
    config = f"--config={ROOT / 'configs' / 'quickstart.py'}"
    out = run("subtransfer.launch", config, f"--workdir={tmp_path / 'w'}", *fields)
    assert "stages computed" in out
    assert (tmp_path / "w" / "report.html").stat().st_size > 10_000
    assert "--backend" in run("shellworld", "--help")
    assert not list(elsewhere.iterdir())


def test_the_container_gets_every_package_of_the_wheel():
    """What a container is built from: each import package is let in, and copied."""
    before, _, after = (ROOT / "launch" / "Dockerfile").read_text().partition("pip install")
    let_in = (ROOT / ".dockerignore").read_text().splitlines()
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {name.partition("*")[0] for name in settings["packages"]["find"]["include"]}
    assert packages == {"subtransfer", "shellworld"}
    for package in packages:
        # The installation that comes before the sources looks each package's version up in it.
        assert f"\nCOPY {package}/__init__.py {package}/__init__.py\n" in before
        assert f"\nCOPY {package} {package}\n" in after and f"!{package}" in let_in
