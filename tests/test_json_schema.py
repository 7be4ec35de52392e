"""JSON Schemas of the groups: they accept all of `conf/`, catch mistakes, and are those that the code gives."""

import json
import re
from pathlib import Path

import pytest
from command import run_command
from jsonschema import Draft202012Validator
from omegaconf import OmegaConf
from referencing import Registry, Resource

from xlstm_hydra.hydra import conf_dir
from xlstm_hydra.reference import schema_dir, schemas

SHIPPED = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in schema_dir().glob("*.json")}
REGISTRY = Registry().with_resources([(f"{name}.json", Resource.from_contents(item)) for name, item in SHIPPED.items()])
FILES = sorted(conf_dir().rglob("*.yaml"))
SCHEMA_LINE = re.compile(r"^# yaml-language-server: \$schema=(\S+)$", re.MULTILINE)


def faults(name: str, text: str) -> list[str]:
    """Paths and messages of what a schema does not accept in a YAML text."""
    content = OmegaConf.to_container(OmegaConf.create(text))
    return [f"{fault.json_path}: {fault.message}" for fault in validator(name).iter_errors(content)]


def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(SHIPPED[name], registry=REGISTRY)


def test_the_shipped_schemas_are_those_of_the_code():
    wrong = [name for name in {*SHIPPED, *schemas()} if SHIPPED.get(name) != schemas().get(name)]
    assert not wrong, "run xlstm-hydra --schema conf/xlstm_hydra/schemas"


@pytest.mark.parametrize("name", SHIPPED)
def test_every_schema_is_valid_and_closed(name):
    Draft202012Validator.check_schema(SHIPPED[name])
    assert "additionalProperties" in SHIPPED[name] or "additionalProperties" in SHIPPED[name]["else"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(conf_dir()).as_posix())
def test_every_file_names_its_schema_and_is_accepted(file):
    text = file.read_text(encoding="utf-8")
    [path] = SCHEMA_LINE.findall(text)
    assert (file.parent / path).resolve().parent == schema_dir().resolve()
    assert faults((file.parent / path).stem, text) == []


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("parallel", "fsdp_axis_sise: 8", "'fsdp_axis_sise' was unexpected"),
        ("parallel", "fsdp_axis_size: eight", "'eight'"),
        ("parallel", "fsdp_gather_dtype: bf16", "'bf16'"),
        ("optimizer", "lr: -1.0", "-1.0"),
        ("optimizer", "beta1: 1.5", "1.5"),
        ("model", "embeding_dim: 8", "'embeding_dim' was unexpected"),
        ("model", "norm_type: batchnorm", "'batchnorm'"),
        ("checkpoint", "keep: newest", "'newest'"),
        ("hydra_sweeper", "on_invalid: ignore", "'ignore'"),
        ("hydra_launcher", "partitions: gpu", "'partitions' was unexpected"),
        ("experiment", "trainer: {max_step: 3}", "'max_step' was unexpected"),
        ("experiment", "trainers: {max_steps: 3}", "'trainers' was unexpected"),
        ("debug", "model: {num_blocks: 0}", "0"),
        ("config", "defaults: {model: tiny}", "is not of type 'array'"),
    ],
)
def test_a_mistake_is_caught(name, text, words):
    found = faults(name, text)
    assert found and words in " ".join(found)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("parallel", "fsdp_axis_size: ${oc.env:DEVICES}"),
        ("optimizer", "lr: ???"),
        ("trainer", "{max_steps: '${my.steps}', batch_size: 16}"),
        ("model", "{model_class: my_package.MyModel, my_field: 3}"),
        ("hydra_launcher", "{_target_: my_package.MyLauncher, my_field: 3}"),
        ("experiment", "{defaults: [override /model: my_model, override /data: text], data: {path: books}}"),
        ("device", "memory_gib: 80"),
    ],
)
def test_interpolations_missing_values_and_classes_of_the_user_are_accepted(name, text):
    assert faults(name, text) == []


def test_the_files_in_the_guide_are_accepted():
    page = (Path(__file__).parent.parent / "docs" / "guides" / "editor.md").read_text(encoding="utf-8")
    files = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    names = [SCHEMA_LINE.search(text)[1].rpartition("/")[2].removesuffix(".json") for text in files]
    assert names == ["parallel", "experiment"]
    assert [faults(name, text) for name, text in zip(names, files, strict=True)] == [[], []]


def test_every_field_is_described():
    for name, schema in SHIPPED.items():
        texts = {key: value.get("description", "") for key, value in schema["properties"].items() if "anyOf" in value}
        assert all(texts.values()), name


def test_the_command_writes_them_and_prints_their_paths(tmp_path):
    done = run_command("--schema", str(tmp_path / "schemas"), quiet=False)
    files = done.out.split()
    assert {file.rpartition("/")[2] for file in files} == {f"{name}.json" for name in SHIPPED}
    assert json.loads((tmp_path / "schemas" / "parallel.json").read_text(encoding="utf-8")) == SHIPPED["parallel"]
    assert run_command("--schema", quiet=False).out.split()[0].startswith(str(schema_dir()))


def test_hydra_lists_no_group_of_schemas_and_reads_the_package_of_recipes():
    assert "schemas" not in run_command("--help").out
    assert "max_steps: 3\n" in run_command("debug=fast", "--cfg", "job", "-p", "trainer").out
