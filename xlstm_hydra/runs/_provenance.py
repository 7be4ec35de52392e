"""Provenance of a run: package versions, the git commit, and the command line."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "xlstm-hydra",
    "hydra-core",
    "omegaconf",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
)

_HARMLESS = r"^(core\.(repositoryformatversion|filemode|symlinks|ignorecase|autocrlf|eol)|extensions\.objectformat)$"
"""Git settings that affect how files are compared, and that contain neither programs nor paths."""

_STATUS = ("status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all")


def provenance(overrides: list[str] | None = None) -> dict[str, Any]:
    """Return the package versions, the overrides, the command line, and the git state of the current folder and of this
    package, as plain JSON values."""
    return {
        "overrides": list(overrides or []),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "python": platform.python_version(),
        "git": _git_state(Path.cwd()),
        "package_git": _git_state(Path(__file__).parent),
        "argv": sys.argv[1:],
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git_state(folder: Path) -> dict[str, Any] | None:
    """Return `commit`, and `dirty`: True if there are uncommitted changes, None if unknown. Return None outside a git
    checkout.

    The folder may come from someone else, and git runs programs that are set in the configuration of a repository, such
    as `core.fsmonitor`, filters and hooks. Therefore the repository is located with commands that run no programs. The
    index of the repository is then compared with the files by using the configuration of a new, empty repository, with
    only harmless settings copied."""
    found = _git(folder, "rev-parse", "HEAD", "--show-toplevel", "--git-path", "index", "--git-path", "objects")
    if found is None or len(lines := found.split("\n")) != 4:
        return None
    commit, top, index, objects = lines
    settings = _git(folder, "config", "--null", "--get-regexp", _HARMLESS) or ""
    with tempfile.TemporaryDirectory() as empty:
        for name in ("objects", "refs"):
            Path(empty, name).mkdir()
        Path(empty, "HEAD").write_text(f"{commit}\n")
        for setting in filter(None, settings.split("\0")):
            key, _, value = setting.partition("\n")
            _git(folder, "config", "--file", f"{empty}/config", key, value)
        paths = {"GIT_DIR": empty, "GIT_WORK_TREE": top}
        paths |= {"GIT_INDEX_FILE": str(folder / index), "GIT_OBJECT_DIRECTORY": str(folder / objects)}
        changed = _git(Path(top), *_STATUS, **paths)
    return {"commit": commit, "dirty": None if changed is None else bool(changed)}


def _git(folder: Path, *args: str, **environment: str) -> str | None:
    """Return the output of a git command, or None if it fails."""
    variables = os.environ | {"GIT_ALLOW_PROTOCOL": "", "GIT_NO_LAZY_FETCH": "1"} | environment
    command = ["git", "-C", str(folder), "--no-pager", "--no-optional-locks", *args]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, env=variables)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
