"""What keeps Hydra quiet in every process of a run but the first."""


def overrides_of_other(process: int, job_logging: str) -> list[str]:
    """Overrides for a process that is not the first: no folder and no log of its own, and its number on what it says.

    Args:
        process: its number, from 1.
        job_logging: the option of that group which the run has chosen.
    """
    quiet = ["hydra.output_subdir=null"]
    if job_logging in ("none", "disabled"):
        return quiet
    prefix = f"hydra.job_logging.formatters.numbered.format='process {process}: %(message)s'"
    return [*quiet, "hydra/job_logging=xlstm_others", prefix]
