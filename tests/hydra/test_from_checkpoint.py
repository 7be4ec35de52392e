"""A saved run is a config source: its groups are options, and `--from` chooses all of them."""

import dataclasses
import json
import sys
import warnings
from typing import Any

import pytest
from command import run_command
from hydra.errors import ConfigCompositionException, SearchPathException
from omegaconf import OmegaConf
from published import tree, with_none_strings
from saved import composed, save, save_text

from xlstm_hydra.configs import ConfigError, LlamaConfig, ModelConfig, ParallelConfig, RunConfig, mLSTMv1Config
from xlstm_hydra.hydra import SavedOptions, load, read
from xlstm_hydra.metadata import Record, read_record, write_metadata
from xlstm_hydra.runs import starting_groups

FIRST = ("parallel=fsdp_tp", "optimizer=lion", "scheduler=linear", "trainer.max_steps=7", "logger=quiet")
SECOND = ("model=llama_165m", "data=synthetic", "optimizer=sgd", "checkpoint=best", "checkpoint.save_every_n_steps=50",
          "trainer.eval_every_n_steps=50")  # fmt: skip


@pytest.fixture(scope="module")
def runs():
    """Metadata of two checkpoints of a run."""
    return {2: composed(*FIRST), 4: composed(*SECOND)}


@pytest.fixture
def saved(tmp_path, runs):
    """Their run folder."""
    for step, run in runs.items():
        save(tmp_path / "run", run, step)
    return tmp_path / "run"


def source(place):
    return f"hydra.searchpath=[ckpt://{place}]"


CHOICES = {"latest": ("", "ckpt", 4), "named": ("@2", "ckpt", 2), "option of a step": ("", "ckpt@2", 2)}


@pytest.mark.parametrize(("suffix", "option", "step"), CHOICES.values(), ids=CHOICES)
def test_all_groups_of_a_checkpoint_compose_to_the_saved_run(compose, saved, runs, suffix, option, step):
    assert load(compose(source(f"{saved}{suffix}"), f"+from={option}")) == runs[step]


def test_the_folder_of_a_checkpoint_is_accepted(compose, saved, runs):
    assert load(compose(source(saved / "checkpoints" / "2"), "+from=ckpt")) == runs[2]


@pytest.mark.parametrize("group", ["model", "parallel", "optimizer", "scheduler", "trainer", "logger"])
def test_one_group_of_a_checkpoint_does_not_change_the_others(compose, saved, runs, group):
    run, default = load(compose(source(f"{saved}@2"), f"{group}=ckpt")), load(compose())
    expected = {name: getattr(runs[2] if name == group else default, name) for name in vars(default)}
    expected["model"] = dataclasses.replace(
        expected["model"], parallel=(runs[2] if group == "parallel" else default).parallel
    )
    assert vars(run) == expected


def test_a_layout_is_chosen_for_the_model_of_a_checkpoint(compose, saved):
    run = load(compose(source(saved), "+from=ckpt", "parallel=tp", "model.num_blocks=3"))
    assert run.parallel == ParallelConfig(model_axis_size=-1, data_axis_size=1)
    assert isinstance(run.model.model_config, LlamaConfig) and run.model.model_config.num_blocks == 3


def test_settings_that_only_concern_the_saved_run_are_not_copied(compose, tmp_path):
    run = load(
        compose("checkpoint.restore=elsewhere@3", "distributed=none", "distributed.device_order=[dp,fsdp,pp,tp]")
    )
    cfg = compose(source(save(tmp_path, run)), "+from=ckpt", "task.name=train")
    assert cfg.checkpoint.restore is None
    assert cfg.distributed.name == "auto" and cfg.distributed.device_order == ["dp", "fsdp", "pp", "tp"]


PARAMETERS = {
    "all groups": (["+from=ckpt"], 4),
    "of a step": (["+from=ckpt@2"], 2),
    "model only": (["model=ckpt@2"], 2),
    "of its own": (["+from=ckpt", "task.checkpoint=other"], None),
}


@pytest.mark.parametrize(("overrides", "step"), PARAMETERS.values(), ids=PARAMETERS)
def test_a_task_uses_the_checkpoint_of_its_model_config(compose, saved, overrides, step):
    task: Any = load(compose(source(saved), "task=evaluate", *overrides)).task
    assert task.checkpoint == ("other" if step is None else str(saved / "checkpoints" / str(step)))


