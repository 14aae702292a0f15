"""What a stage's key holds: all that decides its artefact, and no more.

    {"kind": the stage's kind, "seed": the config's seed, "inputs": digests of the stages it reads,
     "config": the fields it declares to read, "arguments": what else its function is given,
     "code": hash of the modules that its function's module imports, versions of libraries, flags}

An artefact's folder is named by the key's digest. Code is found by following import statements, so
that editing a probe, the report or a launcher leaves every earlier stage's key as it is
(docs/keys.md, `tests/test_keys.py`).
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

import subtransfer
from subtransfer import settings
from subtransfer.config import plugins
from subtransfer.distillation import token_weights
from subtransfer.experiment.declared import ALWAYS, EVERYTHING, WATCHED
from subtransfer.rollout import conversations
from subtransfer.runtime.json_files import canonical_json, digest_of_text

# Modules that cannot change what an artefact holds; neither they nor their imports are part of any
# key. Whoever adds one says why.
LEFT_OUT = frozenset(
    (
        # How fields of the config are checked and records found by name: what is read of a field,
        # and which record is meant, is in the key.
        "subtransfer.runtime.field",
        "subtransfer.runtime.registry",
        # How processes find each other, end and show themselves; the sentences of errors.
        "subtransfer.runtime.errors",
        "subtransfer.runtime.preemption",
        "subtransfer.runtime.processes",
        "subtransfer.runtime.progress",
        "subtransfer.runtime.user_code",
        "subtransfer.runtime.terminal",
        # How artefacts are stored, shared out and copied: the same bytes come back, or an error.
        "subtransfer.store.artifacts",
        "subtransfer.store.buckets",
        "subtransfer.store.claims",
        "subtransfer.store.digests",
        "subtransfer.store.files",
        "subtransfer.store.history",
        "subtransfer.store.journal",
        "subtransfer.store.params",
        "subtransfer.store.provenance",
        "subtransfer.store.shipped",
        "subtransfer.store.workdir",
        # How trainings are watched and kept from being lost: a resumed one ends with the same bits.
        "subtransfer.training.checkpoints",
        "subtransfer.training.flops",
        "subtransfer.training.metrics",
        "subtransfer.training.monitor",
    )
)
# Modules that look others up by name. They are followed no further: what a config names is added by
# name (`Sources.code`), so that runs of one setting do not hold the others.
REGISTRIES = frozenset(("subtransfer.settings",))
# Imports that no stage makes use of: `Policy.generate` and `Policy.sample` are for whoever loads a
# policy alone. Else every base and teacher would be made anew with the engine of rollouts.
UNUSED = {
    "subtransfer.rollout.policy": frozenset(
        (
            "subtransfer.rollout.sampling",
            "subtransfer.rollout.scheduler",
            "subtransfer.rollout.serving",
        )
    )
}
# Files that a module reads beside its source: they are part of its hash.
DATA = {"subtransfer.report.pages": "templates/*"}
# Import packages that are part of a key as a whole, once any of it is imported: the shell looks its
# commands up by name. What of it no run imports is left out.
WHOLE = ("shellworld",)
_BESIDE_WHOLE = ("tests", "tools")
# Libraries whose version cannot change a number or a text: command lines, types, and storage.
HARMLESS_LIBRARIES = frozenset(
    (
        "absl",
        "fsspec",
        "jaxtyping",
        "ml_collections",
        "orbax",
        "rich",
        "safetensors",
        "tensorflow_datasets",
        "typing_extensions",
    )
)

# JAX's flags that change numbers or random bits.
JAX_FLAGS = (
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_disable_jit",
    "jax_disable_most_optimizations",
    "jax_enable_x64",
    "jax_numpy_dtype_promotion",
    "jax_threefry_partitionable",
)
COMPILER_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
# The compiler's flags that change no number: how many devices a CPU plays, and what is dumped and
# printed. Any other is part of the key, as nobody can know what it does.
HARMLESS_FLAGS = frozenset(
    (
        "--xla_force_host_platform_device_count",
        "--xla_dump_to",
        "--xla_dump_hlo_as_text",
        "--xla_dump_hlo_as_proto",
        "--xla_dump_hlo_pass_re",
        "--xla_gpu_per_fusion_autotune_cache_dir",
        "--xla_hlo_profile",
    )
)


@dataclasses.dataclass(frozen=True)
class Closure:
    """What a module imports, directly or not.

    Attributes:
      modules: of this repository, without those left out.
      libraries: the top-level names of the others, without Python's own.
    """

    modules: frozenset[str]
    libraries: frozenset[str]


class Sources:
    """The source files that keys are made of.

    Args:
      folders: import package -> its folder; default: where this process has them from.
    """

    def __init__(self, folders: Mapping[str, Path] | None = None):
        here = Path(subtransfer.__file__).parent
        found = {"subtransfer": here, "shellworld": here.parent / "shellworld"}
        self._files: dict[str, Path] = {}
        for package, folder in {**found, **(folders or {})}.items():
            for path in sorted(folder.rglob("*.py")):
                parts = [package, *path.relative_to(folder).with_suffix("").parts]
                if package in WHOLE and parts[1] in _BESIDE_WHOLE:
                    continue
                # A package's own file is the module of the package's name.
                if parts[-1] == "__init__":
                    parts.pop()
                self._files[".".join(parts)] = path
        self._imports: dict[str, tuple[frozenset[str], frozenset[str]]] = {}
        self._closures: dict[str, Closure] = {}
        self._hashes: dict[str, str] = {}
        self._codes: dict[Any, dict[str, Any]] = {}

    def code(self, modules: Iterable[str], origins: Iterable[str] = ()) -> dict[str, Any]:
        """The part of a key that says which code makes an artefact; one object for each question.

        Args:
          modules: whose import closures it is made of.
          origins: files of plugins whose records the code calls.
        """
        # With the digest, as a plugin that is edited is executed anew in the same process.
        executed = sorted({(plugins.digest(origin), origin) for origin in origins})
        question = (tuple(modules), tuple(executed))
        if question not in self._codes:
            roots = list(question[0])
            digests = []
            for digest, file in executed:
                roots.append(file)
                digests.append(digest)
            names: set[str] = set()
            libraries: set[str] = set()
            for root in roots:
                closure = self.closure(root)
                names |= closure.modules
                libraries |= closure.libraries
            self._codes[question] = {
                "sources": self._hash(names),
                "libraries": versions(libraries),
                # What computes nothing with JAX must not be made anew for its flags.
                "flags": flags() if "jax" in libraries else {},
                # Digests alone: a plugin that is moved is still the same one.
                "plugins": digests,
            }
        return self._codes[question]

    def closure(self, module: str) -> Closure:
        """All that a module's import statements lead to, those within functions included.

        Args:
          module: its name, or the path of a user's file (which is no part of the closure).
        """
        if module in self._closures:
            return self._closures[module]
        modules: set[str] = set()
        libraries: set[str] = set()
        ahead = [module]
        while ahead:
            name = ahead.pop()
            if name in modules or name in LEFT_OUT:
                continue
            if name in self._files:
                modules.add(name)
            package = name.partition(".")[0]
            if package in WHOLE:
                ahead += (other for other in self._files if other.partition(".")[0] == package)
            ours, theirs = self._imported_by(name)
            libraries |= theirs
            if name not in REGISTRIES:
                ahead += ours - UNUSED.get(name, frozenset())
        found = Closure(frozenset(modules), frozenset(libraries))
        if module in self._files:  # a user's file may change
            self._closures[module] = found
        return found

    def _imported_by(self, module: str) -> tuple[frozenset[str], frozenset[str]]:
        """The modules of this repository, and the libraries, that one module imports itself."""
        if module in self._imports:
            return self._imports[module]
        path = self._files.get(module) or Path(module)
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        ours, theirs = set(), set()
        for name in _imported(path.read_bytes(), package, self._files):
            top = name.partition(".")[0]
            if name in self._files:
                ours.add(name)
            elif top not in sys.stdlib_module_names and top not in HARMLESS_LIBRARIES:
                theirs.add(top)
        found = frozenset(ours), frozenset(theirs)
        if module in self._files:
            self._imports[module] = found
        return found

    def _hash(self, modules: Iterable[str]) -> str:
        whole = hashlib.sha256()
        for module in sorted(modules):
            if module not in self._hashes:
                file = self._files[module]
                source = file.read_bytes()
                if module in DATA:
                    for path in sorted(file.parent.glob(DATA[module])):
                        source += path.read_bytes()
                self._hashes[module] = hashlib.sha256(source).hexdigest()
            # With its name: a file that is renamed is other code.
            whole.update(f"{module} {self._hashes[module]}\n".encode())
        return whole.hexdigest()[:16]


def _imported(source: bytes, package: str, files: Mapping[str, Path]) -> Iterator[str]:
    """The names that a module's import statements lead to.

    Args:
      package: what relative imports start from.
      files: the modules of this repository: `from X import Y` may mean the module X.Y.
    """
    for level, origin, names in _statements(source):
        if level:
            parents = package.split(".")
            parents = parents[: len(parents) - level + 1]
            origin = ".".join([*parents, origin] if origin else parents)
        for name in names:
            yield f"{origin}.{name}" if f"{origin}.{name}" in files else origin


@functools.cache
def _statements(source: bytes) -> tuple[tuple[int, str, tuple[str, ...]], ...]:
    """A source's import statements, but for those that only type checkers read.

    Returns:
      For `from ..X import Y, Z`, (2, "X", ("Y", "Z")); for `import X`, (0, "X", ("",)).
    """
    found: list[tuple[int, str, tuple[str, ...]]] = []
    ahead: list[ast.AST] = [ast.parse(source)]
    while ahead:
        node = ahead.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            ahead += node.orelse
            continue
        ahead += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            for alias in node.names:
                found.append((0, alias.name, ("",)))
        elif isinstance(node, ast.ImportFrom):
            names = tuple(alias.name for alias in node.names)
            found.append((node.level, node.module or "", names))
    return tuple(found)


@functools.cache
def sources() -> Sources:
    """The sources of this process, read once: what is edited later is for the next one."""
    return Sources()


def versions(libraries: Iterable[str]) -> dict[str, str]:
    """The installed version of each library, by its top-level name; "none" if it is not there."""
    names = set(libraries)
    # The compiler is in jaxlib, which nobody imports by name.
    if "jax" in names:
        names.add("jaxlib")
    return {name: _version(name) for name in sorted(names)}


@functools.cache
def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def flag_of_jax(name: str) -> Any:
    """The value of one of JAX's own flags."""
    # Flags that no context manager sets can only be read by name, all others only as attributes.
    return getattr(jax.config, name) if hasattr(jax.config, name) else jax.config.read(name)


