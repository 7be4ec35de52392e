"""Mistakes in the user's YAML files: one message with the file, the line or the key, and the fix."""

import os
import sys
from pathlib import Path

import pytest
from command import run_command

import xlstm_hydra.train

HEADER = "# @package _global_\n"

MISTAKES = {
    # what a key or a value is
    "unknown key": ("trainer: {max_step: 3}", "line 2: trainer.max_step: no such key. Did you mean trainer.max_steps?"),
    "wrong type": ("trainer:\n  max_steps: abc", "line 3: trainer.max_steps: expected int, got 'abc'"),
    "a list for keys": ("trainer: [1, 2]", "line 2: trainer: expected a mapping, got [1, 2]"),
    "a value for keys": ("trainer: 3", "line 2: trainer: expected a mapping, got 3"),
    "unknown group": ("trainr: {seed: 3}", "line 2: trainr: no such group. Did you mean 'trainer'?"),
    "a key with a dot": ("trainer.seed: 3", "line 2: trainer.seed: keys in a file cannot contain dots. Write trainer"),
    "broken rule": ("optimizer:\n  lr: -1", "line 3: optimizer.lr=-1.0: must be 0 or more"),
    "missing value": ("defaults: [override /data: text]\ndata:\n  path: ???", "line 4: data.path: missing."),
    "missing interpolation": ("trainer:\n  seed: ${nope.x}", "line 3: trainer.seed='${nope.x}': refers to a key"),
    "missing resolver": ("trainer:\n  seed: ${nope:x}", "line 3: trainer.seed='${nope:x}': there is no resolver nope"),
    "key of Hydra's": ("hydra:\n  run:\n    dirr: x", "line 4: hydra.run.dirr: no such key. Did you mean hydra.run.di"),
    "nothing for keys": ("trainer:", "line 2: trainer: expected a mapping, got null"),
    "another target": ("model:\n  _target_: os.x", "line 3: model._target_='os.x': must be xlstm_hydra.hydra.make_"),
    # the text of a file
    "null for a key": ("trainer:\n  ~: 3", "line 3, column 3: YAML reads the key ~ as null. For text, quote it"),
    "word for a key": ("trainer:\n  on: 3", "line 3, column 3: YAML reads the key on as true. For text, quote"),
    "no key": ("trainer: {? : 3}", ": no key before the colon"),
    "tab": ("trainer:\n\tseed: 3", "line 3, column 1: tabs are not allowed here; indent with spaces"),
    "duplicate key": ("trainer:\n  seed: 3\n  seed: 4", "line 4, column 3: duplicate key seed, first set on line 3."),
    "unclosed interpolation": ("trainer:\n  seed: ${x", "column 9: '${x' is not a valid interpolation. Write ${key}, "),
    "unclosed brace": ("trainer: {seed: 3\nmodel: {}", "expected a comma or }; the enclosing value starts on line 2"),
    "unclosed quote": ("a: 'x\nb: 3", "a quote is not closed; the enclosing value starts on line 2"),
    "indentation": ("trainer:\n  seed: 3\n   max_steps: 3", "line 4, column 13: a key is not allowed here; check the "),
    "reserved character": ("a: %x", "line 2, column 4: a value cannot start with '%'; quote it"),
    "Python object": ("trainer: !!python/object:os.x {}", "line 2, column 10: the tag !!python/object:os.x is not sup"),
    "unknown alias": ("trainer: *x", "line 2, column 10: found undefined alias 'x'"),
    "alias in itself": ("a: &a [*a]", "line 2, column 4: an alias cannot refer to a node that contains it"),
    "two documents": ("a: 1\n---\nb: 2", "line 3, column 1: the file has two documents; remove the line ---"),
    "only a text": ("hello", "line 2, column 1: a config must be a mapping, got a single value."),
    "only a number": ("3", "line 2, column 1: a config must be a mapping, got a single value."),
    "a list": ("- a", "line 2, column 1: a config must be a mapping, got a list."),
    "zero byte": ("a: \0", "line 2: the file contains a character that YAML does not allow: '\\x00'"),
    "not UTF-8": (b"\ntrainer: {x: \xff}", "line 2: the file is not UTF-8 text: it contains the byte 0xff. Save it as"),
    # the defaults list
    "unknown option": ("defaults:\n  - override /model: tinny", "line 3: model='tinny': no such option. Did you mean "),
    "unknown entry": ("defaults:\n  - othr", "line 3: experiment='othr': no such option. Did you mean 'other'?"),
    "override of no group": ("defaults:\n  - override /foo: x", "line 3: override /foo: no such group."),
    "override before": ("defaults: [override /model: tiny, other]", "line 2: override /model: must come after the ent"),
    "no list": ("defaults: tiny", "line 2, column 11: defaults must be a list, got a single value."),
    "keys for a list": ("defaults:\n  model: tiny", "line 3, column 3: defaults must be a list, got a mapping."),
    "a number in it": ("defaults: [override /model: 3]", "line 2, column 12: an entry of defaults must be a name or a"),
    "two options": ("defaults: [override /optimizer: [sgd, adamw]]", "line 2: optimizer: expected one option, got ['s"),
    "chosen twice": ("defaults: [/optimizer: sgd]", "line 2: optimizer: the defaults list already selects an option "),
    "optional and chosen twice": ("defaults:\n  - optional /model: x", "line 3: model: the defaults list already"),
    "override without a slash": (
        "defaults:\n  - override optimizer: sgd",
        "line 3: override optimizer: there is no group experiment/optimizer to override. Write `override /optimizer: ",
    ),
    "group without a slash": (
        "defaults:\n  - optimizer: sgd",
        "line 3: experiment/optimizer='sgd': there is no such group. Write `/optimizer: sgd`: without the slash, the ",
    ),
    "override at a package": (
        "defaults:\n  - override /model@foo: tiny",
        "line 3: override /model@foo: the config has no group model in the package foo. Write `override /model: tiny`.",
    ),
    "two _self_": ("defaults:\n  - _self_\n  - other\n  - _self_", "line 5, column 5: duplicate _self_, first listed"),
    "misspelt keyword": ("defaults:\n  - overide /model: llama_7b", "expected `override` or `optional` before /mod"),
    "interpolation in it": ("defaults:\n  - override /model: ${nope}", "line 3: defaults: ${nope} must refer to a"),
    "interpolation of Hydra's": ("hydra:\n  run:\n    dir: a/${nope}", "line 4: hydra.run.dir='a/${nope}': refers to"),
    "search path": ("hydra:\n  searchpath: [x]", "line 3: hydra.searchpath: can only be set in the primary config."),
    "circle": ("defaults: [mine]", "defaults: the file includes itself: experiment/mine -> experiment/mine"),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of experiments in the current folder. The experiment `other` is valid."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    write(tmp_path / "conf" / "experiment" / "other.yaml", HEADER + "trainer: {max_steps: 3}\n")
    return tmp_path / "conf"


def write(file: Path, text: str | bytes) -> None:
    """Write a file of text or bytes."""
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())


