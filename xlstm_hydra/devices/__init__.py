"""The devices of a run: how many there are, their figures, and simulated ones."""

from ._backends import Found as Found
from ._backends import device_figures as device_figures
from ._backends import find_devices as find_devices
from ._backends import host_memory as host_memory
from ._backends import host_of as host_of
from ._backends import no_accelerator as no_accelerator
from ._figures import device_of as device_of
from ._here import device_here as device_here
from ._here import peak_memory as peak_memory
from ._processes import POLL_SECONDS as POLL_SECONDS
from ._processes import agree_on_folder as agree_on_folder
from ._processes import is_first as is_first
from ._processes import join as join
from ._processes import next_key as next_key
from ._processes import of_all as of_all
from ._processes import of_first as of_first
from ._processes import several as several
from ._processes import tell_others as tell_others
from ._processes import together as together
from ._start_devices import simulate_devices as simulate_devices
from ._start_devices import start_devices as start_devices