def flags() -> dict[str, Any]:
    """The flags of JAX and its compiler that change numbers, as JSON types."""
    values: dict[str, Any] = {}
    for name in JAX_FLAGS:
        value = flag_of_jax(name)
        values[name] = value if isinstance(value, bool) else str(value)
    for variable in COMPILER_VARIABLES:
        text = os.environ.get(variable, "").strip()
        if text and not text.startswith("-"):  # as XLA has it, the name of a file of flags
            text = Path(text).read_text() if Path(text).is_file() else text
        given = []
        for flag in text.split():
            if flag.partition("=")[0] not in HARMLESS_FLAGS:
                given.append(flag)
        values[variable] = sorted(given)
    return values


# -- the config ------------------------------------------------------------------------------------

# What a field's value stands for, where that is not the value itself: the files that it names.
_IDENTITIES: Mapping[str, Callable[[Any], Any]] = {
    "plugins": lambda origins: [plugins.digest(origin) for origin in origins],
    "rollouts.trajectories": lambda path: conversations.digest(path) if path else "",
    "setting": settings.identity,
    "distill.token_weights": token_weights.part_of_key,
}


def config_of(config: Mapping[str, Any], declared: Iterable[str]) -> dict[str, Any]:
    """The values of declared fields, nested like the config, with the identity of files for names.

    Raises:
      UserError: a file that a field names is missing or cannot be read.
    """
    fields = set(declared)
    if EVERYTHING in fields:
        fields = set(config) - set(WATCHED)
    # Sorted, since a set's order differs between processes and with it the key's text would.
    out: dict[str, Any] = {}
    for field in sorted(fields.difference(ALWAYS)):
        *rooms, name = field.split(".")
        value, place = config, out
        for room in rooms:
            value = value[room]
            place = place.setdefault(room, {})
        place[name] = _identified(field, value[name])
    return out


