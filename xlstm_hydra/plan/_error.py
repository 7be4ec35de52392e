"""The error raised if no plan can be made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from xlstm_hydra.errors import TaskError, reason, versions
from xlstm_hydra.problems import ConfigError


class PlanError(TaskError):
    """No plan can be made, although the config is valid: the model cannot be traced without devices, or this JAX makes
    programs that the planner cannot read."""

    def __init__(self, why: str, fix: str = "") -> None:
        """Args:
        why: the reason, without a full stop.
        fix: what can be done without a plan.
        """
        self.why = why
        fixes = " ".join(filter(None, [fix, "HYDRA_FULL_ERROR=1 prints the traceback."]))
        super().__init__(f"no plan can be made: {self.reason}. {fixes}")

    @property
    def reason(self) -> str:
        """Why not, and the versions of what planning depends on."""
        return f"{self.why} ({versions('xlstm-hydra', 'jax', 'jaxlib')})"


@contextmanager
def planning(fix: str = "") -> Iterator[None]:
    """Raise what goes wrong while a plan is made as a `PlanError`, so that callers can continue without a plan.

    Args:
        fix: what can be done without a plan.
    """
    try:
        yield
    except ConfigError:
        raise
    except PlanError as error:
        raise (PlanError(error.why, fix) if fix else error) from error.__cause__
    except Exception as error:
        raise PlanError(reason(error).rstrip("."), fix) from error