def with_mistake(folder: Path, name: str) -> str:
    """Write an experiment with a mistake, and return the expected message."""
    text, words = MISTAKES[name]
    text = HEADER.encode().rstrip() + text if isinstance(text, bytes) else HEADER + text
    write(folder / "experiment" / "mine.yaml", text)
    return words


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_file_gives_one_message_with_its_location(folder, name):
    words = with_mistake(folder, name)
    done = run_command("--config-dir=conf", "experiment=mine")
    assert done.status == 2
    assert done.err.startswith("xlstm-hydra: conf/experiment/mine.yaml") and done.err.count("\n") == 1
    assert words in done.err


@pytest.mark.parametrize(
    "name", ["unknown key", "tab", "broken rule", "circle", "only a text", "unclosed interpolation"]
)
def test_the_table_of_a_sweep_has_the_same_message(folder, name):
    words = with_mistake(folder, name)
    done = run_command("-m", "--config-dir=conf", "experiment=mine,other")
    assert done.status == 2
    [row] = [line for line in done.err.splitlines() if "experiment=mine" in line]
    assert "conf/experiment/mine.yaml" in row and words in row


@pytest.mark.parametrize("sweep", [[], ["-m"]], ids=["a run", "a sweep"])
def test_a_required_group_that_a_recipe_sets_to_null_is_rejected(folder, sweep):
    write(folder / "experiment" / "mine.yaml", HEADER + "defaults: [override /trainer: null]\n")
    done = run_command(*sweep, "--config-dir=conf", "experiment=mine", "task=plan")
    assert done.status == 2 and not list(folder.parent.glob("*run*/*/*"))
    assert "trainer=null: the group is required, but a defaults list sets it to null. Choose an" in done.err


