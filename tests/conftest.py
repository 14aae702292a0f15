"""Shared fixtures: one device, the setting, a small trained-by-nobody model with the embedded
tokenizer.
"""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Most of a test's time would be the compiler's: tests, and the processes that they start, compile
# without its optimisations, in a third of the time. Whoever sets the variable before decides:
# `XLA_FLAGS= pytest` compiles as a user's run does.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)

# One cache of compiled programs for a test session: its workers and the processes that tests
# start inherit the variable, so that none compiles what another has. Whoever sets it before
# keeps the programs from session to session.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = tempfile.mkdtemp(prefix="subtransfer-tests-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import hypothesis
import jax
import pytest

from subtransfer import settings
from subtransfer.models.chat import ChatFormat
from subtransfer.models.decoder import DecoderConfig
from subtransfer.models.tokenizer import train_tokenizer
from subtransfer.runtime import sharding
from subtransfer.training import pretrain

# The same examples at every run, on however slow a machine; ten times as many with
# `--hypothesis-profile=thorough`.
for name, examples in (("fixed", 30), ("thorough", 300)):
    hypothesis.settings.register_profile(
        name, derandomize=True, deadline=None, max_examples=examples
    )
hypothesis.settings.load_profile("fixed")

# The files that take longest, longest first: with `--dist loadfile --no-loadscope-reorder` a worker
# takes whole files in this order, so that the short ones fill up the end.
LONGEST = (
    "own_habit launch kills plugins sandbox trainer differential hf agreement sweep step engine "
    "loading checkpoints lora attention remote bash_setting rollout_parity student episodes "
    "terminal scaling sampling acts table objectives population"
).split()


def pytest_collection_modifyitems(config, items):
    """Puts the files that take longest first; a slow test of a quick file is not quick."""
    if config.option.markexpr == "quick":
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
    places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(scope="session")
def mesh():
    return sharding.make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="session")
def setting():
    return settings.get("api")


@pytest.fixture(scope="session")
def demos(setting):
    return list(pretrain.demonstrations(setting, 2000, 0.05, 0))


@pytest.fixture(scope="session")
def chat(setting, demos):
    return ChatFormat(train_tokenizer(pretrain.corpus_texts(demos, setting), setting, 512), setting)


@pytest.fixture(scope="session")
def cfg(chat):
    return DecoderConfig(len(chat.tokenizer), 32, 48, 2, 2, 1, 16)


@pytest.fixture(scope="session")
def params(cfg, mesh):
    return pretrain.init_params(cfg, mesh, jax.random.key(0))


@pytest.fixture(scope="session")
def weights(params):
    return {"params": params}
