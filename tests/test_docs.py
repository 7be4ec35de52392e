"""The commands and programs in docs/ work, its links lead somewhere, and its tables are what their scripts write."""

import functools
import os
import re
import runpy
import shlex
import shutil
import sys
import tomllib

import pages
import pytest
import saved
from command import run_command
from hydra import initialize
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from xlstm_hydra.cli import metadata
from xlstm_hydra.hydra import VERSION_BASE, first_point, load
from xlstm_hydra.reference import Catalog, groups_table, page_names

ROOT = pages.ROOT
WITH_CODE = [page for page in [pages.README, *pages.PAGES] if pages.blocks(page, "console", "sh", "python")]
THAT_RUN = [page for page in WITH_CODE if pages.blocks(page, "console", "python")]
WITH_LINKS = [*sorted(ROOT.glob("*.md")), *pages.PAGES]
HEAVY = re.compile(r"load_checkpoint|make_plan|outputs/")


def name(page):
    return str(page.relative_to(ROOT))


# ---- without training


@pytest.fixture(scope="module")
def saved_runs(tmp_path_factory):
    """A folder with runs that have saved their configs, without arrays."""
    folder = tmp_path_factory.mktemp("saved")
    for name, steps in {"my_run": (10, 20), "books": (50,)}.items():
        for step in steps:
            saved.save(folder / name, saved.composed(f"trainer.max_steps={max(steps)}"), step)
    return folder


@pytest.fixture
def folder(saved_runs, tmp_path, monkeypatch):
    """The current folder, with those runs."""
    shutil.copytree(saved_runs, tmp_path / "outputs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", WITH_CODE, ids=name)
def test_every_command_of_a_page_is_accepted_or_rejected_as_shown(page, folder):
    pages.write_files(page, folder)
    for command in pages.commands(*pages.blocks(page, "console")):
        if command.is_light:
            done = run_command(*shlex.split(command.text)[1:])
            assert done.status == command.status
            pages.assert_shown(command, done.out + done.err)
    for line in pages.lines(*pages.blocks(page, "sh")):
        check(re.sub(r"\bRUN\b", "outputs/my_run", line))


@pytest.mark.parametrize("page", THAT_RUN, ids=name)
def test_every_program_of_a_page_compiles_and_those_without_arrays_run(page):
    for block in pages.blocks(page, "python"):
        code = compile(block.text, name(page), "exec")
        if not block.title and not HEAVY.search(block.text):
            exec(code, {})


@functools.cache
def check(line):
    """Check a command line without doing what it asks for."""
    words = shlex.split(line, comments=True)
    first = next((number for number, word in enumerate(words) if os.path.basename(word) in CHECKS), None)
    assert first is not None, f"no check for {line}"
    CHECKS[os.path.basename(words[first])](words[first + 1 :])


def check_run(words):
    """The config, of a sweep that of its first job, composes and keeps all rules."""
    if any(word.startswith("resume_sweep=") for word in words):
        return
    if "-m" in words:
        overrides = [word for word in words if "=" in word]
        words = [word for word in words if word != "-m" and word not in overrides] + first_job(overrides)
    done = run_command(*words, "--cfg", "job")
    assert done.status == 0, (words, done.err)
    load(OmegaConf.create(done.out))


def first_job(overrides):
    """The overrides of the first job of a sweep."""
    with initialize(config_path=None, **VERSION_BASE):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        return first_point(parser.parse_overrides(overrides))


def check_metadata(words):
    """The command is known, and those that read no array work."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        asked = words if words[0] in ("show", "overrides", "diff") else [*words, "--help"]
        patch.setattr(sys, "argv", ["xlstm-metadata", *asked])
        metadata.main()
    assert stop.value.code == (words[0] == "diff")


def check_install(words):
    """The extras are declared."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {extra for word in words for found in re.findall(r"\[([\w,]+)\]", word) for extra in found.split(",")}
    assert words[0] == "install" and extras <= {*project["optional-dependencies"]}


def check_script(words):
    """The script exists."""
    assert words[0].startswith("-") or os.path.exists(words[0]) or (ROOT / words[0]).exists()


