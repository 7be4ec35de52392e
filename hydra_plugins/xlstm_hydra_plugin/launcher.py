"""Launchers for the jobs of a sweep: on SLURM, and in processes of their own on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from xlstm_hydra.sweep import Work


class _ClusterLauncher(Launcher):
    """What both have in common."""

    def __init__(self, **settings: Any) -> None:
        self.settings: dict[str, Any] = {
            key: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            for key, value in settings.items()
        }

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Check the settings, and remember what all jobs share.

        Raises:
            ConfigError: the jobs cannot be launched so.
        """
        from xlstm_hydra.hydra import require_engine

        require_engine("hydra/launcher", "slurm")
        self.context, self.task, self.config = hydra_context, task_function, config
        self.check()

    def check(self) -> None:
        """Make sure that jobs can be launched here as the settings say."""
        raise NotImplementedError

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs of a batch, and wait for all of them."""
        from hydra.core.singleton import Singleton

        from xlstm_hydra.sweep import Work

        work = Work(self.context, self.task, self.config, Singleton.get_state())
        return self.run(work, dict(enumerate(job_overrides, initial_job_idx)))

    def run(self, work: Work, points: Mapping[int, Sequence[str]]) -> Sequence[JobReturn]:
        """Run a job for each point, by its number."""
        raise NotImplementedError


class SlurmLauncher(_ClusterLauncher):
    """Each job is an element of an array of SLURM jobs. None ends the others, and each tells its own end."""

    def check(self) -> None:
        """See the base class."""
        from xlstm_hydra.configs import SlurmLauncherConfig
        from xlstm_hydra.sweep import check_slurm

        self.asked = _checked(SlurmLauncherConfig, self.settings)
        check_slurm(self.asked, self.config)

    def run(self, work: Work, points: Mapping[int, Sequence[str]]) -> Sequence[JobReturn]:
        """See the class."""
        from xlstm_hydra.sweep import launch_on_slurm

        return launch_on_slurm(self.asked, work, points)


class LocalLauncher(_ClusterLauncher):
    """Each job is a process of its own on this machine."""

    def check(self) -> None:
        """See the base class."""
        from xlstm_hydra.configs import LocalLauncherConfig
        from xlstm_hydra.sweep import check_gpus

        self.asked = _checked(LocalLauncherConfig, self.settings)
        check_gpus(self.asked)

    def run(self, work: Work, points: Mapping[int, Sequence[str]]) -> Sequence[JobReturn]:
        """See the class."""
        from xlstm_hydra.sweep import launch_locally

        return launch_locally(self.asked, work, points)


def _checked(config_class: Any, settings: Mapping[str, Any]) -> Any:
    from xlstm_hydra.problems import ConfigError

    try:
        return config_class(**settings)
    except ConfigError as error:
        raise ConfigError([problem.at("hydra.launcher") for problem in error.problems]) from None