def _identified(field: str, value: Any) -> Any:
    """A field's value, or what its value stands for; a room is a new dict of its fields."""
    if isinstance(value, Mapping):
        return {name: _identified(f"{field}.{name}", part) for name, part in value.items()}
    return _IDENTITIES[field](value) if field in _IDENTITIES else value


class Digests:
    """`digest` of keys; parts that many keys share are written as JSON once."""

    # A large sweep has tens of thousands of keys, and the stages of one run share most parts.
    def __init__(self) -> None:
        self._texts: dict[int, tuple[str, Any]] = {}

    def of(self, key: Mapping[str, Any]) -> str:
        """The digest of a key."""
        arguments = canonical_json(key["arguments"])
        code, config = self._text(key["code"]), self._text(key["config"])
        rest = {"inputs": key["inputs"], "kind": key["kind"], "seed": key["seed"]}
        # In the order of the alphabet, as `digest` has it.
        return digest_of_text(
            f'{{"arguments":{arguments},"code":{code},"config":{config},{canonical_json(rest)[1:]}'
        )

    def _text(self, part: Any) -> str:
        found = self._texts.get(id(part))
        if found is None:
            # The part is kept, so that no other object gets its id.
            found = self._texts[id(part)] = (canonical_json(part), part)
        return found[0]
