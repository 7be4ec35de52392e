"""The devices of a run: their number, speed and memory, simulated devices, and the processes that use the devices."""

from ._detected import DetectedDevices as DetectedDevices
from ._detected import detect_devices as detect_devices
from ._detected import host_of as host_of
from ._detected import peak_memory as peak_memory
from ._figures import device_here as device_here
from ._figures import device_of as device_of
from ._figures import known_devices as known_devices
from ._processes import POLL_SECONDS as POLL_SECONDS
from ._processes import agree_on_folder as agree_on_folder
from ._processes import announce_end as announce_end
from ._processes import broadcast_text as broadcast_text
from ._processes import gather_texts as gather_texts
from ._processes import is_distributed as is_distributed
from ._processes import is_first as is_first
from ._processes import join as join
from ._processes import next_key as next_key
from ._processes import together as together
from ._start_devices import no_accelerator as no_accelerator
from ._start_devices import simulate_devices as simulate_devices
from ._start_devices import start_devices as start_devices