@pytest.mark.parametrize("arguments", [["hydra.searchpath=[conf]"], ["hydra/sweeper=basic", "--config-dir=conf", "-m"]])
def test_other_ways_to_a_file_have_the_same_message(folder, arguments):
    words = with_mistake(folder, "unknown key")
    done = run_command(*arguments, "experiment=mine")
    assert done.status == 2 and words in done.err


def test_a_jobs_record_has_the_reason_where_invalid_points_are_skipped(folder, monkeypatch):
    words = with_mistake(folder, "unknown key")
    monkeypatch.setattr(xlstm_hydra.train, "train", lambda run, folder, overrides: None)
    done = run_command("-m", "--config-dir=conf", "experiment=mine,other", "trainer.ignore_plan=true",
                       "hydra.sweeper.on_invalid=skip", "hydra.sweep.dir=sweep")  # fmt: skip
    assert words in Path("sweep/sweep.jsonl").read_text(), done.err


def test_all_mistakes_of_a_file_and_of_the_command_line_are_reported_at_once(folder):
    text = "trainer:\n  max_step: 3\n  seed: x\nmodel: {num_head: 2, dtype: bf16}\ntrainr: {}\n"
    write(folder / "experiment" / "mine.yaml", HEADER + "defaults: [override /data: txt]\n" + text)
    done = run_command("--config-dir=conf", "experiment=mine", "parallel=fsdpp", "optimizer.lr=-1")
    assert "8 problems:" in done.err
    for words in (
        *("line 2: data='txt'", "line 4: trainer.max_step: no", "line 5: trainer.seed: expected int, got 'x'"),
        *("line 6: model.num_head: no", "line 6: model.dtype='bf16'", "line 7: trainr: no such group"),
        *("parallel='fsdpp': no such option", ". optimizer.lr=-1.0: must be"),
    ):
        assert words in done.err


def test_mistakes_in_the_text_of_a_file_do_not_hide_each_other(folder):
    write(folder / "experiment" / "mine.yaml", HEADER + "a: {b: 1, b: 2}\nc: ${x\nd: !e 3\ndefaults: f\n")
    assert "4 problems:" in run_command("--config-dir=conf", "experiment=mine").err


@pytest.mark.parametrize(
    "flags", [[], ["hydra.run.dir=b/${nope}"], ["-m", "trainer.seed=1,2"]], ids=["a run", "typed too", "a sweep"]
)
def test_an_interpolation_in_the_node_hydra_is_located(folder, flags):
    write(folder / "experiment" / "mine.yaml", HEADER + "hydra:\n  run: {dir: 'a/${nope}'}\n  sweep: {dir: '${x:}'}\n")
    done = run_command("--config-dir=conf", "experiment=mine", *flags)
    assert done.status == 2
    assert "conf/experiment/mine.yaml, line 4: hydra.sweep.dir='${x:}': there is no resolver x" in done.err
    typed = "hydra.run.dir='b/${nope}': refers to a key that does not exist: nope"
    given = "conf/experiment/mine.yaml, line 3: hydra.run.dir='a/${nope}': refers to a key that does not exist: nope"
    assert (given in done.err, f" {typed}" in done.err) == (("hydra.run.dir=b/${nope}" not in flags), len(flags) == 1)


def test_a_wrong_value_of_a_file_is_not_also_called_missing(folder):
    write(folder / "experiment" / "mine.yaml", HEADER + "defaults: [override /data: text]\ndata: {path: [1]}\n")
    done = run_command("--config-dir=conf", "experiment=mine")
    assert done.err == "xlstm-hydra: conf/experiment/mine.yaml, line 3: data.path: expected str, got [1]\n"


def test_a_group_without_values_does_not_hide_what_is_typed(folder):
    write(folder / "experiment" / "mine.yaml", HEADER + "trainer:\n")
    done = run_command("--config-dir=conf", "experiment=mine", "trainer.max_steps=-1", "trainer.sed=1")
    assert "3 problems:" in done.err and "line 2: trainer: expected a mapping, got null" in done.err
    assert "trainer.max_steps=-1: must be" in done.err and "trainer.sed: no such key" in done.err


