"""Mistakes in flags and in the node `hydra` are reported like mistakes in a run."""

from pathlib import Path

import pytest
from command import run_command

PATH = "A _target_ is the dotted path of a class that is installed or in the current folder."
LINES = [
    # where configs come from
    ("--config-name=nope", "--config-name='nope': there is no such config. Known: config. To add a folder with your"),
    ("--config-name=confg", "--config-name='confg': there is no such config. Did you mean 'config'?"),
    ("--config-dir=nope", "--config-dir='nope': the folder does not exist. The current folder is "),
    ("--config-dir=file", "--config-dir='file': is a file, not a folder."),
    ("--config-dir=nope --cfg job", "--config-dir='nope': the folder does not exist."),
    ("--config-path=nope", "--config-path='nope': the folder does not exist. Relative paths are resolved from "),
    ("--config-path=/nope", "--config-path='/nope': the folder does not exist."),
    ("--config-path=pkg://nope", "--config-path='pkg://nope': there is no such package. The package must be imp"),
    ("hydra.searchpath=[nope]", "hydra.searchpath='nope': the folder does not exist."),
    ("hydra.searchpath=[pkg://nope]", "hydra.searchpath='pkg://nope': there is no such package."),
    ("hydra.searchpath=[s3x://nope]", "hydra.searchpath='s3x://nope': s3x:// is not a supported URL scheme. "),
    ("hydra.searchpath=nope", "hydra.searchpath: expected a list of folders, got 'nope'. Write hydra.searchpath=[nop"),
    ("hydra.searchpath=[[nope]]", "hydra.searchpath: every entry must be a folder or a URL, got ['nope']"),
    ("-m hydra.searchpath=[a],[b]", "hydra.searchpath=[a],[b]: all jobs of a sweep share one search path. Write a"),
    # what is printed
    ("--cfg job -p nope", "--package=nope: no such key. Known: task, "),
    ("--cfg job -p model.num_head", "--package=model.num_head: no such key. Did you mean model.num_heads?"),
    ("--cfg job -p hydra.run", "--package=hydra.run: no such key. Known: task, "),
    ("--cfg hydra -p hydra.runn", "--package=hydra.runn: no such key. Did you mean hydra.run?"),
    ("--cfg job -p checkpoint.init_from", "--package=checkpoint.init_from: the value is null"),
    # groups
    ("hydra/callbacks=nope", "hydra/callbacks: the group has no options. Use --config-dir=DIR to add a folder"),
    ("hydra/outptu=default", "hydra/outptu: no such group. Did you mean 'hydra/output'?"),
    ("foo/bar=x", "foo/bar: no such group. To list all groups, use --info defaults."),
    # values
    ("hydra.output_subdir=/etc/passwd/x", "hydra.output_subdir='/etc/passwd/x': must be a relative path inside the "),
    ("-m hydra.output_subdir=../x", "hydra.output_subdir='../x': must be a relative path inside the run folder. For "),
    ("+hydra.job.env_set.A=null", "hydra.job.env_set.A: expected str, got null. Write 'null' in quotes for the text"),
    ("+hydra.job.env_set.A=[1]", "hydra.job.env_set.A: expected str, got [1]"),
    ("-m hydra.sweeper.params={optimizer.lr:null}", "hydra.sweeper.params: expected str for optimizer.lr, got null."),
    ("-m +hydra.sweeper.params.trainer.seed=3", "hydra.sweeper.params.trainer.seed: single keys of "),
    ("-m hydra.sweeper.params.trainer.seed=range(0,3)", "hydra.sweeper.params.trainer.seed: single keys of"),
    ("-m hydra.verbose=true,false", "hydra.verbose=true,false: Hydra's own settings must be the same for all "),
    # options of a saved run
    ("from=ckpt@100", "from=ckpt@100: selects a checkpoint of a saved run, but no run is given. Use --from RUN@100, "),
    ("+from=ckpt", "+from=ckpt: selects a checkpoint of a saved run, but no run is given. Use --from RUN, for exam"),
    # what Hydra makes objects of
    ("+hydra.callbacks.x.y=3", f"hydra.callbacks.x._target_: missing. {PATH}"),
    ("-m +hydra.callbacks.x.y=3 trainer.seed=1,2", f"hydra.callbacks.x._target_: missing. {PATH}"),
    ("+hydra.callbacks.x=3", f"hydra.callbacks.x: expected a mapping with a _target_, got 3. {PATH}"),
    ("+hydra.callbacks.x._target_=nope.X", f"hydra.callbacks.x._target_: cannot import 'nope.X'. {PATH}"),
    ("-m +hydra.callbacks.x._target_=nope.X", f"hydra.callbacks.x._target_: cannot import 'nope.X'. {PATH}"),
    ("-m +hydra.launcher.nope=3", "hydra.launcher.nope: no such key"),
    ("-m hydra.launcher._target_=nope.X", "hydra.launcher._target_='nope.X': is not a Hydra launcher plugin."),
    ("-m hydra.sweeper._target_=nope.X", "hydra.sweeper._target_='nope.X': is not a Hydra sweeper plugin."),
]  # fmt: skip


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")


@pytest.mark.filterwarnings("ignore:Callback")
@pytest.mark.parametrize(("line", "words"), LINES, ids=[line for line, _ in LINES])
def test_a_mistake_outside_of_the_run_gives_one_message_and_status_2(line, words):
    done = run_command(*line.split(" "))
    assert done.status == 2
    assert done.err.startswith(f"xlstm-hydra: {words}") and done.err.count("\n") == 1
    assert [file.name for file in Path().iterdir()] == ["file"]


def test_options_from_an_invalid_search_path_are_not_reported_too():
    done = run_command("hydra.searchpath=[nope]", "model=mine", "experiment=mine")
    assert done.err.startswith("xlstm-hydra: hydra.searchpath='nope'") and done.err.count("\n") == 1


def test_a_search_path_in_a_primary_config_is_checked_and_located():
    Path("conf").mkdir()
    Path("conf/mine.yaml").write_text("defaults: [config]\nhydra:\n  searchpath:\n    - nope\n    - s3x://a\n")
    done = run_command("--config-dir=conf", "--config-name=mine", "model=mine")
    assert done.status == 2 and "2 problems:" in done.err
    assert "conf/mine.yaml, line 3: hydra.searchpath='nope': the folder does not exist." in done.err
    assert "conf/mine.yaml, line 3: hydra.searchpath='s3x://a': s3x:// is not a supported URL scheme" in done.err


@pytest.mark.parametrize("flags", [["-m"], ["hydra.mode=MULTIRUN"]], ids=" ".join)
def test_a_sweep_cannot_resume_a_run(flags):
    done = run_command("resume=x", *flags, "optimizer.lr=1,2")
    assert done.status == 2
    assert done.err.startswith(
        "xlstm-hydra: resume='x': continues a single run and cannot be combined with -m. Remove "
    )
    assert "--from x" in done.err and "resume_sweep=DIR" in done.err
