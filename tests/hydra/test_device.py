"""The group `device`, whose options `task.device` can also select."""

import subprocess
import sys

import hydra
import pytest
from command import run_command
from planning import shared_plan

from xlstm_hydra import devices
from xlstm_hydra.configs import ConfigError, DeviceConfig
from xlstm_hydra.devices import DetectedDevices, device_of
from xlstm_hydra.hydra import VERSION_BASE, conf_dir, known_devices, load, load_device

NAMES = ["a100_40gb", "a100_80gb", "cpu", "h100_80gb", "h200", "tpu_v5e", "tpu_v5p", "tpu_v6e"]
MINE = """
defaults: [h100_80gb, _self_]
name: mine
memory_gib: 3
kinds: []
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder with a device of the user, for --config-dir."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("xlstm_hydra.plan._task.make_plan", shared_plan)
    (tmp_path / "own" / "device").mkdir(parents=True)
    (tmp_path / "own" / "device" / "mine.yaml").write_text(MINE)
    return tmp_path / "own"


def problems(cfg):
    with pytest.raises(ConfigError) as caught:
        load(cfg)
    return [str(problem) for problem in caught.value.problems]


def test_every_option_has_all_values():
    assert sorted(known_devices()) == NAMES
    for device in known_devices().values():
        assert device.has_speeds and 0 < device.memory_bytes <= device.memory_gib * 2**30


@pytest.mark.parametrize("name", NAMES)
def test_every_value_of_an_accelerator_has_a_source(name):
    text = (conf_dir() / "device" / f"{name}.yaml").read_text()
    assert text.startswith("# ")  # the source of what has none of its own
    assert any(source in text for source in ("data sheet", "Google Cloud documentation", "Measured with JAX"))


@pytest.mark.parametrize("key", ["device", "task.device"])
def test_the_deprecated_name_of_a_device_still_works(compose, key):
    assert load(compose("task=plan", f"{key}=v6e")).device == load_device("tpu_v6e")


def test_the_deprecated_name_of_a_device_is_printed_with_the_new_one_once():
    command = [sys.executable, "-m", "xlstm_hydra", "--cfg", "job", "device=v6e"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr == "xlstm-hydra: device=v6e is deprecated: write device=tpu_v6e\n"


def recognized(kind):
    """Name of the device option for a device kind of JAX."""
    return device_of(DetectedDevices(kind, "gpu", 1, 1, 2**30, 2**30, 1), None).name


def test_a_device_is_recognized_by_its_kind_in_jax():
    assert recognized("NVIDIA H100 80GB HBM3") == load_device("h100_80gb").name
    assert recognized("TPU v5 lite") == load_device("tpu_v5e").name
    assert recognized("abacus") == "abacus"


def test_devices_are_read_the_same_with_and_without_hydra(monkeypatch):
    monkeypatch.setattr("xlstm_hydra._hooks.hooks.known_devices", None)
    assert devices.known_devices() == known_devices()


def test_options_of_another_apps_group_device_are_ignored(mine):
    (mine / "device" / "gpu.yaml").write_text("index: 0")
    with hydra.initialize_config_dir(str(mine), **VERSION_BASE):
        assert recognized("TPU v5 lite") == load_device("tpu_v5e").name
        assert "gpu" not in known_devices() and "mine" in known_devices()


def test_a_device_of_the_user_is_recognized_by_its_kind(mine):
    (mine / "device" / "mine.yaml").write_text(MINE.replace("[]", "[abacus]"))
    with hydra.initialize_config_dir(str(mine), **VERSION_BASE):
        assert recognized("abacus") == "mine"


def test_no_two_options_have_the_same_kind():
    kinds = [kind for device in known_devices().values() for kind in device.kinds]
    assert len(kinds) == len(set(kinds))


def test_a_plan_takes_the_device_by_its_name_or_by_its_group(compose):
    by_name = load(compose("task=plan", "task.device=a100_40gb")).device
    assert by_name == load(compose("task=plan", "device=a100_40gb")).device == load_device("a100_40gb")
    assert load(compose("task=plan")).device == load_device("h100_80gb")


def test_only_a_plan_requires_a_device(compose):
    assert load(compose()).device is None
    assert load(compose("device=h200")).device == load_device("h200")


def test_two_different_devices_are_rejected(compose):
    [problem] = problems(compose("task=plan", "task.device=h200", "device=cpu"))
    assert problem.startswith("task.device='h200', device.name='CPU, 2 cores': a plan is for a single kind of device")
    assert load(compose("task=plan", "task.device=h200", "device=h200")).device == load_device("h200")


def test_values_can_be_changed_one_by_one(compose):
    device = load(compose("task=plan", "device=h100_80gb", "device.memory_fraction=0.95")).device
    assert device is not None and device.memory_bytes == int(0.95 * load_device().memory_gib * 2**30)


UNKNOWN = "no such option. Did you mean 'h100_80gb'? Known: " + ", ".join(NAMES)


def test_an_unknown_name_lists_the_known_ones(compose):
    assert problems(compose("task=plan", "task.device=h100_80g")) == [f"task.device='h100_80g': {UNKNOWN}."]
    with pytest.raises(ConfigError, match="device='abacus': no such option. Known: a100_40gb"):
        load_device("abacus")


@pytest.mark.parametrize("name", ["", "a/b", "../device/cpu", "x y", "cpu,h200", "[cpu]", "${oc.env:HOME}", "null "])
def test_a_name_is_not_parsed_by_hydras_grammar(name):
    with pytest.raises(ConfigError, match="no such option"):
        load_device(name)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("device.memory_gib=0", "device.memory_gib=0.0: must be greater than 0"),
        ("device.memory_fraction=1.5", "device.memory_fraction=1.5: must be at most 1"),
        ("device.platform=abacus", "device.platform='abacus': not a known value. Choose cpu, gpu or tpu."),
        ("device.network_bandwidth=0", "device.network_bandwidth=0.0: must be greater than 0"),
        ("device.devices_per_host=0", "device.devices_per_host=0: must be 1 or more"),
    ],
)
def test_an_invalid_value_is_rejected(compose, override, words):
    assert words in problems(compose("task=plan", "device=h200", override))[0]


@pytest.mark.parametrize("override", ["task.device=mine", "device=mine"])
def test_a_device_of_the_user_is_found_next_to_the_built_in_ones(mine, override):
    done = run_command("--config-dir", str(mine), "task=plan", override, "task.parameters=none")
    assert done.status == 0, done.err
    assert "8 x mine" in done.out


def test_a_device_of_the_user_is_found_in_the_search_path(mine):
    search_path = f"hydra.searchpath=[file://{mine}]"
    done = run_command(search_path, "task=plan", "task.device=mine", "task.parameters=none")
    assert done.status == 0, done.err
    assert "8 x mine" in done.out
    assert run_command("-m", search_path, "task=plan", "task.device=mine").status == 0
    done = run_command(search_path, "task=plan", "task.device=mine", "task.nope=3", "trainer.batch_size=-1")
    assert done.status == 2 and "no such option" not in done.err


def test_values_of_a_device_of_the_user_are_checked(mine):
    (mine / "device" / "mine.yaml").write_text(MINE.replace("memory_gib: 3", "memory_gib: -3"))
    done = run_command("--config-dir", str(mine), "task=plan", "task.device=mine")
    assert (done.status, done.err) == (2, "xlstm-hydra: device.memory_gib=-3.0: must be greater than 0\n")


def test_a_value_without_an_option_of_the_group_asks_for_an_option(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_command("task=plan", "device.memory_gib=3")
    assert (done.status, done.err) == (
        2,
        "xlstm-hydra: device: no such key. No option of this group is selected: add device=OPTION.\n",
    )


def test_plans_in_python_can_have_their_own_device():
    fields = load_device("cpu").to_dict()
    assert DeviceConfig(**fields) == load_device("cpu")