def test_a_value_of_the_command_line_is_not_located_in_a_file(folder):
    write(folder / "experiment" / "mine.yaml", HEADER + "trainer: {max_steps: 3}\n")
    done = run_command("--config-dir=conf", "experiment=mine", "trainer.max_steps=-3")
    assert done.err == "xlstm-hydra: trainer.max_steps=-3: must be 1 or more\n"


def test_options_of_the_user_in_our_groups_are_located(folder):
    write(folder / "optimizer" / "mine.yaml", "defaults: [adamw, _self_]\nlrr: 1\nlr: -2\n")
    write(folder / "scheduler" / "mine.yaml", "warmup_steps: 1\n")
    done = run_command("--config-dir=conf", "optimizer=mine", "scheduler=mine")
    assert "conf/optimizer/mine.yaml, line 2: optimizer.lrr: no such key. Did you mean optimizer.lr?" in done.err
    assert "conf/optimizer/mine.yaml, line 3: optimizer.lr=-2.0: must be 0 or more" in done.err
    assert "conf/scheduler/mine.yaml: scheduler.name: missing." in done.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("defaults: [config, _self_]\ntrainer:\n  max_step: 3\n", ", line 3: trainer.max_step: no such"),
        ("defaults: [_self_, config]\ntrainer:\n  max_step: 3\n", ", line 3: trainer.max_step: no such"),
        ("trainer:\n\tmax_steps: 3\n", ", line 2, column 1: tabs are not allowed here"),
        ("defaults: [confg]\n", ", line 1: defaults='confg': no such option. Did you mean 'config'?"),
    ],
    ids=["unknown key", "unknown key before ours", "tab", "unknown config"],
)
def test_a_mistake_in_a_primary_config_is_located(folder, text, words):
    write(folder / "mine.yaml", text)
    done = run_command("--config-dir=conf", "--config-name=mine")
    assert done.status == 2
    assert done.err.startswith(f"xlstm-hydra: conf/mine.yaml{words}") and done.err.count("\n") == 1


def test_a_file_in_a_package_is_located(folder, monkeypatch):
    write(folder / "experiment" / "mine.yaml", HEADER + "trainer: {max_step: 3}\n")
    for file in (folder / "__init__.py", folder / "experiment" / "__init__.py"):
        file.write_text("")
    monkeypatch.setattr(sys, "path", [str(folder.parent), *sys.path])
    done = run_command("hydra.searchpath=[pkg://conf]", "experiment=mine")
    assert "pkg://conf/experiment/mine.yaml, line 2: trainer.max_step: no such key" in done.err


def test_a_file_that_cannot_be_opened_is_named(folder, monkeypatch):
    write(folder / "experiment" / "mine.yaml", HEADER)
    opened = open

    def refuse(file, *args, **kwargs):
        if str(file).endswith("mine.yaml"):
            raise PermissionError(13, "Permission denied", str(file))
        return opened(file, *args, **kwargs)

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr(Path, "read_bytes", lambda self: refuse(self, "rb").read())
    done = run_command("--config-dir=conf", "experiment=mine")
    assert done.status == 2
    assert done.err == "xlstm-hydra: conf/experiment/mine.yaml: cannot be read: Permission denied\n"


def test_a_cycle_through_several_files_is_shown(folder):
    write(folder / "experiment" / "mine.yaml", HEADER + "defaults: [yours]\n")
    write(folder / "experiment" / "yours.yaml", HEADER + "defaults: [mine]\n")
    done = run_command("--config-dir=conf", "experiment=yours")
    assert "includes itself: experiment/yours -> experiment/mine -> experiment/yours" in done.err


