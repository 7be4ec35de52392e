"""Points of a sweep are planned before a job starts, skipped on request, and launched with their numbers."""

import logging
from pathlib import Path

import pytest
from command import run_command
from omegaconf import OmegaConf
from planning import shared_plan

import xlstm_hydra.plan
import xlstm_hydra.train
from xlstm_hydra.hydra import load_device
from xlstm_hydra.sweep import _plans, read_record
from xlstm_hydra.sweep import _run_sweep as _sweep
from xlstm_hydra.sweep._run_sweep import batches, numbered

SIMULATED = "trainer.simulated_devices=1"
SKIP = "hydra.sweeper.on_invalid=skip"
FOLDER = "hydra.sweep.dir=sweep"
TOO_LARGE = 1_000_000
"""A batch that does not fit any memory."""


@pytest.fixture(autouse=True)
def jobs(tmp_path, monkeypatch):
    """Jobs that were started. They do not train."""
    started = []
    monkeypatch.setattr(xlstm_hydra.train, "train", lambda run, folder, overrides: started.append((run, folder.name)))
    monkeypatch.setattr(xlstm_hydra.plan, "make_plan", shared_plan)
    monkeypatch.setattr("xlstm_hydra.plan._changes.changes_that_fit", lambda plan: ())
    monkeypatch.chdir(tmp_path)
    return started


def folders(jobs):
    return [folder for _, folder in jobs]


# ---- invalid points


def test_invalid_points_are_skipped_on_request_and_the_others_keep_their_numbers(jobs, tmp_path):
    done = run_command("-m", "optimizer.lr=1e-3,-1,3e-4", "trainer.ignore_plan=true", SKIP, FOLDER)
    assert (done.status, folders(jobs)) == (0, ["0", "2"])
    record = read_record(tmp_path / "sweep")
    assert [one.status for one in record] == ["completed", "invalid", "completed"]
    assert record[1].reason == "optimizer.lr=-1.0: must be 0 or more"


def test_a_sweep_with_only_invalid_points_is_rejected(jobs, tmp_path):
    done = run_command("-m", "optimizer.lr=-2,-1", SKIP, FOLDER)
    assert (done.status, jobs) == (2, [])
    assert not (tmp_path / "sweep").exists()


BAD_SETTINGS = [
    ("hydra.sweeper.max_batch_size=0", "hydra.sweeper.max_batch_size=0: must be 1 or more, or null"),
    ("hydra.sweeper.num_samples=3", "there is no interval to draw values from"),
    ("hydra.sweeper.on_invalid=ignore", "hydra.sweeper.on_invalid: expected OnInvalid (stop, skip), got 'ignore'"),
    ("hydra.sweeper.on_invalidd=skip", "hydra.sweeper.on_invalidd: no such key. Did you mean hydra.sweeper.on_invalid"),
]


@pytest.mark.parametrize(("setting", "words"), BAD_SETTINGS, ids=[setting for setting, _ in BAD_SETTINGS])
def test_an_invalid_setting_of_the_sweeper_is_rejected(jobs, setting, words):
    done = run_command("-m", "trainer.seed=1,2", setting)
    assert (done.status, jobs) == (2, [])
    assert words in done.err


def test_a_folder_with_a_sweep_is_rejected_before_planning(jobs, monkeypatch):
    assert run_command("-m", "trainer.seed=1", SIMULATED, FOLDER).status == 0
    monkeypatch.setattr(_sweep, "check_points", None)
    done = run_command("-m", "trainer.seed=2", SIMULATED, FOLDER)
    assert (done.status, len(jobs)) == (2, 1)
    assert "already contains a sweep with 1 jobs, 1 of them completed" in done.err


BAD_SUBDIRS = {
    "${nope}": "hydra.sweep.subdir='${nope}': refers to a key that does not exist: nope",
    "/proc/${hydra.job.num}": "hydra.sweep.subdir='/proc/${hydra.job.num}': cannot be written: No such file",
    "a" * 300 + "${hydra.job.num}": "${hydra.job.num}': cannot be written: File name too long. Remove it",
}


@pytest.mark.parametrize("sweeper", ["xlstm", "optuna"])
@pytest.mark.parametrize(("subdir", "words"), BAD_SUBDIRS.items(), ids=["no value", "system folder", "long"])
def test_an_invalid_folder_name_of_a_job_is_rejected_before_a_job_starts(sweeper, subdir, words, jobs, tmp_path):
    if sweeper == "optuna":
        pytest.importorskip("optuna")
    values = "trainer.seed=1,2" if sweeper == "xlstm" else "optimizer.lr=interval(0.1,1)"
    done = run_command("-m", f"hydra/sweeper={sweeper}", f"hydra.sweep.subdir={subdir}", values, SIMULATED)
    assert (done.status, done.err.count("\n"), jobs) == (2, 1, []), done.err
    assert words in done.err
    assert not list(tmp_path.iterdir())


