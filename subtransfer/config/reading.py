"""Reading configs: from files, from the command line, and from results that are read back.

A config is a `ConfigDict` in a user's hands, a `FrozenConfigDict` where it is used, and a `Config`
where thousands are looked at.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_collections

from subtransfer.config import plugins
from subtransfer.config.checks import OWN, own_fields, validate
from subtransfer.config.fields import ROOMS, brought, declared
from subtransfer.config.fields import defaults as defaults
from subtransfer.runtime.errors import UserError
from subtransfer.runtime.field import Field, nearest
from subtransfer.runtime.user_code import failures_of

_MODEL = Field("", "where a model of a pair comes from", path=True)


class Config(dict):
    """A config as nested dicts, read by attributes as well: light, where thousands are looked at.

    Copies share the parts that they do not change.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Config:
        """Of any kind of config."""
        if isinstance(config, cls):
            return config
        out = cls()
        for name, value in config.items():
            nested = isinstance(value, (Mapping, ml_collections.ConfigDict))
            out[name] = cls.of(value) if nested else value
        return out

    def copy(self) -> Config:
        """Another one, whose parts are this one's."""
        return Config(self)

    def replace(self, parent: str, name: str, value: Any) -> None:
        """Sets a field of a part ("" is the whole), in this copy only."""
        if not parent:
            self[name] = value
            return
        head, _, rest = parent.partition(".")
        # Only the parts on the way are copied: a sweep's members share all others.
        self[head] = self[head].copy()
        self[head].replace(rest, name, value)

    def drop(self, parent: str, name: str) -> None:
        """Takes a field out of a part, in this copy only."""
        self[parent] = self[parent].copy()
        del self[parent][name]


def flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """All fields by dotted name."""
    out: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, (ml_collections.ConfigDict, Mapping)):
            out.update(flattened(value, f"{prefix}{name}."))
        else:
            out[prefix + name] = value
    return out


def apply_overrides(
    config: ml_collections.ConfigDict | Config,
    overrides: Mapping[str, Any],
    folder: str | Path | None = None,
) -> None:
    """Sets fields by dotted name, in place, from texts or from values.

    Args:
      folder: what the paths in `plugins` are relative to, which are loaded first, so that their
        fields can be set. None, as in a config file: whoever reads that loads them.

    Raises:
      UserError: there is no such field, or the value is none of its type.
    """
    if not overrides:
        return
    if "plugins" in overrides:
        value = _value("plugins", overrides["plugins"], declared()["plugins"])
        if folder is None:
            _set(config, "plugins", value)
        else:
            _use_plugins(config, plugins.load(value, folder))
    known, specs = flattened(config), declared(config.plugins)
    for name, value in overrides.items():
        # Set above, since the fields that they bring had to be known first.
        if name == "plugins":
            continue
        # Models have names of the user's own.
        spec = _MODEL if name.startswith("models.") else specs.get(name)
        if name not in known or spec is None:
            near = nearest(name, known)
            raise UserError(
                f"There is no config field {name!r}; the nearest is --config.{near} "
                f"(now {known[near]!r})."
            )
        _set(config, name, _value(name, value, spec))


def _value(name: str, value: Any, spec: Field) -> Any:
    # Texts come from the command line; values from sweeps and config files.
    if isinstance(value, str):
        return spec.read(name, value)
    return spec.typed(f"{name} is set to", value)


def _set(config: ml_collections.ConfigDict | Config, name: str, value: Any) -> None:
    parent, _, last = name.rpartition(".")
    if isinstance(config, Config):
        config.replace(parent, last, value)
        return
    with config.unlocked():
        part = config[parent] if parent else config
        part[last] = value


def _use_plugins(config: ml_collections.ConfigDict | Config, paths: tuple[str, ...]) -> None:
    """Gives a config other plugins, which are loaded.

    The fields that they bring are added; those of plugins that it no longer names go.
    """
    # A field that is there keeps its value: the config file may have set it.
    before, now, known = brought(config.plugins), brought(paths), flattened(config)
    _set(config, "plugins", paths)
    for name, field in now.items():
        if name not in known:
            _set(config, name, field.default)
    for name in set(before) - set(now):
        parent, _, last = name.rpartition(".")
        if isinstance(config, Config):
            config.drop(parent, last)
        else:
            with config.unlocked():
                del config[parent][last]


# -- files ---------------------------------------------------------------------------------------


