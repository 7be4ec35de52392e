"""Where `conf/` is. On its own, because the plugin asks at the start of every Hydra app on the machine."""

import sys
from functools import cache
from pathlib import Path

_RENAMED = {"device/v6e": "device/tpu_v6e"}
"""Deprecated names of options, which still work: the new name under the old one."""


def conf_dir() -> Path:
    """The folder of our YAML files: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


@cache
def current_option(path: str) -> str:
    """Return the path of an option by its current name. A note is printed where it was typed by a deprecated one."""
    if path not in _RENAMED:
        return path
    new = _RENAMED[path]
    print(f"xlstm-hydra: {'='.join(path.split('/'))} is deprecated: write {'='.join(new.split('/'))}", file=sys.stderr)
    return new
