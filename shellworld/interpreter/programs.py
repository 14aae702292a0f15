"""Loads every module of commands, so that the register is full."""

from __future__ import annotations

import importlib
import pkgutil

from shellworld import commands


def load() -> None:
    """Imports all modules under `commands`."""
    for module in pkgutil.iter_modules(commands.__path__):
        importlib.import_module(f"{commands.__name__}.{module.name}")