def test_a_task_requires_a_checkpoint_if_the_model_config_has_none(compose, saved):
    with pytest.raises(ConfigError, match="task.checkpoint: missing"):
        load(compose(source(saved), "task=evaluate", "+from=ckpt", "model=tiny"))


def test_options_are_typed(compose, saved):
    with pytest.raises(ConfigCompositionException, match="embeding_dim"):
        compose(source(saved), "+from=ckpt", "model.embeding_dim=3")
    with pytest.raises(ConfigCompositionException, match="optimizer.lr=abc"):
        compose(source(saved), "optimizer=ckpt", "optimizer.lr=abc")


def test_an_integral_float_in_metadata_is_an_integer(compose, saved):
    cfg = compose(source(saved), "+from=ckpt", "trainer.max_steps=1e3", "model.vocab_size=512.0")
    assert (repr(cfg.trainer.max_steps), repr(cfg.model.vocab_size)) == ("1000", "512")


def test_text_of_a_checkpoint_is_not_resolved(compose, tmp_path):
    text = r"${oc.env:HOME}/\${a}/\\"
    content = write_metadata(load(compose("data=text", "data.path=x")))
    content["config"]["data"]["path"] = text
    cfg = compose(source(save_text(tmp_path, json.dumps(content))), "data=ckpt")
    assert OmegaConf.to_container(cfg.data, resolve=True)["path"] == text


def test_values_without_effect_are_left_out_with_a_note():
    parallel = ParallelConfig(remat=["BlockStack"], fsdp_gather_dtype="bfloat16", tp_async_dense=True)
    config = mLSTMv1Config(embedding_dim=32, num_blocks=1, num_heads=4)
    model = ModelConfig("xlstm_hydra.models.mLSTMv1", parallel, config)
    record = Record(writer="xlstm_jax", groups={"model": model, "parallel": parallel}, content={})
    groups, notes = starting_groups(record)
    assert groups["parallel"] == ParallelConfig() == groups["model"].parallel
    assert record.model.parallel == parallel
    assert [note.partition(" ")[0] for note in notes] == [
        "parallel.remat=['BlockStack']",
        "parallel.fsdp_gather_dtype='bfloat16'",
        "parallel.tp_async_dense=true",
    ]


BROKEN = {
    "no run": (None, "hydra.searchpath='{place}': no checkpoints in {place}/checkpoints"),
    "cut off": ('{"format"', "hydra.searchpath={place}/checkpoints/20: not JSON"),
    "unknown field": ('{"format": "xlstm_hydra", "version": 1, "config": {"modell": 1}}', "config"),
}


@pytest.mark.parametrize(("text", "words"), BROKEN.values(), ids=BROKEN)
def test_an_unreadable_checkpoint_gives_one_message(compose, tmp_path, text, words):
    place = tmp_path / "run" if text is None else save_text(tmp_path, text)
    with warnings.catch_warnings(), pytest.raises(SearchPathException) as caught:
        warnings.simplefilter("ignore")  # Hydra's own: the source is not available
        compose(source(place), "+from=ckpt")
    assert words.format(place=place) in str(caught.value) and "\n" not in str(caught.value)


def test_no_class_that_a_checkpoint_names_is_imported(compose, tmp_path):
    content = write_metadata(load(compose()))
    content["config"]["model"]["model_config"]["_type_"] = "antigravity.Config"
    place = save_text(tmp_path, json.dumps(content))
    with warnings.catch_warnings(), pytest.raises(SearchPathException, match="antigravity.Config"):
        warnings.simplefilter("ignore")
        compose(source(place), "+from=ckpt")
    assert "antigravity" not in sys.modules


def shown(*arguments):
    """The config that the command prints."""
    done = run_command("--cfg", "job", *arguments)
    assert done.status == 0, done.err
    return OmegaConf.create(done.out)


FLAGS = {
    "alone": ["--from", "run"],
    "with =": ["--from=run"],
    "behind": ["trainer.seed=0", "--from", "run"],
    "between": ["trainer.seed=0", "--from", "run", "task=train"],
    "the folder": ["--from", "run/checkpoints/4"],
}


@pytest.mark.parametrize("arguments", FLAGS.values(), ids=FLAGS)
def test_the_flag_selects_all_groups(saved, runs, monkeypatch, arguments):
    monkeypatch.chdir(saved.parent)
    assert load(shown(*arguments)) == runs[4]


