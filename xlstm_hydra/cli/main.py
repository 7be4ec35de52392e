"""The command `xlstm-hydra`: compose, check, then wake JAX up and do the task.

Exit status: 0 done, 1 failed while running, 2 the config or the command line is wrong, 3 what is planned does not fit
the devices, 75 asked by a signal to stop, and saved, so that the same command or `resume=RUN` goes on, 130 interrupted.
Of several processes all have the same one. What does not train ends with 143 where one gets SIGTERM.
`--cfg` prints the config, and ends with 2 if something in the user's own YAML files is wrong, which is reported too.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from ._messages import command

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main() -> None:
    """Entry point of the console command."""
    gc.disable()  # until a run starts: by then, little is garbage, and looking for it takes 30 ms
    with command("xlstm-hydra"):
        from ._command import run_command

        run_command(run_job)


def run_job(cfg: DictConfig) -> float | None:
    """Run a job of a sweep. Returns what a sweeper minimizes."""
    from ._run import run_sweep_job  # 30 ms, not for `--cfg job`

    return run_sweep_job(cfg)
