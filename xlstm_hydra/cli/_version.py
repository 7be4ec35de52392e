"""Output of `xlstm-hydra --version`: the versions and devices to include in a bug report."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

LIBRARIES = ("hydra-core", "omegaconf", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
ACCELERATOR_LIBRARIES = ("jax-cuda12-plugin", "jax-cuda13-plugin", "libtpu")


def print_version(own: str) -> None:
    """Print the versions of this package, Python and the libraries, then the devices. The versions are printed first,
    because importing JAX takes seconds.

    Args:
        own: version of this package.
    """
    print(f"xlstm-hydra {own}")
    print(f"Python {platform.python_version()} on {platform.platform()}")
    found = {name: _installed(name) for name in (*LIBRARIES, *ACCELERATOR_LIBRARIES)}
    missing = [name for name in LIBRARIES if found[name] is None]
    print(", ".join(f"{name} {number}" for name, number in found.items() if number))
    if missing:
        print(f"not installed: {', '.join(missing)}")
    print(f"devices: {_devices()}", flush=True)


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _devices() -> str:
    """Return the number and kind of the devices as text, or the reason why JAX cannot start."""
    try:
        from xlstm_hydra.devices import detect_devices

        found = detect_devices()
    except Exception as error:  # such as a broken driver, which the bug report may be about
        return f"JAX cannot start: {type(error).__name__}: {error}"
    return f"{found.number} x {found.kind} ({found.platform})"
