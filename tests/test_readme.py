"""The README is short and up to date. Its commands and programs are run by `tests/test_docs.py`."""

import re
import tomllib

import pages

ROOT = pages.ROOT
README = pages.README.read_text(encoding="utf-8")


def test_it_is_short_and_so_are_the_outputs_that_it_shows():
    assert len(README.encode()) < 8000
    for command in pages.commands(*pages.blocks(pages.README, "console")):
        assert 1 < len(command.output.splitlines()) <= 6


def test_the_install_commands_match_the_project():
    commands = [block.text.strip() for block in pages.blocks(pages.README, "bash")]
    assert [command.partition("&&")[0].strip() for command in commands] == ["python3 -m venv .venv"] * 2
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "xlstm-hydra" in project["scripts"] and commands[0].endswith("xlstm-hydra")
    assert "test" in project["optional-dependencies"] and ".[test]" in commands[1]


def test_every_group_is_in_the_table_and_every_option_that_it_names_exists():
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| .*? \| (.*) \|$", README.partition("## Groups")[2], re.MULTILINE)
    groups = {group for cell, _ in rows for group in re.findall(r"\w+", cell)}
    assert groups == {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()} - {"hydra", "xlstm_hydra"}
    for cell, options in rows:
        for option in re.findall(r"`([\w*]+)`", options):
            assert any([*(ROOT / "conf" / group).glob(f"{option}.yaml")] for group in re.findall(r"\w+", cell)), option


def test_every_path_in_the_map_exists():
    rows = re.findall(r"^\| (`.*?) \|", README.partition("## Map of the code")[2], re.MULTILINE)
    paths = [path for row in rows for path in re.findall(r"`([\w/.]+)`", row)]
    assert {path.name for path in (ROOT / "xlstm_hydra").iterdir() if (path / "__init__.py").exists()} <= {
        path.rstrip("/") for path in paths
    }
    for path in paths:
        assert (ROOT / "xlstm_hydra" / path).exists(), path