def check_other(words):
    """A program of the system."""
    assert words


def check_batch(words):
    """The script exists, and its arguments are overrides."""
    check_script(words)
    check_run(words[1:])


CHECKS = {
    "xlstm-hydra": check_run,
    "xlstm-metadata": check_metadata,
    "pip": check_install,
    "watch": check_other,
    "python": check_script,
    "python3": check_script,
    "sbatch": check_batch,
}


# ---- with training


@pytest.fixture(scope="module")
def my_run(tmp_path_factory):
    """The run that pages start from."""
    folder = tmp_path_factory.mktemp("my_run")
    pages.run(pages.Command("xlstm-hydra hydra.run.dir=outputs/my_run trainer.max_steps=20", ""), folder)
    return folder / "outputs/my_run"


@pytest.mark.slow
@pytest.mark.parametrize("page", THAT_RUN, ids=name)
def test_what_a_page_shows_is_what_its_commands_and_programs_do(page, tmp_path, monkeypatch, request):
    text = page.read_text()
    if "outputs/my_run" in text and "$ xlstm-hydra hydra.run.dir=outputs/my_run" not in text:
        shutil.copytree(request.getfixturevalue("my_run"), tmp_path / "outputs/my_run", symlinks=True)
    monkeypatch.chdir(tmp_path)
    pages.run_page(page, tmp_path)


# ---- navigation and links


def test_every_page_is_in_the_navigation():
    found = re.findall(r"^ *- .*: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    generated = [f"reference/{page}" for page in page_names(Catalog()).values()]
    assert sorted(found) == sorted([*generated, *(str(page.relative_to(ROOT / "docs")) for page in pages.PAGES)])


@pytest.mark.parametrize("page", WITH_LINKS, ids=name)
def test_every_link_leads_to_a_file_and_a_heading(page):
    prose = pages.FENCE.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        path, _, anchor = target.partition("#")
        if path.startswith("https://"):
            continue
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        assert not anchor or anchor in headings(found), target


def headings(page):
    """The anchors of the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", pages.FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


def test_every_option_is_in_the_table_of_groups():
    rows = re.findall(r"^\| \[`([\w/]+)`\]\(\w+\.md\) \| .*? \| (.*) \| .*\|$", groups_table(Catalog()), re.MULTILINE)
    shown = {(group, option) for group, options in rows for option in re.findall(r"`(\w+)`", options)}
    files = [path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*/*.yaml")]
    hidden = ("xlstm_hydra", "hydra/help", "hydra/hydra_logging", "hydra/job_logging")
    options = {(str(path.parent), path.stem) for path in files if not str(path).startswith(hidden)}
    assert shown == options


# ---- tables


@pytest.fixture
def script(monkeypatch):
    """Constants of a script, read without running it."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return lambda name: runpy.run_path(str(ROOT / "benchmarks" / f"{name}.py"), run_name=name)


def table_rows(page):
    """Cells of every table row of a page."""
    lines = (ROOT / "docs/explanations" / f"{page}.md").read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def test_the_page_lists_every_family_on_every_layout_as_equal_to_one_device(script):
    layouts = script("layouts")
    shown = {(row[0], row[1]): row[2:] for row in table_rows("layouts") if len(row) == 5}
    for family in layouts["FAMILIES"]:
        for layout in layouts["LAYOUTS"]:
            _, loss, gradients = map(float, shown[family, layout])
            assert loss < 1e-12 and gradients < 1e-8, (family, layout)


def test_the_page_lists_every_plan_within_its_tolerance_of_the_compiler(script):
    shown = {row[0]: row[1:] for row in table_rows("planner") if len(row) == 8}
    comparable = 0
    for name in script("plan")["CASES"]:
        arrays, collectives, _, _, memory, _, operations = shown[name]
        assert arrays == "equal" and collectives.endswith(" equal"), name
        assert float(operations) == pytest.approx(1, abs=0.05), name
        if "bfloat16" not in name:
            comparable += 1
            assert float(memory) == pytest.approx(1, abs=0.1), name
    assert comparable >= 12
