"""Hugging Face models that cannot be read: one message each, with the fix."""

import json

import pytest
from tiny import tiny_run

from xlstm_hydra.checkpoint import find_weights, load_params
from xlstm_hydra.configs import ConfigError, resolve_classes
from xlstm_hydra.metadata import MetadataError, read_record
from xlstm_hydra.runs import find_checkpoint

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
INDEX = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-3.safetensors"}})
ON_HUB = {
    "id": "NX-AI/xLSTM-7b",
    "id with a step": "NX-AI/xLSTM-7b@100",
    "address": "https://huggingface.co/NX-AI/xLSTM-7b",
    "file of an address": "https://huggingface.co/NX-AI/xLSTM-7b/tree/main",
    "scheme": "hf://NX-AI/xLSTM-7b",
}


@pytest.mark.parametrize("find", [find_weights, find_checkpoint])
@pytest.mark.parametrize("place", ON_HUB.values(), ids=ON_HUB)
def test_a_model_on_the_hub_is_named_with_the_command_that_downloads_it(tmp_path, monkeypatch, find, place):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        find(place, "RUN")
    assert "hf download NX-AI/xLSTM-7b --local-dir xLSTM-7b, and give xLSTM-7b." in str(error.value)
    assert str(error.value).startswith(f"RUN={place!r}: ") and "\n" not in str(error.value)


def test_a_missing_folder_in_an_existing_one_is_not_a_model_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    with pytest.raises(ConfigError, match="no checkpoints in .* does not exist") as error:
        find_checkpoint("outputs/my_run", "RUN")
    assert "hf download" not in str(error.value)


def model(folder, **files):
    """Write these files to a folder. In their names, `__` is a dot."""
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


FOLDERS = {
    "a whole model": (
        {"config__json": "{}", "model__safetensors": ""},
        "is a folder with a Hugging Face model, not",
    ),
    "no config": ({"model__safetensors": ""}, r"has Hugging Face weights \(model.safetensors\), but no config.json"),
    "pickled": ({"pytorch_model__bin": ""}, r"has only pickled weights \(pytorch_model.bin\).*save_pretrained"),
}


@pytest.mark.parametrize(("files", "words"), FOLDERS.values(), ids=FOLDERS)
def test_a_hugging_face_folder_given_as_a_run_is_explained(tmp_path, files, words):
    with pytest.raises(ConfigError, match=f"^RUN='{tmp_path}': .*{words}"):
        find_checkpoint(str(model(tmp_path, **files)), "RUN")


WEIGHTS = {
    "none": ({}, "has no model.safetensors. Download the whole model: hf download"),
    "pickled": (
        {"pytorch_model__bin": ""},
        r"only pickled weights \(pytorch_model.bin\), .*can run code. Convert them",
    ),
    "no index": ({"model-1__safetensors": ""}, "neither model.safetensors nor .*index.json, but model-1.safetensors"),
    "pointer": (
        {"model__safetensors": POINTER},
        "model.safetensors: cannot be read: the file is only a Git LFS pointer.* git lfs pull",
    ),
    "pointer of an index": (
        {"model__safetensors__index__json": POINTER},
        "index.json: cannot be read: the file is only a Git LFS pointer.* git lfs pull",
    ),
    "shards": (
        {"model__safetensors__index__json": INDEX, "model-2__safetensors": ""},
        "2 of the 3 listed files are missing: model-1.safetensors, model-3.safetensors. Download them again",
    ),
    "empty": (
        {"model__safetensors": ""},
        "model.safetensors: cannot be read: .* The file may be incomplete; download it",
    ),
}


@pytest.mark.parametrize(("files", "words"), WEIGHTS.values(), ids=WEIGHTS)
def test_weights_that_cannot_be_read_are_one_message_with_the_way_out(tmp_path, files, words):
    with pytest.raises(ConfigError, match=words) as error:
        load_params(model(tmp_path, config__json="{}", **files), resolve_classes(tiny_run("v1").model))
    assert len(error.value.problems) == 1


@pytest.mark.parametrize("text", [POINTER, POINTER.encode()], ids=["text", "bytes"])
def test_a_pointer_of_git_lfs_in_place_of_metadata_is_named(text):
    with pytest.raises(MetadataError, match="^the file is only a Git LFS pointer. Run git lfs pull in its repository"):
        read_record(text)


def test_a_run_folder_may_have_its_own_config_json(tmp_path):
    (tmp_path / "checkpoints" / "20" / "metadata").mkdir(parents=True)
    (tmp_path / "checkpoints" / "20" / "metadata" / "metadata").write_text("{}")
    assert find_weights(str(model(tmp_path, config__json="{}")), "RUN") == tmp_path / "checkpoints" / "20"
