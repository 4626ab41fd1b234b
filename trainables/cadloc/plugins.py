"""What others install beside this program: entry points, by group and name."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from cadloc.contract import Fault, InputError


def installed_plugin(group: str, name: str, key: str) -> Any:
    """The object behind an entry point; InputError under `key`, naming those that there are, when there is none."""
    installed = {entry.name: entry for entry in entry_points(group=group)}
    if name not in installed:
        allowed = f"an entry point of the group {group}: {', '.join(sorted(installed)) or 'none is installed'}"
        action = "install the package that brings it"
        raise InputError(Fault(key, "entry_point", repr(name), allowed, action))
    return installed[name].load()
