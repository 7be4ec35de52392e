"""Path of `conf/`. A module of its own, because the plugin needs it at the start of every Hydra app on the machine."""

import sys
from functools import cache
from pathlib import Path

_RENAMED = {"device/v6e": "device/tpu_v6e"}
"""Deprecated names of options that still work, with their new names."""


def conf_dir() -> Path:
    """Return the folder of our YAML files: in the installed package, or at the root of a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


@cache
def current_option(path: str) -> str:
    """Return the path of an option with its current name. Print a note if the given name is deprecated."""
    if path not in _RENAMED:
        return path
    new = _RENAMED[path]
    print(f"xlstm-hydra: {'='.join(path.split('/'))} is deprecated: write {'='.join(new.split('/'))}", file=sys.stderr)
    return new
