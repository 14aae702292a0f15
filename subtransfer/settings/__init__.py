"""The settings by name."""

from __future__ import annotations

from subtransfer.settings.base import Setting

NAMES = ("api", "bash")


def get(name: str) -> Setting:
    """The setting of that name (one of `NAMES`; a config is validated before this is called)."""
    from subtransfer.settings import api, bash

    return {"api": api.ApiSetting, "bash": bash.BashSetting}[name]()