FIRST = "The first line must be `# @package _global_`."
HEADERS = {
    "missing": ("trainer: {seed: 3}\n", "part of a run config; the file has no package header."),
    "misspelt": ("# @packge _global_\ntrainer: {seed: 3}\n", "line 1 is not a package header: '# @packge _global_'."),
    "colon": ("# @package: _global_\ntrainer: {seed: 3}\n", "line 1 is not a package header: '# @package: _global_'."),
    "after a comment": (
        f"# mine\n{HEADER}trainer: {{seed: 3}}\n",
        "the package header is on line 2, but must be on the first line.",
    ),
    "at the end": (f"trainer: {{seed: 3}}\n{HEADER}", "the package header is on line 2, but must be on the first"),
    "behind a BOM": (
        f"\ufeff{HEADER}trainer: {{seed: 3}}\n",
        "; a byte order mark (BOM) hides the package header, so save",
    ),
    "empty": ("", "the file has no values."),
    "only comments": ("# nothing\n", "the file has no values."),
    "only defaults": ("defaults: [override /model: tiny]\n", "; the file has no package header."),
}


def refused_recipe(folder: Path, name: str, *arguments: str, group: str = "experiment") -> bool:
    """True if a command rejects a recipe with its file, the mistake in its header, and the fix."""
    text, words = HEADERS[name]
    write(folder / group / "mine.yaml", text)
    done = run_command("--config-dir=conf", *arguments)
    return done.status == 2 and all(word in done.err for word in (f"conf/{group}/mine.yaml: ", words, FIRST))


@pytest.mark.parametrize("name", HEADERS)
def test_a_recipe_without_a_valid_header_is_reported(folder, name):
    assert refused_recipe(folder, name, "experiment=mine")


@pytest.mark.parametrize(
    "name", ["missing", *(pytest.param(name, marks=pytest.mark.slow) for name in ("behind a BOM", "empty"))]
)
def test_an_invalid_header_is_reported_by_cfg_and_in_a_sweep_and_in_other_groups(folder, name):
    assert refused_recipe(folder, name, "experiment=mine", "--cfg", "job")
    assert refused_recipe(folder, name, "experiment=mine,null", "-m")
    assert refused_recipe(folder, name, "debug=mine", group="debug")
    assert refused_recipe(folder, name, "+recipe=mine", group="recipe")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (
            "# @package foo.bar",
            "conf/experiment/mine.yaml: the package header places the values under foo.bar, which",
        ),
        ("# @package trainer.foo", "conf/experiment/mine.yaml, line 2: trainer.foo: no such key"),
        ("# @package", "conf/experiment/mine.yaml, line 1: cannot read the header '# @package'."),
        ("# @package _global_ x", "conf/experiment/mine.yaml, line 1: cannot read the header '# @package _global_ x'."),
    ],
)
def test_a_header_with_an_invalid_package_is_reported(folder, header, words):
    write(folder / "experiment" / "mine.yaml", f"{header}\nseed: 3\n")
    done = run_command("--config-dir=conf", "experiment=mine")
    assert done.status == 2 and words in done.err and done.err.count("\n") == 1


def test_a_recipe_with_nothing_but_a_header_changes_nothing(folder):
    write(folder / "experiment" / "mine.yaml", HEADER)
    done = run_command("--config-dir=conf", "experiment=mine", "--cfg", "job")
    assert (done.status, done.err) == (0, "")


def test_cfg_prints_the_config_and_only_reports_mistakes_in_files(folder):
    write(folder / "experiment" / "mine.yaml", HEADER + "optimizer: {lr: -1}\n")
    done = run_command("--config-dir=conf", "experiment=mine", "trainer.max_steps=-1", "--cfg", "job")
    assert done.status == 2 and "lr: -1.0" in done.out
    assert done.err == "xlstm-hydra: conf/experiment/mine.yaml, line 2: optimizer.lr=-1.0: must be 0 or more\n"


def test_a_broken_rule_is_located_even_if_another_value_does_not_resolve(folder):
    write(folder / "experiment" / "mine.yaml", HEADER + "optimizer: {lr: -1}\n")
    done = run_command("--config-dir=conf", "experiment=mine", "trainer.seed=${nope.x}")
    assert done.err.startswith("xlstm-hydra: 2 problems:") and "mine.yaml, line 2: optimizer.lr=-1.0" in done.err


def test_a_file_outside_of_the_current_folder_has_its_absolute_path(folder, monkeypatch):
    with_mistake(folder, "unknown key")
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    done = run_command("--config-dir=..", "experiment=mine")
    assert f"xlstm-hydra: {os.path.join(folder, 'experiment', 'mine.yaml')}, line 2: " in done.err
