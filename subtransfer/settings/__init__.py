"""The settings by name."""

from __future__ import annotations

from subtransfer.settings.base import Setting

NAMES = ("api", "bash")


def get(name: str) -> Setting:
    """The setting of that name (one of `NAMES`; a config is validated before this is called)."""
    from subtransfer.settings import api, bash

    return {"api": api.ApiSetting, "bash": bash.BashSetting}[name]()


def identity(name: str) -> str:
    """What stands for a setting in the keys of artefacts (JSON): its name."""
    return name


def source(name: str) -> str:
    """The module whose imports are a setting's code."""
    return f"{__name__}.{name}"
