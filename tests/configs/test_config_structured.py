"""OmegaConf accepts the class of every group as a structured config."""

import dataclasses

import pytest
from omegaconf import OmegaConf

from xlstm_hydra import configs

CLASSES = [cls for cls in vars(configs).values() if isinstance(cls, type) and issubclass(cls, configs.ConfigDict)]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_omegaconf_accepts_the_class_and_keeps_its_defaults(cls):
    node = OmegaConf.structured(cls)
    for field in dataclasses.fields(cls):
        is_open = field.default is field.default_factory is dataclasses.MISSING
        assert OmegaConf.is_missing(node, field.name) is is_open
        if field.default is not dataclasses.MISSING:
            assert node[field.name] == field.default


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_field_says_what_it_means(cls):
    import ast
    import inspect
    import textwrap

    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body  # pyright: ignore[reportAttributeAccessIssue]
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign):
            assert isinstance(after, ast.Expr), f"{cls.__name__}.{ast.unparse(node.target)} has no docstring"
