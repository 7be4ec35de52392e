"""Path of `conf/`. This module imports almost nothing, because our plugin loads it at the start of every Hydra app on
the machine."""

import sys
from functools import cache
from pathlib import Path

_RENAMED = {"device/v6e": "device/tpu_v6e"}
"""Deprecated option names that still work, with their new names."""


def conf_dir() -> Path:
    """Return the folder with our YAML files, which is in the installed package or at the root of a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


@cache
def current_option(path: str) -> str:
    """Return the current path of an option. If the given path is deprecated, print a note to stderr once."""
    if path not in _RENAMED:
        return path
    new = _RENAMED[path]
    print(f"xlstm-hydra: {'='.join(path.split('/'))} is deprecated: write {'='.join(new.split('/'))}", file=sys.stderr)
    return new
