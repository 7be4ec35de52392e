"""Jobs of a sweep on a cluster: submitted, watched, and each with its own end, whatever it was."""

from ._job import Work as Work
from ._local import check_gpus as check_gpus
from ._local import launch_locally as launch_locally
from ._slurm import check_slurm as check_slurm
from ._slurm import launch_on_slurm as launch_on_slurm
