"""The processes of a run, from the config or from the environment of `srun`. No JAX."""

import pytest

from xlstm_hydra.configs import ConfigError, DistributedConfig, ParallelConfig, RunConfig, TrainerConfig, idle_tasks

EXPLICIT = {"name": "explicit", "coordinator_address": "node7:1234", "num_processes": 2, "process_id": 1}
AUTO = DistributedConfig(name="auto")


def step(tasks=4, rank=2, local=0, **changes):
    """The environment of a task of `srun -N2 -n4`."""
    environ = {
        "SLURM_JOB_ID": "17",
        "SLURM_NTASKS": str(tasks),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": str(tasks),
        "SLURM_STEP_NODELIST": "node[07-08]",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
        "SLURM_PROCID": str(rank),
        "SLURM_NODEID": str(rank // 2),
        "SLURM_LOCALID": str(local),
    } | changes
    return {name: value for name, value in environ.items() if value is not None}


BAD = {
    "an unknown name": ({"name": "mpi"}, "Choose none, auto or explicit"),
    "no address": ({"name": "explicit"}, "coordinator_address=null, num_processes=null, process_id=null: address,"),
    "half an address": (EXPLICIT | {"process_id": None}, "process_id=null: address, number of processes"),
    "no port": (EXPLICIT | {"coordinator_address": "node7"}, "coordinator_address='node7': must be host:port"),
    "a port that is none": (EXPLICIT | {"coordinator_address": "node7:0"}, "must be host:port"),
    "a number too high": (EXPLICIT | {"process_id": 2}, "process_id=2, num_processes=2: processes are numbered from 0"),
    "a negative number": (EXPLICIT | {"process_id": -1}, "process_id=-1: must be 0 or more"),
    "an address for srun": (EXPLICIT | {"name": "auto"}, "coordinator_address='node7:1234', name='auto': has no effe"),
    "a timeout for one process": ({"heartbeat_timeout_seconds": 10}, "has no effect with this name"),
    "no time": ({"name": "auto", "heartbeat_timeout_seconds": 0}, "heartbeat_timeout_seconds=0: must be 1 or more"),
    "a device twice": ({"local_device_ids": [0, 0]}, "must contain at least one number"),
    "no device": ({"local_device_ids": []}, "must contain at least one number; all must"),
}


@pytest.mark.parametrize(("fields", "words"), BAD.values(), ids=BAD)
def test_invalid_settings_are_refused(fields, words):
    with pytest.raises(ConfigError) as caught:
        DistributedConfig(**fields)
    assert words in str(caught.value)


def test_explicit_settings_give_the_address_and_process_ids():
    assert DistributedConfig(**EXPLICIT).process_info({})[:3] == ("node7:1234", 2, 1)


@pytest.mark.parametrize(
    "environ",
    [{}, step(tasks=1, rank=0), step(SLURM_STEP_ID=None, SLURM_STEP_NUM_TASKS=None)],
    ids=["no SLURM", "one task", "a batch script without srun"],
)
def test_there_is_one_process_where_srun_has_not_started_several(environ):
    assert AUTO.process_info(environ) is None


def test_tasks_that_a_batch_script_leaves_idle_are_counted():
    assert idle_tasks(step(SLURM_STEP_ID=None)) == 3
    assert idle_tasks(step()) == idle_tasks({}) == 0


def test_with_none_there_is_one_process_in_any_environment():
    assert DistributedConfig(name="none").process_info(step()) is None


def test_every_task_of_a_step_has_its_number_and_the_same_address():
    places = [AUTO.process_info(step(rank=rank)) for rank in range(4)]
    assert [place.process_id for place in places] == [0, 1, 2, 3]
    assert {(place.coordinator_address, place.num_processes) for place in places} == {("node07:61457", 4)}


def test_steps_of_one_job_use_other_ports():
    addresses = {AUTO.process_info(step(SLURM_STEP_ID=str(number))).coordinator_address for number in range(9)}
    assert len(addresses) == 9


HOSTS = {"node[001-004,007],login": "node001", "a,b": "a", "a": "a", "gpu[3,5]": "gpu3", "n[1-2]-ib": "n1-ib"}


@pytest.mark.parametrize(("nodelist", "host"), HOSTS.items(), ids=HOSTS)
def test_the_first_host_of_a_list_is_found(nodelist, host):
    assert AUTO.process_info(step(SLURM_STEP_NODELIST=nodelist)).coordinator_address == f"{host}:61457"


GPUS = {
    "one task on the host": ({"SLURM_STEP_TASKS_PER_NODE": "1(x4)", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, None),
    "GPUs bound to tasks": ({"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_PER_TASK": "2"}, None),
    "GPUs bound one by one": ({"CUDA_VISIBLE_DEVICES": "0", "SLURM_TRES_BIND": "gres/gpu:single:1"}, None),
    "--gpu-bind=none": ({"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPU_BIND": "none"}, (1,)),
    "--gpu-bind=verbose,none": ({"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_TRES_BIND": "gres/gpu:verbose,none"}, (1,)),
    "bound to none, counted for each": (
        {"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_PER_TASK": "1", "SLURM_TRES_BIND": "gres/gpu:none"},
        (1,),
    ),
    "as many tasks as GPUs": ({"CUDA_VISIBLE_DEVICES": "0,1"}, (1,)),
    "more GPUs than tasks": ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, (2, 3)),
    "nobody says how many": ({}, (1,)),
    "no GPUs": ({"CUDA_VISIBLE_DEVICES": ""}, None),
}


@pytest.mark.parametrize(("changes", "ids"), GPUS.values(), ids=GPUS)
def test_tasks_of_a_host_share_the_gpus_that_they_all_see(changes, ids):
    assert AUTO.process_info(step(rank=1, local=1, **changes)).local_device_ids == ids


def test_typed_device_ids_override_those_of_slurm():
    typed = DistributedConfig(name="auto", local_device_ids=[3])
    assert typed.process_info(step(CUDA_VISIBLE_DEVICES="0,1")).local_device_ids == (3,)


BROKEN = {
    "no rank": ({"SLURM_PROCID": None}, "SLURM_PROCID is not set. Start the run with srun, or set name=none"),
    "no number": ({"SLURM_PROCID": "x"}, "SLURM_PROCID='x' must be a number"),
    "too high": ({"SLURM_PROCID": "4"}, "SLURM_PROCID=4 must be less than SLURM_STEP_NUM_TASKS=4"),
    "no list": ({"SLURM_STEP_NODELIST": ""}, "contains no host"),
    "no form": ({"SLURM_STEP_TASKS_PER_NODE": "two"}, "is not of the form 2(x3),1"),
    "too many": ({"SLURM_NODEID": "7"}, "SLURM_NODEID=7 is not among the hosts"),
    "uneven": ({"CUDA_VISIBLE_DEVICES": "0,1,2"}, "the 2 tasks of this host cannot share 3 GPUs"),
}


@pytest.mark.parametrize(("changes", "words"), BROKEN.values(), ids=BROKEN)
def test_an_inconsistent_slurm_environment_is_refused(changes, words):
    with pytest.raises(ConfigError) as caught:
        AUTO.process_info(step(**changes))
    assert words in str(caught.value)


def run_of(tiny_model, distributed, **trainer):
    tiny_model.parallel = ParallelConfig(data_axis_size=1, fsdp_axis_size=8)
    return RunConfig(model=tiny_model, trainer=TrainerConfig(**trainer), distributed=distributed)


@pytest.fixture
def tiny_model():
    from tiny import FAMILIES

    return FAMILIES["v1"](vocab_size=256)


def test_devices_are_simulated_in_every_process(tiny_model):
    run_of(tiny_model, DistributedConfig(**EXPLICIT), simulated_devices=4)
    with pytest.raises(ConfigError, match=r"number of devices, 4\."):
        run_of(tiny_model, DistributedConfig(**EXPLICIT | {"num_processes": 1, "process_id": 0}), simulated_devices=4)
    with pytest.raises(ConfigError, match=r"devices, 16.* Each of the 2 processes has trainer.simulated_devices=8"):
        run_of(tiny_model, DistributedConfig(**EXPLICIT), simulated_devices=8)


def test_the_processes_of_srun_count_at_launch_but_not_in_a_saved_run(tiny_model):
    run = run_of(tiny_model, AUTO, simulated_devices=4)
    assert list(run.launch_rules(step(tasks=2, rank=0))) == []
    [problem] = run.launch_rules({})
    assert "number of devices, 4" in str(problem)


def test_known_sizes_are_checked_before_srun_starts_anything(tiny_model):
    with pytest.raises(ConfigError, match=r"trainer.batch_size=9, .*fsdp_axis_size\(8\)"):
        run_of(tiny_model, AUTO, simulated_devices=4, batch_size=9)


def test_process_addresses_are_not_recorded():
    order = ["dp", "fsdp", "pp", "tp"]
    here = DistributedConfig(**EXPLICIT, local_device_ids=[0], heartbeat_timeout_seconds=9, device_order=order)
    assert here.lasting() == DistributedConfig(name="auto", device_order=order)
    assert DistributedConfig().lasting() == DistributedConfig()


@pytest.mark.parametrize("order", [["tp"], ["tp", "tp", "fsdp", "dp"], ["tp", "fsdp", "pp", "data"]], ids=str)
def test_a_device_order_names_every_mesh_axis_once(tiny_model, order):
    with pytest.raises(ConfigError, match=r"distributed.device_order=.* each of the mesh axes dp, fsdp, pp, tp once"):
        run_of(tiny_model, DistributedConfig(device_order=order))


def test_simulated_devices_cannot_be_chosen_by_number(tiny_model):
    with pytest.raises(ConfigError, match="simulated devices are not GPUs"):
        run_of(tiny_model, DistributedConfig(local_device_ids=[0]), simulated_devices=8)


def test_only_gpus_are_chosen_by_number(tiny_model):
    run = run_of(tiny_model, DistributedConfig(local_device_ids=[0]))
    assert list(run.platform_rules("gpu")) == []
    [problem] = run.platform_rules("tpu")
    assert "distributed.local_device_ids=[0]: selects GPUs, but the platform of the devices present is tpu" in str(
        problem
    )
