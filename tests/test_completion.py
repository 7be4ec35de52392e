"""Tab completion: the words that are offered, and what they become in bash, zsh and fish."""

import contextlib
import io
import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest
from hydra import compose, initialize
from hydra._internal.utils import get_args_parser

from xlstm_hydra.cli import completion
from xlstm_hydra.cli.metadata import main as metadata
from xlstm_hydra.configs import OPTIONS, SlurmLauncherConfig
from xlstm_hydra.hydra import VERSION_BASE


def offered(line: str, shell: str = "fish", **environ: str) -> list[str]:
    """The completions at the end of a line that begins after the name of the command."""
    return completion.query(shell, {"COMP_LINE": f"xlstm-hydra {line}", **environ})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a run that has two checkpoints, and a file."""
    for name in ("100", "200", "300.orbax-checkpoint-tmp-1"):
        (tmp_path / "outputs" / "my_run" / "checkpoints" / name / "metadata").mkdir(parents=True)
    (tmp_path / "outputs" / "empty").mkdir()
    (tmp_path / "my data").mkdir()
    (tmp_path / "my data" / "a b.txt").write_text("text")
    monkeypatch.chdir(tmp_path)
    return tmp_path


LINES = {
    "": {"model=", "model.", "optimizer=", "experiment=", "resume=", "hydra.", "hydra/"},
    "opt": {"optimizer=", "optimizer."},
    "parallel=fs": {"parallel=fsdp", "parallel=fsdp_tp"},
    "-m parallel=dp,fs": {"parallel=dp,fsdp", "parallel=dp,fsdp_tp"},
    "-m parallel=fsdp,fs": {"parallel=fsdp,fsdp_tp"},
    "debug=": {"debug=fast", "debug=nans"},
    "optimizer.b": {"optimizer.beta1=", "optimizer.beta2="},
    "optimizer=sgd optimizer.mo": {"optimizer.momentum="},
    "optimizer=sgd optimizer.b": set(),
    "-m optimizer=sgd,lion optimizer.m": {"optimizer.momentum="},
    "optimizer.nesterov=": {"optimizer.nesterov=true", "optimizer.nesterov=false"},
    "trainer.remat_policy=d": {"trainer.remat_policy=dots", "trainer.remat_policy=dots_with_no_batch_dims"},
    "model=llama_7b model.attention_backend=": {f"model.attention_backend={it}" for it in ("xla", "cudnn", "null")},
    "model=xlstm_7_1 model.slstm_f": {"model.slstm_forget_gate=", "model.slstm_fgate_bias_init_range="},
    "model.slstm": set(),
    "experiment=mlstm_v1_7b data.pa": {"data.path=", "data.pad_last="},
    "device.m": set(),
    "+device=h200 device.mem": {"device.memory_gib=", "device.memory_bandwidth=", "device.memory_fraction="},
    "task=plan task.device=h": {"task.device=h100_80gb", "task.device=h200"},
    "+deb": {"+debug="},
    "~exp": {"~experiment"},
    "++optimizer.l": {"++optimizer.lr="},
    "hydra/l": {"hydra/launcher="},
    "hydra/launcher=slurm hydra.launcher.gpus": {"hydra.launcher.gpus_per_node=", "hydra.launcher.gpus_per_task="},
    "hydra.sweeper.on_invalid=": {"hydra.sweeper.on_invalid=stop", "hydra.sweeper.on_invalid=skip"},
    "hydra.mode=M": {"hydra.mode=MULTIRUN"},
    "hydra.job.ch": {"hydra.job.chdir="},
    "--from out": {"outputs/"},
    "--from outputs/": {"outputs/my_run", "outputs/empty/"},
    "--from outputs/my_run": {"outputs/my_run@100", "outputs/my_run@200"},
    "--from outputs/my_run@1": {"outputs/my_run@100"},
    "--from=outputs/my_run@": {"--from=outputs/my_run@100", "--from=outputs/my_run@200"},
    "resume=outputs/my_run@": {"resume=outputs/my_run@100", "resume=outputs/my_run@200"},
    "task=evaluate task.checkpoint=outputs/my_run@2": {"task.checkpoint=outputs/my_run@200"},
    "--from outputs/my_run parallel=c": {"parallel=ckpt"},
    "--from outputs/my_run optimizer.b": {"optimizer.beta1=", "optimizer.beta2="},
    "data=text data.path=my": {"data.path=my data/"},
    "data=text data.path='my data/": {"data.path=my data/a b.txt"},
    "hydra.run.dir=o": {"hydra.run.dir=outputs/"},
    "--config-dir o": {"outputs/"},
    "--cfg ": {"job", "hydra", "all"},
    "--info op": {"optimizer", "optimizer=", "optimizer."},
    "--info optimizer.l": {"optimizer.lr"},
    "--info parallel=fsdp_": {"parallel=fsdp_tp"},
    "--info pl": {"plugins"},
    "--mul": {"--multirun"},
    "--package optimizer.l": {"optimizer.lr"},
    "nothing": set(),
    "nothing=": set(),
}


@pytest.mark.parametrize("line", LINES)
def test_a_word_is_completed(folder, line):
    found = offered(line)
    assert LINES[line] <= set(found) if not line else LINES[line] == set(found)
    assert not any(text.startswith(("xlstm_hydra", "from")) for text in found)


def test_only_the_text_before_the_cursor_counts():
    line = "xlstm-hydra parallel=fs optimizer=lion"
    assert offered("parallel=fs optimizer=lion", COMP_POINT=str(line.index(" opt"))) == offered("parallel=fs")


def test_options_and_keys_of_the_user_are_completed(tmp_path):
    for name, text in {"model/gru": "hidden: 64\nis_deep: true", "set/a": "x: {y: 1}", "deep/er/b": "z: 1"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "mine.yaml").write_text("defaults: [config, {override optimizer: sgd}, _self_]")
    (tmp_path / "model" / "larger.yaml").write_text("defaults: [mlstm_v1_7b, _self_]\nmore: 1")
    for flags in (f"--config-dir {tmp_path}", f"-cd={tmp_path}", f"hydra.searchpath=[file://{tmp_path}]"):
        assert offered(f"{flags} model=g") == ["model=gru"]
    flags = f"--config-dir {tmp_path}"
    assert offered(f"{flags} model=gru model.") == ["model.hidden=", "model.is_deep="]
    assert offered(f"{flags} model=gru model.is_deep=f") == ["model.is_deep=false"]
    assert {"model.more=", "model.gate_soft_cap="} <= set(offered(f"{flags} model=larger model."))
    assert offered(f"{flags} +set=a set.x.") == ["set.x.y="]
    assert offered(f"{flags} +de") == ["+debug=", "+deep/", "+device="]
    assert offered(f"{flags} +deep/") == ["+deep/er="]
    assert offered(f"{flags} --config-name mi") == ["mine"]
    assert offered(f"{flags} --config-name mine optimizer.mo") == ["optimizer.momentum="]


def test_the_keys_of_a_saved_run_are_those_of_its_config(folder):
    config = {"optimizer": {"name": "lion"}, "model": {"config_class": "xlstm_hydra.configs.LlamaConfig"}}
    (folder / "outputs" / "my_run" / "config.yaml").write_text(json.dumps(config))
    for source in ("--from outputs/my_run@100", "resume=outputs/my_run"):
        assert offered(f"{source} optimizer.nest") == []
        assert offered(f"{source} model.qk") == ["model.qk_norm="]
        assert offered(f"{source} optimizer=sgd optimizer.nest") == ["optimizer.nesterov="]


@pytest.mark.parametrize("choice", ["model=llama_165m", "model=tiny", "optimizer=lion", "task=plan", "parallel=auto"])
def test_the_keys_are_those_of_the_composed_config(choice):
    group = choice.partition("=")[0]
    with initialize(config_path=None, **VERSION_BASE):
        node = compose("config", overrides=[choice])[group]
    composed = {f"{group}.{key}=" for key in node if not key.startswith("_")}
    assert set(offered(f"{choice} {group}.")) == composed


def test_every_option_of_our_launchers_and_classes_has_keys():
    assert {f"hydra.launcher.{key}=" for key in SlurmLauncherConfig.__dataclass_fields__} <= set(
        offered("hydra/launcher=slurm hydra.launcher.")
    )
    for group, name in (("data", "text"), ("scheduler", "cosine"), ("task", "generate")):
        assert {f"{group}.{key}=" for key in OPTIONS[name].__dataclass_fields__} == set(
            offered(f"{group}={name} {group}.")
        )


def test_the_flags_are_those_of_the_command():
    hydra = {text for action in get_args_parser()._actions for text in action.option_strings}
    assert {*offered("--"), *offered("-")} == hydra | {"--from", "--lenient", "--schema", "--trust"}


def test_the_subcommands_of_xlstm_metadata_are_completed(folder, capsys):
    def complete(line: str) -> list[str]:
        return completion.query("fish", {"COMP_LINE": f"xlstm-metadata {line}"})

    def help_of(*arguments: str) -> str:
        with mock.patch.object(sys, "argv", ["xlstm-metadata", *arguments, "--help"]), pytest.raises(SystemExit):
            metadata()
        return capsys.readouterr().out

    commands = complete("")
    assert set(commands) == set(re.findall(r"^    ([a-z]+)\b", help_of(), re.MULTILINE))
    for name in commands:
        assert set(complete(f"{name} --")) == set(re.findall(r"(?<!\w)--[a-z][a-z-]+", help_of(name)))
    assert complete("import --format x") == ["xlstm_jax"]
    assert complete("diff outputs/my_run@100 outputs/my_run@") == ["outputs/my_run@100", "outputs/my_run@200"]


def test_a_completed_word_gets_a_space_unless_more_can_follow(folder):
    for line, text in {
        "parallel=a": "parallel=auto ",
        "-m parallel=a": "parallel=auto",
        "--mul": "--multirun ",
        "optimizer.lr": "optimizer.lr=",
        "--from out": "outputs/",
        "resume=outputs/m": "resume=outputs/my_run",
        "resume=outputs/my_run@1": "resume=outputs/my_run@100 ",
    }.items():
        assert offered(line, "zsh") == [text]


def test_bash_gets_only_the_part_that_it_replaces(folder):
    breaks = " \t\n\"'@><=;|&(:"
    for line, text in {
        "parallel=a": "auto ",
        "resume=outputs/my_run@1": "@100 ",
        "data=text data.path=my": "my\\ data/",
        "data=text 'data.path=my": "data.path=my data/",
        "optimizer.lr": "optimizer.lr=",
    }.items():
        assert offered(line, "bash", COMP_WORDBREAKS=breaks) == [text]
    assert offered("parallel=a", "bash") == ["parallel=auto "]  # the script of Hydra removes = from COMP_WORDBREAKS


@pytest.mark.parametrize("environ", [{}, {"COMP_LINE": "xlstm-hydra x", "COMP_POINT": "x"}, {"COMP_LINE": ""}])
def test_an_error_while_completing_prints_nothing(environ):
    out = io.StringIO()
    with mock.patch.dict(os.environ, environ), contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        completion.main(["-sc", "query=bash"])
    assert out.getvalue() == ""


@pytest.mark.parametrize("typed", ["install=tcsh", "remove=bash", ""])
def test_another_shell_is_rejected(capsys, typed):
    with pytest.raises(SystemExit) as stop:
        completion.main(["-sc", typed])
    text = f"xlstm-hydra: -sc={typed!r}: expected install=bash, install=zsh or install=fish\n"
    assert (stop.value.code, capsys.readouterr().err) == (2, text)


# ---- in the shells themselves

INSTALL = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'eval "$(xlstm-hydra -sc install=bash)"'),
    "zsh": (["zsh", "-f", "-i"], 'eval "$(xlstm-hydra -sc install=zsh)"'),
    "fish": (["fish", "--no-config", "-i"], "xlstm-hydra -sc install=fish | source"),
}
TYPED = {
    "xlstm-hydra parallel=dp,fsdp_": ["parallel=dp,fsdp_tp"],
    "xlstm-hydra optimizer=lion optimizer.b": ["optimizer=lion", "optimizer.beta"],
    "xlstm-hydra --from outputs/my_run@2": ["--from", "outputs/my_run@200"],
    "xlstm-hydra data.path=my\\ data/": ["data.path=my data/a b.txt"],
    "bin/xlstm-metadata ch": ["check"],
    "~/bin/xlstm-hydra --mult": ["--multirun"],
}


class Terminal:
    """An interactive shell in a terminal."""

    def __init__(self, command: list[str], folder: Path) -> None:
        environ = {**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}", "HOME": str(folder), "TERM": "xterm"}
        self.file, terminal = os.openpty()
        # fork() in a process that has loaded JAX may deadlock; the new process makes the terminal its own.
        own = (
            "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", own, *command],
            cwd=folder,
            env=environ,
            start_new_session=True,
            **dict.fromkeys(("stdin", "stdout", "stderr"), terminal),
        )
        os.close(terminal)

    def enter(self, text: str) -> None:
        os.write(self.file, text.encode())

    def wait_for(self, file: Path) -> str:
        """Read what the shell prints until it has written a file."""
        end = time.monotonic() + 60
        while not (file.exists() and file.read_text().endswith("\n")) and time.monotonic() < end:
            if select.select([self.file], [], [], 0.02)[0]:
                printed = os.read(self.file, 65536)
                if b"\x1b[c" in printed or b"\x1b[0c" in printed:
                    self.enter("\x1b[?62;c")  # fish asks for the kind of the terminal
        return file.read_text()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.file)


@pytest.mark.parametrize("shell", INSTALL)
def test_the_script_completes_in_its_shell(folder, shell):
    command, install = INSTALL[shell]
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (folder / "bin").mkdir()
    program = folder / "bin" / "xlstm-hydra"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m xlstm_hydra "$@"\n')
    program.chmod(0o755)
    terminal = Terminal(command, folder)
    try:
        terminal.enter(f"{install}; echo ready > ready\r")
        terminal.wait_for(folder / "ready")
        for number, (line, words) in enumerate(TYPED.items()):
            file = folder / f"line_{number}"
            terminal.enter(f"{line}\t\x01printf '%s|' \x05 > {file.name}; echo >> {file.name}\r")
            assert terminal.wait_for(file).strip().split("|")[1:-1] == words
    finally:
        terminal.close()


def test_a_completion_loads_no_hydra(tmp_path):
    line = "xlstm-hydra --config-dir . optimizer=lion optimizer.b"
    code = (
        "import sys; sys.argv = ['xlstm-hydra', '-sc', 'query=fish']\nfrom xlstm_hydra.__main__ import main\nmain()\n"
    )
    code += "print(*{'hydra', 'omegaconf', 'jax', 'numpy', 'rich', 'xlstm_hydra.runs'} & set(sys.modules))"
    environ = os.environ | {"COMP_LINE": line}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("optimizer.beta1=\noptimizer.beta2=\n\n", "")
