"""The files around the code: citation, issue templates, workflows, Dockerfile."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
TEMPLATES = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_citation_has_the_version_and_license_of_the_project():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert citation["cff-version"] and citation["message"] and citation["title"] and citation["authors"]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_every_issue_template_asks_for_the_versions(path):
    fields = yaml.safe_load(path.read_text())["body"]
    [versions] = [field for field in fields if "xlstm-hydra --version" in str(field)]
    assert versions["validations"]["required"]


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.stem)
def test_every_job_of_a_workflow_has_a_time_limit(path):
    jobs = yaml.safe_load(path.read_text())["jobs"].values()
    assert all("timeout-minutes" in job for job in jobs)


def test_the_dockerfile_copies_files_that_exist_and_installs_extras_that_exist():
    text = (ROOT / "Dockerfile").read_text()
    copied = [path for line in re.findall(r"^COPY (.*)", text, re.MULTILINE) for path in line.split()[:-1]]
    assert {"pyproject.toml", "conf", "xlstm_hydra", "hydra_plugins"} <= {*copied}
    assert all((ROOT / path).exists() for path in copied)
    assert {*re.findall(r"cuda\d+", text)} <= {*PROJECT["optional-dependencies"]}
