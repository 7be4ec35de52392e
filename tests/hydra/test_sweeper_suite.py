"""Hydra's own tests of sweepers and launchers, on our sweeper: their apps are not ours."""

import pytest
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.test_utils.launcher_common_tests import BatchedSweeperTestSuite, LauncherTestSuite
from hydra.version import VersionBase

SWEEPER = "hydra/sweeper=xlstm"


@pytest.fixture(autouse=True)
def no_version_base():
    """Clear the state of other tests, which the suite's apps do not expect."""
    Plugins.instance()  # Hydra 1.4 registers its launchers once, and the suite takes back what it registers
    before = Singleton._instances.pop(VersionBase, None)
    yield
    if before is not None:
        Singleton._instances[VersionBase] = before


@pytest.mark.filterwarnings("ignore::UserWarning")  # the suite's apps are written for Hydra 1.1
@pytest.mark.parametrize(("launcher_name", "overrides"), [("basic", [SWEEPER, "hydra.sweeper.max_batch_size=2"])])
class TestOurSweeperInBatches(BatchedSweeperTestSuite):
    """Run jobs in batches of two."""


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("launcher_name", "overrides"), [("basic", [SWEEPER])])
class TestTheBasicLauncherWithOurSweeper(LauncherTestSuite):
    """Hydra's tests of launchers, with jobs that our sweeper composes."""
