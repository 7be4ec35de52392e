"""CPU seconds of `xlstm-hydra --cfg job`, against a bare Hydra app of the same groups and values in plain YAML.

    python benchmarks/compose.py [REPEATS]

The two take turns, so that a busy machine slows both. The bare app sees no plugin, ours included. The ratio to stay
below is 1.3, in an environment without extras: Hydra imports every plugin that is installed. PYTHONDONTWRITEBYTECODE
is unset: without `.pyc` files the time would be that of compiling Python.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from omegaconf import OmegaConf

from xlstm_hydra.hydra import conf_dir

BARE_APP = """
import sys
sys.modules["hydra_plugins"] = None  # as if no plugin were installed
import hydra
version = {"version_base": "1.3"}
if hydra.__version__ >= "1.4":
    import hydra.core.plugins
    hydra.core.plugins.entry_points = lambda group: ()
    version = {}


@hydra.main(config_path="conf", config_name="config", **version)
def main(cfg):
    pass


main()
"""


def main() -> None:
    """Measure both in turns and print the medians and their ratio."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory() as folder:
        ours = [sys.executable, "-m", "xlstm_hydra"]
        commands = {"bare": [sys.executable, write_bare_app(Path(folder), ours)], "ours": ours}
        for command in commands.values():  # writes the .pyc files
            cpu_seconds(command, folder)
        times = {name: [] for name in commands}
        for _ in range(repeats):
            for name, command in commands.items():
                times[name].append(cpu_seconds(command, folder))
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    for name, seconds in times.items():
        print(f"{name}: median {medians[name]:.3f} s of CPU, {min(seconds):.3f} to {max(seconds):.3f}, {repeats} runs")
    print(f"ratio {medians['ours'] / medians['bare']:.2f}")


def write_bare_app(folder: Path, ours: list[str]) -> str:
    """An app of the same groups and options: each option is a YAML file of the values that ours composes to."""
    groups = OmegaConf.load(conf_dir() / "config.yaml").defaults
    values = OmegaConf.create(subprocess.check_output([*ours, "--cfg", "job"], cwd=folder, text=True))
    defaults = []
    for entry in groups:
        group, option = next(iter(entry.items())) if OmegaConf.is_dict(entry) else ("_self_", None)
        if group == "_self_" or " " in group:
            continue
        defaults.append({group: option})
        for file in (conf_dir() / group).glob("*.yaml"):
            copy = folder / "conf" / group / file.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(OmegaConf.to_yaml(values[group]) if group in values else "# @package _global_\n")
    OmegaConf.save({"defaults": [*defaults, "_self_"]}, folder / "conf" / "config.yaml")
    (folder / "app.py").write_text(BARE_APP)
    return str(folder / "app.py")


def cpu_seconds(command: list[str], folder: str) -> float:
    """User and system time of one process that prints its composed config."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*command, "--cfg", "job"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
