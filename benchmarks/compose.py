"""CPU time of `xlstm-hydra --cfg job`, compared with a plain Hydra app with the same groups and values in YAML; and of
`xlstm-hydra --info`.

    python benchmarks/compose.py [REPEATS]

The commands alternate, so a busy machine slows down both. The plain app has no plugins. The ratio must stay below
1.3 in an environment without extras, because Hydra imports every installed plugin. PYTHONDONTWRITEBYTECODE is unset:
without `.pyc` files, Python would compile all modules in every run.
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
sys.modules["hydra_plugins"] = None  # hide installed plugins
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
    """Measure the commands alternately, and print the medians and their ratio."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory() as folder:
        ours = [sys.executable, "-m", "xlstm_hydra"]
        bare = [sys.executable, write_bare_app(Path(folder), ours)]
        commands = {
            "bare": [*bare, "--cfg", "job"],
            "ours": [*ours, "--cfg", "job"],
            "info": [*ours, "--info", "model"],
        }
        for command in commands.values():  # write the .pyc files
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
    """Write an app with the same groups and options. Each option is a YAML file with the values that ours composes."""
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
    """Return the user and system time of one process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
