"""`xlstm-hydra --info NAME`: every field, group and option, described from the code and the files in `conf/`."""

import pytest
from command import run_command

from xlstm_hydra.problems import ConfigError
from xlstm_hydra.reference import Catalog, group_page, groups_table, info, page_names

CATALOG = Catalog()
ENTRIES = [entry for group in CATALOG.groups for entries in CATALOG.fields(group).values() for entry in entries]
ABOUT = {
    "parallel.fsdp_axis_size": [
        "over which parameters, gradients and",
        "type     integer",
        "default  1 (other options)",
        "-1 (auto)",
        "an axis size must be positive, or -1 to be inferred",
        "at most one axis size can be -1",
        "changes only layout or speed; part of the compiled step",
        "8: experiment=mlstm_v1_7b",
        "-1: parallel=fsdp, fsdp_tp",
    ],
    "optimizer.lr": [
        "default  0.001",
        "must be 0 or more",
        "an argument of the compiled step",
        "5e-3: experiment=copying",
    ],
    "checkpoint.keep": ["allowed  latest or best", "bookkeeping", "best: checkpoint=best", "trainer.eval_batches"],
    "trainer.max_steps": ["3: debug=fast", "200: experiment=copying", "must be 1 or more"],
    "model.gate_soft_cap": ["number or null", "15.0: model=mlstm_120m"],
    "model.num_heads": ["parallel.model_axis_size must divide model.num_heads", "only in  mlstm, mlstm_v1, xlstm"],
    "model.gate_dtype": ["allowed  float32, bfloat16 or float16"],
    "task.top_k": ["only in  generate", "has no effect with task.temperature=0"],
    "hydra.sweeper.num_samples": ["must be 1 or more, or null"],
    "hydra.sweeper.on_invalid": ["allowed  stop or skip"],
    "hydra.launcher.jobs_at_once": ["only in  local", "default  1"],
    "hydra.launcher.gpus_per_node": ["8: hydra/launcher=slurm_multinode"],
}


def test_every_field_of_every_class_has_a_meaning_and_a_type():
    assert len(ENTRIES) > 250
    assert [entry for entry in ENTRIES if not entry.meaning.endswith((".", ".)"))] == []
    assert [entry for entry in ENTRIES if not (entry.type_text and entry.default_text)] == []


@pytest.mark.parametrize(("key", "texts"), ABOUT.items())
def test_a_field_is_described_with_its_default_rules_effect_and_options(key, texts):
    found = info(key, width=120)
    assert [text for text in texts if text not in found] == []


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("parallel", ["Options (parallel=OPTION, default: dp)", "fsdp_tp", "fsdp_axis_size", "fsdp_axis_name"]),
        ("model", ["mlstm_v1_7b", "slstm_at", "(xlstm)"]),
        ("experiment", ["copying", "mlstm_v1_7b"]),
        ("hydra.launcher", ["slurm_multinode", "jobs_at_once"]),
        ("model=mlstm_v1_7b", ["mlstm_v1_7b.yaml", "configs.mLSTMv1Config", "model.embedding_dim", "4096", "-10.0"]),
        ("model=tiny", ["256", "default: 50304; bytes"]),
        ("experiment=copying", ["data=synthetic", "trainer.batch_size"]),
    ],
)
def test_a_group_and_an_option_are_described(name, texts):
    found = info(name, width=120)
    assert [text for text in texts if text not in found] == []


@pytest.mark.parametrize("width", [60, 100])
@pytest.mark.parametrize("name", [*CATALOG.groups, "model=mlstm_v1_7b", "model.embedding_dim"])
def test_the_text_fits_the_terminal(name, width):
    lines = info(name, width=width).splitlines()
    assert [line for line in lines if len(line) > width and len(line.split()) > 1] == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("parallell", "no such group or field. Did you mean parallel?"),
        ("parallel.fsdp_axis_sise", "Did you mean parallel.fsdp_axis_size?"),
        ("fsdp_axis_size", "Did you mean parallel.fsdp_axis_size?"),
        ("optimizer.learning_rate", "Did you mean optimizer.lr?"),
        ("trainer.lr", "Did you mean optimizer.lr?"),
        ("seed", "Did you mean task.seed, data.seed, trainer.seed or hydra.sweeper.seed?"),
        ("hydra.sweeper.num_sample", "Did you mean hydra.sweeper.num_samples?"),
        ("hydra.job.chdir", "xlstm-hydra --cfg hydra"),
        ("qqqq", "Groups: task, model, parallel"),
        ("parallel=fsdpp", "no such option. Did you mean 'fsdp'?"),
    ],
)
def test_an_unknown_name_gets_the_nearest_one(name, words):
    with pytest.raises(ConfigError) as refused:
        info(name)
    assert words in str(refused.value)


def test_the_command_prints_the_text_and_refuses_unknown_names():
    assert "default  1 (other options)" in run_command("--info", "parallel.fsdp_axis_size", quiet=False).out
    done = run_command("--info=paralel", quiet=False)
    assert (done.status, done.out) == (2, "") and "Did you mean parallel?" in done.err
    assert run_command("--info", "parallel", "model=tiny", quiet=False).status == 2


@pytest.mark.parametrize(
    ("argument", "words"),
    [("searchpath", "Config search path"), ("defaults", "Defaults List"), ("config", "embedding_dim")],
)
def test_arguments_of_hydra_keep_their_meaning(argument, words, logging_of_the_tests):
    assert words in run_command("--info", argument).out


def test_help_mentions_it():
    assert "--info NAME" in run_command("--help").out


def test_options_of_the_user_are_described(tmp_path):
    folder = tmp_path / "my_configs"
    (folder / "parallel").mkdir(parents=True)
    (folder / "parallel" / "wide.yaml").write_text(
        "# Eight devices share each parameter.\ndefaults:\n  - fsdp\n  - _self_\n\nfsdp_axis_size: 8 # one host\n"
    )
    (folder / "parallel" / "broken.yaml").write_text("a: [1\n")
    for arguments in (
        ["--config-dir", str(folder)],
        [f"hydra.searchpath=[{folder}]"],
        [f"hydra.searchpath=[file://{folder}]"],
    ):
        found = run_command("--info", "parallel", *arguments, quiet=False).out
        assert "Eight devices share each parameter." in found and "cannot be read" in found
        assert (
            "8: parallel=wide (one host)"
            in run_command("--info", "parallel.fsdp_axis_size", *arguments, quiet=False).out
        )
        assert "parallel.fsdp_min_weight_size" in run_command("--info", "parallel=wide", *arguments, quiet=False).out


def test_pages_have_every_field_and_option():
    listed = groups_table(CATALOG)
    for group, name in page_names(CATALOG).items():
        page = group_page(CATALOG, group)
        assert f"[`{group}`]({name})" in listed
        assert [key for key in CATALOG.fields(group) if f"\n### `{key}`\n" not in page] == []
        assert [option for option in CATALOG.options[group] if f"| `{option}` |" not in page] == []