def test_names_of_the_user_are_used_for_the_folders_of_jobs(jobs):
    assert run_command("-m", "hydra.sweep.subdir=x${hydra:job.num}", "trainer.seed=1,2", SIMULATED).status == 0
    assert folders(jobs) == ["x0", "x1"]


@pytest.mark.parametrize("sweeper", ["xlstm", "optuna"])
def test_a_sweep_in_the_folder_of_a_run_is_refused(sweeper, jobs):
    if sweeper == "optuna":
        pytest.importorskip("optuna")
    assert run_command("hydra.run.dir=run", SIMULATED).status == 0
    before = sorted(Path("run").rglob("*"))
    values = "trainer.seed=1,2" if sweeper == "xlstm" else "optimizer.lr=interval(0.1,1)"
    done = run_command("-m", f"hydra/sweeper={sweeper}", "hydra.sweep.dir=run", values, SIMULATED)
    assert (done.status, done.err.count("\n"), len(jobs)) == (2, 1, 1), done.err
    assert "is a run folder. A sweep needs its own folder: choose another with hydra.sweep.dir=DIR." in done.err
    assert sorted(Path("run").rglob("*")) == before


def test_intervals_of_integers_give_integers(jobs):
    done = run_command("-m", "trainer.seed=tag(log,interval(1,10))", "hydra.sweeper.num_samples=3", SIMULATED)
    words = "expected int, but the interval gives floats. Write trainer.seed=int(tag(log,interval(1,10)))."
    assert (done.status, done.err.count("\n"), words in done.err) == (2, 1, True)
    assert run_command("-m", "trainer.seed=int(interval(1,10))", "hydra.sweeper.num_samples=3", SIMULATED).status == 0


# ---- plans


def test_points_that_do_not_fit_stop_the_sweep_in_one_table(jobs):
    batch = f"trainer.batch_size=8,{TOO_LARGE}"
    done = run_command("-m", batch, "trainer.seed=1,2", SIMULATED)
    assert (done.status, jobs) == (2, [])
    head, row = done.err.splitlines()
    assert head.endswith(
        "2 of 4 points are invalid: no job was started; hydra.sweeper.on_invalid=skip skips invalid points"
    )
    assert f"trainer.batch_size={TOO_LARGE}" in row and "trainer.ignore_plan=false: a step needs " in row


def test_points_that_do_not_fit_are_skipped_on_request_or_ignored(jobs, tmp_path):
    line = ["-m", f"trainer.batch_size=8,{TOO_LARGE}", "trainer.ignore_plan=true,false", SIMULATED, SKIP, FOLDER]
    assert run_command(*line).status == 0
    assert folders(jobs) == ["0", "1", "2"]
    assert "a step needs" in read_record(tmp_path / "sweep")[3].reason


def test_points_that_differ_in_values_are_planned_once(jobs, monkeypatch):
    plans, real = [], xlstm_hydra.plan.make_plan
    monkeypatch.setattr(xlstm_hydra.plan, "make_plan", lambda *args: plans.append(args) or real(*args))
    line = ["-m", "optimizer.lr=1e-3,3e-4,1e-4", "trainer.seed=1,2", "trainer.batch_size=8,16", SIMULATED]
    assert run_command(*line).status == 0
    assert (len(jobs), len(plans)) == (12, 2)


def test_no_plan_is_made_if_broken_rules_stop_the_sweep(jobs, monkeypatch):
    monkeypatch.setattr(xlstm_hydra.plan, "make_plan", None)
    assert run_command("-m", "optimizer.lr=1,-1").status == 2


def test_the_devices_of_this_machine_are_seen_in_another_process(monkeypatch):
    monkeypatch.setattr(_plans, "has_cpu_alone", lambda: False)
    _plans._devices_in_subprocess.cache_clear()
    found = _plans.local_devices(None)
    _plans._devices_in_subprocess.cache_clear()
    assert (found.kind, found.number, found.own_memory) == ("cpu", 8, None)


@pytest.mark.parametrize(
    ("platforms", "plugins", "packages", "expected"),
    [
        ("cpu", ["cuda12"], {"libtpu"}, True),
        ("cuda,cpu", [], set(), False),
        ("", [], set(), True),
        ("", ["cuda12"], set(), False),
        ("", [], {"libtpu"}, False),
        ("", [], {"jax_plugins"}, False),
    ],
    ids=str,
)
def test_no_process_looks_for_devices_if_only_the_cpu_is_available(monkeypatch, platforms, plugins, packages, expected):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(_plans.importlib.metadata, "entry_points", lambda group: plugins)
    monkeypatch.setattr(_plans.importlib.util, "find_spec", lambda name: name if name in packages else None)
    assert _plans.has_cpu_alone() == expected


def launcher(**options):
    return OmegaConf.create({"_target_": "hydra_plugins.hydra_submitit_launcher.SlurmLauncher", **options})


def run_of(compose, *overrides):
    return xlstm_hydra.hydra.load(compose(*overrides))


