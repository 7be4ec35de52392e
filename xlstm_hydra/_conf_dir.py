"""Where `conf/` is. On its own, because the plugin asks at the start of every Hydra app on the machine."""

from pathlib import Path


def conf_dir() -> Path:
    """The folder of our YAML files: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"
