"""Eight simulated CPU devices for all tests. JAX is only imported by the tests that need it."""

import atexit
import logging
import os
import shutil
import signal
import sys
import tempfile
from importlib.metadata import version

import pytest
from hypothesis import HealthCheck, settings

# What the machine or the terminal has set must not decide whether a test passes.
FOREIGN = ("SLURM_", "SUBMITIT_", "HYDRA_", "OMPI_", "JAX_", "XLA_", "CUDA_VISIBLE_DEVICES", "COLUMNS", "LINES")
FOREIGN += ("NO_COLOR", "FORCE_COLOR", "PYTHONWARNINGS", "GIT_")
for name in [name for name in os.environ if name.startswith(FOREIGN)]:
    del os.environ[name]
os.umask(0o022)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    if signal.getsignal(number) is signal.SIG_IGN:  # as SIGINT in what a script starts in the background
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
settings.register_profile("any machine", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# What one test has compiled, the others and the processes that they start need not compile again.
os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp()
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["XDG_CACHE_HOME"] = os.environ["JAX_COMPILATION_CACHE_DIR"]  # not that of the user


FAST_COMPILATION = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if version("jaxlib").startswith("0.10."):  # an unknown flag ends the process, and JAX 0.12 does not know this one
    FAST_COMPILATION += " --xla_cpu_use_fusion_emitters=false"
"""Machine code that is not optimized: XLA needs a fifth of the time for it (JAX 0.12: about half), and runs of tests
are short."""


def pytest_configure(config):
    """A checkout that cannot be written has no cache of pytest. Slow tests compile as users do."""
    config.addinivalue_line("filterwarnings", "ignore::pytest.PytestCacheWarning")
    if config.option.markexpr != "slow":
        os.environ["XLA_FLAGS"] = FAST_COMPILATION


@pytest.fixture(scope="module", autouse=True)
def _eight_devices():
    """Whatever the runs in another file have left."""
    if (devices := sys.modules.get("xlstm_hydra.devices")) is not None:
        devices.simulate_devices(8)


@pytest.fixture
def logging_of_the_tests(monkeypatch):
    """The logging of the test process, as it was again afterwards."""
    monkeypatch.setattr(logging, "_handlerList", [])  # Hydra closes these, and so absl the standard error of pytest
    root = logging.getLogger()
    handlers, level = [*root.handlers], root.level
    yield
    for handler in {*root.handlers} - {*handlers}:
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
