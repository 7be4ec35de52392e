"""A run worth planning, a device to plan it for, and plans that tests share."""

from dataclasses import replace

from tiny import tiny_run

from xlstm_hydra.configs import DeviceConfig, RunConfig
from xlstm_hydra.plan import Change, Plan, changes_that_fit, make_plan
from xlstm_hydra.step import plan_key

MIB = 2**20


def device(mib=64.0, **changes):
    figures = {
        "memory_bandwidth": 100.0,
        "float32_tflops": 1.0,
        "bfloat16_tflops": 2.0,
        "float16_tflops": 2.0,
        "devices_per_host": 4,
        "host_bandwidth": 20.0,
        "network_bandwidth": 2.0,
    }
    return DeviceConfig(name="small", platform="gpu", kinds=[], memory_gib=mib / 1024, **figures | changes)


def medium_run(batch_size=32, **changes):
    """Large enough that activations and parameters count, at no cost: nothing is compiled."""
    sizes = {"vocab_size": 512, "embedding_dim": 128, "num_blocks": 4, "context_length": 128}
    return tiny_run("v1", model=sizes | changes.pop("model", {}), trainer={"batch_size": batch_size}, **changes)


_PLANS: dict[tuple[str, int, str], Plan] = {}
_CHANGES: dict[tuple[str, int, str], tuple[Change, ...]] = {}


def shared_plan(run: RunConfig, num_devices: int, device: DeviceConfig) -> Plan:
    """Return what `make_plan` does, and trace runs with the same plan only once in a test process."""
    key = plan_key(run), num_devices, repr(device)
    if key not in _PLANS:
        _PLANS[key] = make_plan(run, num_devices, device)
    return replace(_PLANS[key], run=run)


def shared_changes(plan: Plan) -> tuple[Change, ...]:
    """Return what `changes_that_fit` does, once for each plan in a test process."""
    key = plan_key(plan.run), plan.num_devices, repr(plan.device)
    if key not in _CHANGES:
        _CHANGES[key] = changes_that_fit(plan)
    return _CHANGES[key]
