"""A closed terminal, pipe or folder never ends a command in a traceback, and never ends a run."""

import os
import pty
import subprocess
import sys

import pytest

COMMAND = [sys.executable, "-m", "xlstm_hydra"]
RUN = """
import logging
from xlstm_hydra import tasks
from xlstm_hydra.cli import main as cli

def talk(run, folder, overrides):
    for number in range(5000):
        logging.getLogger("xlstm_hydra").info("line %d, which is long enough to fill a pipe", number)
        print("a line that is printed")
    (folder / "done").touch()

tasks.run_task = talk
cli.main()
"""
"""A run that prints a lot and does not train."""
ON_FULL_DISK = """
import os
from xlstm_hydra import tasks
from xlstm_hydra.cli import main as cli

def talk(run, folder, overrides):
    print("lost", flush=True)
    (folder / "is_full").write_text(str(os.path.samestat(os.fstat(1), os.stat("/dev/full"))))

tasks.run_task = talk
cli.main()
"""
"""A run that notes whether its output is still the same file after a line of it could not be written."""


def in_shell(line, folder, *command):
    """Run a line of the shell, in which $@ is a command."""
    arguments = ["bash", "-c", line, "bash", *command]
    return subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=120)


SHOWN = {
    "a closed output": '"$@" --cfg job >&-',
    "a closed error stream": '"$@" --cfg job 2>&- >/dev/null',
    "a closed input": '"$@" --cfg job <&- >/dev/null',
    "all closed": '"$@" --cfg job <&- >&- 2>&-',
    "a reader that ends at once": '"$@" --cfg all | true; exit ${PIPESTATUS[0]}',
    "a reader of one line": '"$@" --help | head -1 >/dev/null; exit ${PIPESTATUS[0]}',
}


@pytest.mark.parametrize("line", SHOWN.values(), ids=SHOWN)
def test_output_without_a_reader_is_not_an_error(line, tmp_path):
    done = in_shell(line, tmp_path, *COMMAND)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_message_that_cannot_be_printed_keeps_its_exit_status(tmp_path):
    done = in_shell('"$@" optimizer.lr=-1 2>&-', tmp_path, *COMMAND)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full on this machine")
def test_output_to_a_full_disk_gives_one_message(tmp_path):
    done = in_shell('"$@" --cfg job >/dev/full', tmp_path, *COMMAND)
    assert done.returncode == 1
    assert done.stderr == "xlstm-hydra: standard output cannot be written: No space left on device\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full on this machine")
def test_output_to_a_full_disk_is_tried_again(tmp_path):
    command = [sys.executable, "-c", ON_FULL_DISK, "hydra.run.dir=run"]
    done = in_shell('"$@" >/dev/full', tmp_path, *command)
    assert done.returncode == 1 and "No space left on device" in done.stderr
    assert (tmp_path / "run" / "is_full").read_text() == "True"


TALKING = {
    "a pipe that is closed": '"$@" | head -1 >/dev/null; exit ${PIPESTATUS[0]}',
    "a closed output": '"$@" >&-',
    "nothing is open": '"$@" <&- >&- 2>&-',
}


@pytest.mark.parametrize("line", TALKING.values(), ids=TALKING)
def test_a_run_continues_and_logs_to_its_file_without_a_terminal(line, tmp_path):
    (tmp_path / "talk.py").write_text(RUN)
    done = in_shell(line, tmp_path, sys.executable, "talk.py", "hydra.run.dir=run")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "run" / "done").exists()
    assert "line 4999" in (tmp_path / "run" / "xlstm-hydra.log").read_text().splitlines()[-1]


def test_a_run_continues_when_its_terminal_is_gone(tmp_path):
    (tmp_path / "talk.py").write_text(RUN)
    master, slave = pty.openpty()
    command = [sys.executable, "talk.py", "hydra.run.dir=run"]
    process = subprocess.Popen(command, cwd=tmp_path, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    assert b"line 0" in os.read(master, 1000)
    os.close(master)
    assert process.wait(timeout=120) == 0
    assert "line 4999" in (tmp_path / "run" / "xlstm-hydra.log").read_text().splitlines()[-1]


ANY = {
    "show": ["xlstm_hydra.cli.main", "--cfg", "job"],
    "train": ["xlstm_hydra.cli.main"],
    "metadata": ["xlstm_hydra.cli.metadata", "show", "run"],
}


@pytest.mark.parametrize("command", ANY.values(), ids=ANY)
def test_a_removed_current_folder_gives_one_message(command, tmp_path):
    (tmp_path / "gone").mkdir()
    (tmp_path / "command.py").write_text(f"from {command[0]} import main; main()")  # as an installed command does
    command = [sys.executable, str(tmp_path / "command.py"), *command[1:]]
    done = in_shell('cd gone && rmdir ../gone && "$@"', tmp_path, *command)
    assert done.returncode == 2
    assert ": the current folder cannot be used: No such file or directory. The folder may have" in done.stderr
    assert done.stderr.count("\n") == 1


def test_names_that_are_not_text_are_printed_with_escapes(tmp_path):
    (tmp_path / "talk.py").write_text(RUN.replace("range(5000)", "range(1)").replace("line %d", "\\udcff %d"))
    done = in_shell('PYTHONIOENCODING=ascii "$@"', tmp_path, sys.executable, "talk.py", "hydra.run.dir=run")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("\\udcff 0")
    assert "\\udcff 0" in (tmp_path / "run" / "xlstm-hydra.log").read_text()
