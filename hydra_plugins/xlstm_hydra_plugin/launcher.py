"""Launchers for sweep jobs: on SLURM, and in separate processes on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from xlstm_hydra.sweep import Work

Launch = Callable[["Work", Mapping[int, Sequence[str]]], Sequence[JobReturn]]
"""Function that runs one job for each entry of a mapping from job number to overrides, and waits for all jobs."""


class _SubmititLauncher(Launcher):
    """Base class of both launchers. Holds the settings, and creates the `Work` that submitit pickles for each job."""

    def __init__(self, **settings: Any) -> None:
        self.settings: dict[str, Any] = {
            key: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            for key, value in settings.items()
        }

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Check the settings, and store the arguments that all jobs share.

        Raises:
            ConfigError: jobs cannot be launched with these settings.
        """
        from xlstm_hydra.hydra import require_engine

        require_engine("hydra/launcher", "slurm")
        self.shared, self.run = (hydra_context, task_function, config), self.checked(config)

    def checked(self, sweep: DictConfig) -> Launch:
        """Check that jobs can be launched on this machine, and return the function that launches them."""
        raise NotImplementedError

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs of a batch, and wait for all of them."""
        from hydra.core.singleton import Singleton

        from xlstm_hydra.sweep import Work

        return self.run(Work(*self.shared, Singleton.get_state()), dict(enumerate(job_overrides, initial_job_idx)))

    def config(self, config_class: Any) -> Any:
        """Return the settings as a checked config."""
        from xlstm_hydra.problems import ConfigError

        try:
            return config_class(**self.settings)
        except ConfigError as error:
            raise ConfigError([problem.at("hydra.launcher") for problem in error.problems]) from None


class SlurmLauncher(_SubmititLauncher):
    """Runs each job as an element of a SLURM job array. A job that fails does not stop the others."""

    def checked(self, sweep: DictConfig) -> Launch:
        """Check the SLURM settings, and return the function that submits the jobs."""
        from xlstm_hydra.configs import SlurmLauncherConfig
        from xlstm_hydra.sweep import check_slurm, launch_on_slurm

        config = self.config(SlurmLauncherConfig)
        check_slurm(config, sweep)
        return partial(launch_on_slurm, config)


class LocalLauncher(_SubmititLauncher):
    """Runs each job in a separate process on this machine."""

    def checked(self, sweep: DictConfig) -> Launch:
        """Check the settings and the available GPUs, and return the function that runs the jobs."""
        from xlstm_hydra.configs import LocalLauncherConfig
        from xlstm_hydra.sweep import check_gpus, launch_locally

        config = self.config(LocalLauncherConfig)
        check_gpus(config)
        return partial(launch_locally, config)
