"""The package works from a checkout, a wheel and a source distribution alike."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
APP = """
import hydra
from xlstm_hydra.hydra import VERSION_BASE, load

@hydra.main(config_path=".", config_name="app", **VERSION_BASE)
def main(cfg):
    print(load(cfg).parallel.fsdp_axis_size, cfg.model.embedding_dim)

main()
"""


def run(*command, folder):
    done = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def finds_our_groups(python, folder):
    """Make sure that the command and a small app find our groups in an empty folder."""
    folder.mkdir()
    assert "parallel: auto, dp, fsdp, fsdp_tp, pp, tp" in run(
        Path(python).parent / "xlstm-hydra", "--help", folder=folder
    )
    assert "parallel.json" in run(Path(python).parent / "xlstm-hydra", "--schema", folder=folder)
    (folder / "app.py").write_text(APP)
    (folder / "app.yaml").write_text("defaults: [parallel: fsdp, model: tiny]")
    assert run(python, "app.py", folder=folder) == "-1 128\n"


def environment_without_us(folder):
    """A virtual environment with the packages of this one, but not ours. Returns its interpreter."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, folder=folder.parent)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    ours = {"xlstm_hydra", "hydra_plugins"}
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if entry.name not in ours and not entry.name.startswith(
            ("xlstm_hydra", "_xlstm_hydra", "_editable_impl_xlstm")
        ):
            os.symlink(entry, site / entry.name)
    return folder / "bin" / "python"


def install(artifact, python):
    """Install a wheel or a source distribution without network."""
    offline = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check", "--quiet"]
    run(sys.executable, "-m", "pip", f"--python={python}", "install", *offline, artifact, folder=artifact.parent)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with a wheel and a source distribution, built from a copy of the checkout."""
    folder = tmp_path_factory.mktemp("built")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, folder=folder)
    return folder


def test_an_editable_install_is_found(tmp_path):
    finds_our_groups(sys.executable, tmp_path / "empty")


def test_a_wheel_is_marked_as_typed(built):
    [wheel] = built.glob("*.whl")
    assert "xlstm_hydra/py.typed" in zipfile.ZipFile(wheel).namelist()


@pytest.mark.parametrize("pattern", ["*.whl", "*.tar.gz"], ids=["wheel", "sdist"])
def test_built_distributions_work_after_installation(built, tmp_path, pattern):
    [artifact] = built.glob(pattern)
    python = environment_without_us(tmp_path / "env")
    install(artifact, python)
    where = run(python, "-c", "import xlstm_hydra; print(xlstm_hydra.__file__)", folder=tmp_path)
    assert where.startswith(str(tmp_path / "env"))
    finds_our_groups(python, tmp_path / "empty")


def test_the_wheel_contains_every_yaml_file_and_no_tests(built):
    [wheel] = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    yaml = {f"xlstm_hydra/conf/{file.relative_to(ROOT / 'conf')}" for file in (ROOT / "conf").rglob("*.yaml")}
    assert yaml <= names
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"xlstm_hydra", "hydra_plugins"}
    assert "hydra_plugins/__init__.py" not in names