def module_of(path: str | Path) -> ModuleType:
    """A config file as a module.

    Raises:
      UserError: there is no such file, it is no Python, or it fails.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(
            f"There is no config file {path}: give one with --config=FILE, such as "
            "configs/quickstart.py."
        )
    name = f"subtransfer_config_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(
            f"{path} is no Python file: a config file ends in .py and defines get_config()."
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their own module up
    with failures_of(f"The config file {path}", str(path)):
        spec.loader.exec_module(module)
    return module


def read(
    module: ModuleType, overrides: Mapping[str, Any] | None = None
) -> ml_collections.ConfigDict:
    """Calls a config file's get_config() and loads its plugins.

    All fields are there then, and of their types; whether their values can be is not checked.

    Args:
      overrides: only their `plugins` are read here: they take the place of the file's.

    Raises:
      UserError: for every mistake in it.
    """
    path = module.__file__ or ""
    with failures_of(f"The config file {path}", str(path)):
        config = module.get_config()
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(
            f"get_config() of {path} must return the ConfigDict of subtransfer.config.defaults(), "
            "changed."
        )
    given = flattened(config)
    # First of all: which fields there are depends on them.
    if "plugins" not in given:
        raise _lacks(path, "plugins")
    if overrides and "plugins" in overrides:
        value, folder = _value("plugins", overrides["plugins"], declared()["plugins"]), Path()
    else:
        value = declared()["plugins"].typed(f"{path} sets plugins to", given["plugins"])
        folder = Path(path).parent
    paths = plugins.load(value, folder)
    specs, new = declared(paths), brought(paths)
    for name in given:
        if name.startswith("models.") and name.count(".") == 1:
            continue
        if name not in specs:
            near = nearest(name, specs)
            raise UserError(f"{path} sets the unknown field {name!r}; the nearest is {near!r}.")
    for name, field in specs.items():
        if name == "plugins":
            value = paths
        elif name in given:
            value = field.typed(f"{path} sets {name} to", given[name])
        elif name in new:
            value = field.default
        else:
            raise _lacks(path, name)
        if given.get(name) is not value:
            _replace(config, name, value)
    if not isinstance(config.get("models"), ml_collections.ConfigDict):
        raise _lacks(path, "models")
    for name, value in config.models.items():
        config.models[name] = _MODEL.typed(f"{path} sets models.{name} to", value)
    return config


def _lacks(path: str, name: str) -> UserError:
    return UserError(f"{path} lacks the field {name!r}: start from subtransfer.config.defaults().")


def _replace(config: ml_collections.ConfigDict, name: str, value: Any) -> None:
    """Sets a field whose type in the file may be another one, which ConfigDict would refuse."""
    parent, _, last = name.rpartition(".")
    with config.unlocked():
        part = config[parent] if parent else config
        if last in part:
            del part[last]
        part[last] = value


def load(path: str | Path, overrides: Mapping[str, Any]) -> ml_collections.FrozenConfigDict:
    """Reads a config file, applies overrides and checks the result.

    Raises:
      UserError: for every mistake in the file or the overrides, before any work is done.
    """
    config = read(module_of(path), overrides)
    # `read` has loaded these.
    rest = dict(overrides)
    rest.pop("plugins", None)
    apply_overrides(config, rest, ".")
    validate(config)
    return ml_collections.FrozenConfigDict(config)


# -- parts of a config ---------------------------------------------------------------------------


def of_model(config: Mapping[str, Any], model: str) -> Config:
    """The config with the fields of `base` that one of its models has.

    An embedded model of a pair may have some of its own.
    """
    out = Config.of(config)
    given = (out.models or {}).get(model, "")
    if given.startswith(OWN):
        out = out.copy()
        for name, value in own_fields(model, given).items():
            out.replace("base", name, value)
    return out


def plain(value: Any) -> Any:
    """Config values as JSON types (tuples become lists)."""
    # Most are of these types, and the next question is dear.
    if value is None or type(value) in (int, float, bool, str):
        return value
    if isinstance(value, (ml_collections.ConfigDict, Mapping)):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(v) for v in value]
    return value


@functools.cache
def _without_effect() -> frozenset[str]:
    """The rooms of which no field affects results."""
    out = []
    for room in ROOMS:
        affecting = any(field.affects_results for field in room.fields.values())
        # The room of arms has no fields there, as controls bring them: these affect results.
        if room.fields and not affecting:
            out.append(room.name)
    return frozenset(out)


def of_results(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that results can depend on, as JSON types: not how a run is saved and watched."""
    out = plain(config)
    for room in _without_effect():
        out.pop(room, None)
    return out
