"""The private names of JAX that `_jax_internals.py` and `devices/runtime.py` need. After an upgrade of JAX, this fails
first."""

import jax
import pytest
from tiny import tiny_run

from xlstm_hydra._jax_internals import backends_are_initialized
from xlstm_hydra.configs import ConfigError
from xlstm_hydra.devices import runtime, start_devices


@pytest.mark.parametrize("name", ["process_id", "num_processes", "client"])
def test_jax_keeps_the_state_of_several_processes(name):
    from jax._src import distributed

    assert hasattr(distributed.global_state, name)


@pytest.mark.parametrize(
    "name", ["key_value_set", "key_value_try_get", "blocking_key_value_get", "wait_at_barrier", "shutdown"]
)
def test_the_client_of_the_store_has_the_needed_methods(name):
    from jax._src.lib import _jax

    assert hasattr(_jax.DistributedRuntimeClient, name)


def test_jax_can_ignore_sigterm_and_reports_whether_devices_have_started():
    assert runtime.PREEMPTION_SERVICE in jax.config.values
    jax.devices()
    assert backends_are_initialized()


def test_one_process_is_process_0_of_1():
    assert (runtime.process_id(), runtime.num_processes()) == (0, 1)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (AssertionError(), "JAX cannot start: there is no such device, or its plugin is not installed"),
        (
            RuntimeError("Unable to initialize backend 'tpu': in use.\nmore"),
            "start: Unable to initialize backend 'tpu'",
        ),
    ],
    ids=["nothing provides them", "they are in use"],
)
def test_devices_that_cannot_start_are_a_problem_with_a_way_out(error, words, monkeypatch):
    def fail():
        raise error

    monkeypatch.setattr(jax, "device_count", fail)
    with pytest.raises(ConfigError, match=words) as caught:
        start_devices(tiny_run())
    assert "JAX_PLATFORMS selects the devices that JAX uses" in str(caught.value)
