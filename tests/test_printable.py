"""Text from a file cannot move the cursor, start a new message or reverse the writing direction."""

import json
import logging
import shlex
import subprocess
import sys

import pytest
import yaml
from command import run_command
from saved import composed, save, save_text

from xlstm_hydra._printable import PrintableFormatter, printable, shell_line
from xlstm_hydra._table import table
from xlstm_hydra.cli import metadata as metadata_cli
from xlstm_hydra.configs import ConfigError, Problem
from xlstm_hydra.errors import TaskError, reason, text_of
from xlstm_hydra.formats import log_ignored
from xlstm_hydra.hydra import as_override
from xlstm_hydra.metadata import write_metadata

EVIL = "日本 é\x1b[2J\u202e\x07\x85\u2028\nxlstm-hydra: all is well"
SHOWN = r"日本 é\x1b[2J\u202e\x07\x85\u2028\nxlstm-hydra: all is well"
UNPRINTABLE = {"\x1b", "\u202e", "\x07", "\x85", "\u2028"}


def test_only_what_is_not_printable_is_escaped():
    assert printable(EVIL) == SHOWN and printable(SHOWN) == SHOWN
    assert printable("a\nb\x1b", keep="\n") == "a\nb\\x1b" and printable("\ud800") == "\\ud800"


PROBLEMS = {
    "a key": Problem.about(EVIL, "no such field"),
    "a value": Problem({"data.path": EVIL}, "is wrong"),
    "a rule": Problem.about("data.path", f"is not {EVIL}"),
    "a fix": Problem.about("data.path", "is wrong", f"Write {EVIL}."),
    "a place": Problem.about("x", "is wrong").at(EVIL),
}


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_a_problem_is_one_line_of_printable_text(problem):
    assert str(problem).isprintable() and SHOWN[:20] in str(problem)
    assert not UNPRINTABLE & {*str(ConfigError([problem, problem]))}


@pytest.mark.parametrize(
    "error", [ValueError(EVIL), OSError(EVIL), TaskError(EVIL), FileNotFoundError(2, "none", EVIL)], ids=repr
)
def test_errors_of_all_kinds_are_printable(error):
    assert not UNPRINTABLE & {*text_of(error, "xlstm-hydra")} and reason(error).isprintable()


def test_cells_of_tables_are_printable():
    assert [*table([["a", EVIL]], left=(0, 1))] == [f"a  {SHOWN}"]


def test_a_warning_of_a_command_that_starts_no_run_is_printable():
    body = f"with command('xlstm-metadata'):\n    logging.getLogger('any').warning({EVIL!a})"
    program = f"import logging\nfrom xlstm_hydra.cli._messages import command\n{body}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, encoding="utf-8")
    assert done.stderr.splitlines() == [SHOWN.partition(r"\nxlstm")[0], "  xlstm-hydra: all is well"]


def test_unknown_fields_that_are_ignored_are_logged_as_printable_text(caplog):
    log_ignored("run", [EVIL], [EVIL])
    assert len(caplog.messages) == 2 and all(text.isprintable() and SHOWN in text for text in caplog.messages)


def test_a_log_message_cannot_begin_another():
    record = logging.LogRecord("x", logging.INFO, "", 0, "read %s", (EVIL,), None)
    text = PrintableFormatter("%(message)s").format(record)
    assert text.split("\n") == ["read " + SHOWN.partition(r"\nxlstm")[0], "  xlstm-hydra: all is well"]


def test_any_shell_reads_a_command_line_with_any_text_as_it_was():
    words = ["a b", EVIL, "it's \\n\x1b $(x) `y` 100% %s \\", "plain", "\\047\x1b7"]
    line = shell_line(words)
    assert line.isprintable()
    done = subprocess.run(["sh", "-c", f"printf '%s\\0' {line}"], capture_output=True)
    assert done.stdout.decode().split("\0")[:-1] == words
    assert shell_line(["a b", "c"]) == shlex.join(["a b", "c"])


# ---- commands


@pytest.fixture
def metadata(capsys, monkeypatch):
    """Runs `xlstm-metadata`. Returns what it prints."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["xlstm-metadata", *map(str, arguments)])
        with pytest.raises(SystemExit):
            metadata_cli.main()
        captured = capsys.readouterr()
        text = captured.out + captured.err
        assert not UNPRINTABLE & {*text} and "\nxlstm-hydra: all" not in text
        return captured.out, captured.err

    return run


@pytest.fixture
def run(tmp_path):
    """A run whose data lies at an evil path."""
    return save(tmp_path / "run", composed("data=text", as_override("data.path", EVIL)))


def test_a_saved_text_is_shown_as_yaml_that_gives_it_back(metadata, run):
    out, _ = metadata("show", run)
    assert yaml.safe_load(out)["config"]["data"]["path"] == EVIL
    assert json.loads(metadata("show", run, "--json")[0])["config"]["data"]["path"] == EVIL


def test_a_saved_text_is_an_override_that_a_shell_reads(metadata, run):
    out, _ = metadata("overrides", run)
    assert "$(printf 'data.path=" in out and out.count("\n") == 1


def test_a_saved_text_is_printable_in_differences(metadata, run, tmp_path):
    assert SHOWN[:30] in metadata("diff", run, save(tmp_path / "other", composed()))[0]


CHANGES = {
    "a field": lambda content: content["config"]["trainer"].update({EVIL: 1}),
    "a name": lambda content: content["config"]["optimizer"].update(name=EVIL),
    "a class": lambda content: content["config"]["model"].update(model_class=EVIL),
    "a section": lambda content: content.update({EVIL: 1}),
    "a group": lambda content: content["config"].update({EVIL: {}}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("command", ["show", "overrides", "diff", "check"])
def test_what_is_refused_of_a_record_is_printable(metadata, tmp_path, command, change):
    content = write_metadata(composed())
    change(content)
    place = save_text(tmp_path, json.dumps(content))
    _, err = metadata(command, place, *[place] * (command == "diff"))
    assert (
        err.count("\n") == 1
        and "日本" in err.encode().decode("unicode_escape", "ignore") + err + "日本"[: "\\u" in err]
    )


@pytest.mark.parametrize("key", ["--from", "resume="], ids=["from", "resume"])
def test_what_is_refused_of_a_run_to_start_from_is_printable(tmp_path, key):
    content = write_metadata(composed())
    content["config"]["trainer"][EVIL] = 1
    place = str(save_text(tmp_path, json.dumps(content)))
    done = run_command(*(["--from", place] if key == "--from" else [f"{key}{place}"]))
    assert (done.status, done.err.count("\n")) == (2, 1) and SHOWN in done.err


def test_what_is_wrong_in_a_file_of_the_users_is_printable(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "conf" / "experiment" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(f"# @package _global_\ntrainer: {{{json.dumps(EVIL)}: 1}}\n")
    done = run_command("--config-dir=conf", "experiment=mine")
    assert done.status == 2 and not UNPRINTABLE & {*done.err} and done.err.count("\n") == 1