def test_recipes_and_options_override_the_saved_config(saved, runs, monkeypatch):
    monkeypatch.chdir(saved.parent)
    cfg = shown("--from", "run@2", "debug=fast", "experiment=copying", "parallel=dp", "optimizer.lr=3")
    assert (cfg.checkpoint.save_last, cfg.data.name, cfg.optimizer.name) == (False, "synthetic", "lion")
    assert (cfg.parallel.fsdp_axis_size, cfg.optimizer.lr, cfg.model.context_length) == (1, 3.0, 64)


def test_the_flag_keeps_the_search_path_of_the_command_line(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "optimizer").mkdir(parents=True)
    (tmp_path / "mine" / "optimizer" / "own.yaml").write_text("defaults: [adamw]\nlr: 0.5\n")
    cfg = shown(f"hydra.searchpath=[file://{tmp_path}/mine]", "--from", "run@2", "optimizer=own")
    assert (cfg.optimizer.lr, cfg.scheduler.name) == (0.5, "linear")


def test_the_flag_keeps_the_search_path_of_the_primary_config(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more" / "optimizer").mkdir(parents=True)
    (tmp_path / "more" / "optimizer" / "own.yaml").write_text("defaults: [adamw]\nlr: 0.5\n")
    (tmp_path / "mine").mkdir()
    text = f"defaults: [config, _self_]\nhydra:\n  searchpath: ['file://{tmp_path}/more']\n"
    (tmp_path / "mine" / "app.yaml").write_text(text)
    cfg = shown("--config-dir", "mine", "--config-name", "app", "--from", "run@2", "optimizer=own")
    assert (cfg.optimizer.lr, cfg.scheduler.name) == (0.5, "linear")


def test_a_sweep_can_run_over_steps(saved, runs, monkeypatch):
    monkeypatch.chdir(saved.parent)
    done = run_command("--from", "run", "-m", "from=ckpt@2,ckpt@4,ckpt@5", "optimizer.lr=-1")
    assert done.status == 2
    assert "job 2 (from@_global_=ckpt@5): from='ckpt@5': no such option." in done.err
    assert "Known: ckpt, ckpt@2, ckpt@4." in done.err
    assert "optimizer.lr=-1.0: must be 0 or more" in done.err


def test_the_flag_reports_values_without_effect(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_text(tmp_path / "run", with_none_strings(tree("llama")), "checkpoint_20")
    done = run_command("--cfg", "job", "--from", "run")
    note = "--from run: parallel.remat=['mLSTMBlock'] is reset to []: not a module class of this model"
    assert done.status == 0 and note in done.err


@pytest.mark.parametrize("kind", ["mlstm", "mlstm_v1", "llama"])
def test_a_run_of_xlstm_jax_is_a_config_source_too(compose, tmp_path, kind):
    save_text(tmp_path, with_none_strings(tree(kind)), "checkpoint_20")
    run, _ = read(compose(source(tmp_path), "+from=ckpt"))
    groups, _ = starting_groups(read_record(with_none_strings(tree(kind))))
    assert {name: getattr(run, name) for name in groups} == groups


REFUSED = {
    "nothing": (["--from="], "--from: requires a run folder"),
    "a flag": (["--from", "--cfg", "job"], "--from: requires a run folder"),
    "no run": (["--from", "nope"], "--from='nope': no checkpoints in"),
    "no step": (["--from", "run@3"], "--from='run@3': no checkpoint of step 3. Saved steps: 2 or 4."),
    "twice": (["--from", "run", "--from=run"], "--from: given more than once"),
    "no source": (["hydra.searchpath=[ckpt://nope]", "model=tiny"], "hydra.searchpath='nope': no checkpoints in"),
    "no option": (["--from", "run", "optimizer=ckpt@3"], "optimizer='ckpt@3': no such option"),
}


@pytest.mark.parametrize(("arguments", "words"), REFUSED.values(), ids=REFUSED)
def test_an_invalid_checkpoint_path_gives_one_message(saved, monkeypatch, arguments, words):
    monkeypatch.chdir(saved.parent)
    done = run_command(*arguments)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"xlstm-hydra: {words}") and done.err.count("\n") == 1


def test_the_paths_of_a_source_are_groups_and_steps(saved):
    paths = SavedOptions(str(saved), "RUN").paths
    groups, names = ({path.split("/")[part] for path in paths} for part in (0, 1))
    recorded = {field.name for field in dataclasses.fields(RunConfig)} - {"task", "device"}
    assert groups == {"from", "parallel", *recorded} and names == {"ckpt", "ckpt@2", "ckpt@4"}