@pytest.mark.parametrize(
    ("asked", "number"),
    [
        ({"nodes": 2, "gpus_per_node": 4}, 8),
        ({"tasks_per_node": 4, "gpus_per_task": 1}, 4),
        ({"gres": "gpu:a:2"}, 2),
    ],
    ids=str,
)
def test_the_gpus_that_a_launcher_asks_for_are_counted(asked, number):
    assert _plans._requested(launcher(**asked)) == number


def test_jobs_of_a_cluster_are_planned_for_the_device_that_is_chosen_and_the_number_that_is_asked_for(compose):
    find = _plans._Finder(launcher(nodes=2, gpus_per_node=4, tasks_per_node=1))
    assert find.devices(run_of(compose, "device=h200")) == (8, load_device("h200"))
    assert find.devices(run_of(compose)) is None


def test_a_point_that_cannot_be_planned_is_reported_in_one_line(compose, caplog):
    caplog.set_level(logging.INFO)
    assert _plans.plan_points({0: run_of(compose)}, launcher(nodes=1)) == {}
    [line] = caplog.messages
    assert line.startswith(
        "the points are not planned: the devices of their jobs are not known here. Set device, such as device=h100_80gb"
    )


def test_a_point_that_cannot_be_planned_is_launched_with_a_message(compose, monkeypatch, caplog):
    monkeypatch.setattr(xlstm_hydra.plan, "make_plan", None)
    here = OmegaConf.create({"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"})
    assert _plans.plan_points({3: run_of(compose, SIMULATED)}, here) == {}
    assert caplog.messages[0].startswith("job 3 cannot be planned and will be launched without a plan: TypeError: ")


# ---- launching


def test_hydras_own_sweeper_can_be_selected_and_rejects_single_jobs(jobs):
    done = run_command("-m", "hydra/sweeper=basic", "optimizer.lr=1e-3,-1", SIMULATED)
    assert (done.status, folders(jobs)) == (2, ["0"])
    assert "optimizer.lr=-1.0: must be 0 or more" in done.err


@pytest.mark.parametrize("batches", [(), ("hydra.sweeper.max_batch_size=1",)], ids=["one batch", "a batch per job"])
def test_a_failing_job_does_not_stop_the_others(jobs, monkeypatch, batches):
    def train(run, folder, overrides):
        jobs.append((run, folder.name))
        if run.trainer.seed == 1:
            raise RuntimeError("out of luck")

    monkeypatch.setattr(xlstm_hydra.train, "train", train)
    done = run_command("-m", "trainer.seed=1,2,3", SIMULATED, *batches)
    assert (done.status, folders(jobs)) == (1, ["0", "1", "2"])
    assert "out of luck" in done.err


def test_identical_points_run_once(jobs):
    assert run_command("-m", "optimizer.lr=1e-3,0.001,3e-4", SIMULATED).status == 0
    assert [run.optimizer.lr for run, _ in jobs] == [1e-3, 3e-4]


def test_points_that_only_differ_in_the_job_number_all_run(jobs):
    line = ["-m", "optimizer.lr=1e-3,0.001", "data=text", "data.path=${hydra:runtime.cwd}/${hydra:job.num}", SIMULATED]
    assert run_command(*line).status == 0
    assert folders(jobs) == ["0", "1"]


def test_the_command_line_overrides_params_of_the_sweeper(jobs):
    params = "+hydra.sweeper.params={trainer.seed:'1,2',optimizer.lr:'1'}"
    assert run_command("-m", params, "optimizer.lr=2,3", SIMULATED).status == 0
    assert [(run.trainer.seed, run.optimizer.lr) for run, _ in jobs] == [(1, 2), (1, 3), (2, 2), (2, 3)]


def test_random_points_are_reproducible(jobs):
    line = ["-m", "optimizer.lr=tag(log,interval(1e-4,1e-2))", "hydra.sweeper.num_samples=3", SIMULATED]
    for _ in range(2):
        assert run_command(*line, f"hydra.sweep.dir=sweep{len(jobs)}").status == 0
    drawn = [run.optimizer.lr for run, _ in jobs]
    assert drawn[:3] == drawn[3:] and len(set(drawn)) == 3


GAPS = {0: ["a=0"], 1: ["a=1"], 3: ["a=3"], 4: ["a=4"]}


@pytest.mark.parametrize(
    ("size", "one_by_one", "expected"),
    [
        (None, False, [[0, 1, 3, 4]]),
        (None, True, [[0, 1], [3, 4]]),
        (3, False, [[0, 1, 3], [4]]),
        (1, True, [[0], [1], [3], [4]]),
    ],
)
def test_jobs_are_launched_in_batches(size, one_by_one, expected):
    assert [list(batch) for batch in batches(GAPS, size, one_by_one)] == expected


def test_a_job_gets_its_folder_if_hydra_would_count_its_number_wrongly():
    assert numbered(GAPS) == [
        ["a=0"],
        ["a=1"],
        ["a=3", "hydra.sweep.subdir=3"],
        ["a=4", "hydra.sweep.subdir=4"],
    ]
