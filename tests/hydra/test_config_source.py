"""Hydra's own tests of config sources, on ours. The suite asks for configs of its own making, which no checkpoint has:
they stand in for what is read from one."""

import pytest
from hydra.test_utils.config_source_common_tests import ConfigSourceTestSuite
from omegaconf import OmegaConf

from hydra_plugins.xlstm_hydra_plugin.ckpt_source import CheckpointConfigSource

DEFAULTS = {"defaults": [{"foo": "bar"}], "x": 10}
CONFIGS = {
    "config_without_group": {"group": False},
    "config_with_unicode": {"group": "数据库"},
    "config_with_defaults_list": {"defaults": [{"dataset": "imagenet"}], "key": "value"},
    "configs_with_defaults_list/global_package": (DEFAULTS, "_global_"),
    "configs_with_defaults_list/group_package": (DEFAULTS, "_group_"),
    "dataset": {"dataset_yaml": True},
    "dataset/imagenet": {"name": "imagenet", "path": "/datasets/imagenet"},
    "dataset/cifar10": {"name": "cifar10", "path": "/datasets/cifar10"},
    "optimizer/adam": {},
    "optimizer/nesterov": {},
    "level1/level2/nested1": {"l1_l2_n1": True},
    "level1/level2/nested2": {"l1_l2_n2": True},
    "package_test/none": {"foo": "bar"},
    "package_test/explicit": ({"foo": "bar"}, "a.b"),
    "package_test/global": ({"foo": "bar"}, "_global_"),
    "package_test/group": ({"foo": "bar"}, "_group_"),
    "package_test/group_name": ({"foo": "bar"}, "foo._group_._name_"),
    "package_test/name": ({"foo": "bar"}, "_name_"),
    "primary_config": {},
    "primary_config_with_non_global_package": ({}, "foo"),
}


class Options:
    """Options that the suite expects, in place of those of a checkpoint."""

    paths = tuple(CONFIGS)

    def load(self, path):
        content, package = entry if isinstance(entry := CONFIGS[path], tuple) else (entry, None)
        return OmegaConf.create(content), package


class Source(CheckpointConfigSource):
    """The config source with those options."""

    def __init__(self, provider, path):
        super().__init__(provider, path)
        if self.path == "suite":
            self._found = Options()


@pytest.mark.parametrize(("type_", "path"), [(Source, "ckpt://suite")])
class TestCheckpointConfigSource(ConfigSourceTestSuite):
    """All tests of the suite."""
