"""The ends of SLURM jobs are described in words, with the cause and with logs that exist."""

import pickle
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from command import run_command

from xlstm_hydra.configs import SlurmLauncherConfig
from xlstm_hydra.sweep import Outcome, _slurm, _work, finish_sweep, read_record, start_sweep, update_record
from xlstm_hydra.sweep import _slurm_states as _states
from xlstm_hydra.sweep._slurm import teardown
from xlstm_hydra.sweep._slurm_states import NO_PROGRESS, End
from xlstm_hydra.sweep._work import note_run_folder


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Fake SLURM commands with given output."""

    def says(**texts):
        for name, (status, text) in texts.items():
            file = tmp_path / name
            file.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {status}\n")
            file.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    says(squeue=(1, ""), scontrol=(1, ""), sacct=(1, ""))
    return says


ENDS = {
    "killed": (
        "FAILED|137:0|NonZeroExitCode",
        "FAILED (it was killed by SIGKILL; SLURM does this if a job exceeds hydra.launcher.mem_gb)",
    ),
    "left": ("FAILED|3:0|NonZeroExitCode", "FAILED (it exited with status 3)"),
    "by a signal": ("FAILED|0:11|None", "FAILED (it was killed by SIGSEGV)"),
    "cancelled": ("CANCELLED by 1000|0:0|None", "CANCELLED (it was cancelled)"),
    "memory": ("OUT_OF_MEMORY|0:125|OutOfMemory", "OUT_OF_MEMORY (it used more memory than requested"),
    "time": ("TIMEOUT|0:0|TimeLimit", "TIMEOUT (it reached its time limit (hydra.launcher.timeout_min))"),
    "node": ("NODE_FAIL|1:0|NodeDown", "NODE_FAIL (one of its nodes failed, reason NodeDown)"),
    "not started": (
        "FAILED|0:53|JobLaunchFailure",
        "FAILED (its node could not start the job, reason JobLaunchFailure)",
    ),
    "stopped": ("FAILED|75:0|NonZeroExitCode", "FAILED (a signal stopped it, and it was not requeued)"),
    "no progress": (
        f"FAILED|{NO_PROGRESS}:0|None",
        "FAILED (it reached its time limit twice without a new checkpoint)",
    ),
    "no command": ("FAILED|127:0|NonZeroExitCode", "FAILED (a command in its batch script was not found)"),
    "no result": ("COMPLETED|0:0|None", "COMPLETED (it exited without a result)"),
}


@pytest.mark.parametrize(("line", "expected"), ENDS.values(), ids=ENDS)
def test_the_end_of_a_job_is_described_in_words(line, expected, slurm):
    slurm(sacct=(0, line))
    assert str(_states.end_of("7_1")).startswith(expected)
    state, code, reason = line.split("|")
    slurm(sacct=(1, ""), scontrol=(0, f"JobId=8 JobState={state.split()[0]} Reason={reason} ExitCode={code} Nodes=a"))
    assert str(_states.end_of("7_1")).startswith(expected)


def test_an_unrecorded_end_is_unknown(slurm):
    assert _states.end_of("7").state == "UNKNOWN"


def test_the_queue_reports_states_and_an_unreachable_controller_ends_no_job(slurm):
    slurm(squeue=(0, "7_0|RUNNING|None\n7_1|PENDING|Resources"))
    assert _states.states(["7_0", "7_1"]) == {"7_0": ("RUNNING", "None"), "7_1": ("PENDING", "Resources")}
    slurm(squeue=(1, ""))
    assert _states.states(["7_0"]) is None


def test_a_sweep_rejected_by_slurm_leaves_no_record_and_can_be_started_again(slurm, tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    slurm(sbatch=(1, ""), srun=(0, ""))
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: gpuu' >&2\nexit 1\n")
    line = ["-m", "hydra/launcher=slurm", "hydra.launcher.partition=gpuu", "trainer.seed=1,2", "hydra.sweep.dir=sweep"]
    for _ in range(2):
        done = run_command(*line)
        assert (done.status, done.out) == (2, "")
        assert "hydra.launcher.partition='gpuu'" in done.err
        assert "SLURM rejected the job: invalid partition specified: gpuu\n" in done.err
    assert not [path for path in (tmp_path / "sweep").rglob("*") if path.suffix in (".json", ".jsonl", ".yaml")]


def test_jobs_that_are_cancelled_before_the_array_is_split_have_the_end_of_the_array(slurm, tmp_path):
    line = "JobId=7 ArrayJobId=7 ArrayTaskId=4294967294 JobState=CANCELLED Reason=Priority ExitCode=0:0 NodeList= X=y"
    slurm(scontrol=(0, ""))
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\n[ "$4" = 7 ] && echo "{line}" || exit 1\n')
    assert _states.end_of("7_1") == End("CANCELLED", reason="Priority", nodes="")


# ---- logs


@pytest.fixture
def paths(tmp_path):
    """The paths of a job's first process in submitit. None of the files exists."""
    (tmp_path / "7_1").mkdir()
    return SimpleNamespace(
        folder=tmp_path / "7_1", stderr=tmp_path / "7_1" / "log.err", stdout=tmp_path / "7_1" / "log.out"
    )


LOGS = {
    "no memory": ("slurmstepd: error: Detected 1 oom_kill event in StepId=7.0", "Raise hydra.launcher.mem_gb."),
    "no Python": (
        "slurmstepd: error: execve(): /venv/bin/python: No such file or directory",
        "/venv/bin/python does not exist on the node. The Python environment must be on a file system that all nodes",
    ),
    "no package": (
        "/bin/python: Error while finding module 'submitit.core' (ModuleNotFoundError: No module named 'submitit')",
        "No module named 'submitit' (in the Python environment of the node).",
    ),
    "no command": ("/var/spool/job1/slurm_script: line 12: module: command not found", "see hydra.launcher.setup)."),
    "no pickle": ("Waited for 60 seconds but could not find submitted jobs in path: /x", "access the sweep folder"),
    "no progress": ("xlstm-hydra: not requeued: no new checkpoint since", "Raise hydra.launcher.timeout_min, or lower"),
    "no space": ("OSError: [Errno 28] No space left on device", "A disk is full."),
    "unknown": ("a\nsrun: error: node1: task 0: Segmentation fault\nsrun: Force Terminated StepId=7\n", "0: Segmen"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "words"), LOGS.values(), ids=LOGS)
def test_the_cause_in_a_log_is_reported_with_the_path_of_the_log(text, words, paths):
    paths.stderr.write_text(text)
    told = _states.describe("7_1", End("FAILED", 1, nodes="node1"), paths)
    assert told.startswith("SLURM job 7_1 ended as FAILED") and words in told
    assert told.endswith(f"Log: {paths.stderr}") and str(paths.stdout) not in told


SILENT = {
    "never started": (End("CANCELLED", nodes=""), "It never started."),
    "node failed": (End("NODE_FAIL", nodes="node1"), "It printed nothing."),
    "forgotten": (End("UNKNOWN"), "There is no log in "),
    "not started by its node": (End("FAILED", signal=53, nodes="node1"), "Node node1 left no log in "),
    "no result": (End("COMPLETED", nodes="node[1-2]"), "access or write to that folder. Set hydra.sweep.dir to a "),
}  # fmt: skip


@pytest.mark.parametrize(("end", "words"), SILENT.values(), ids=SILENT)
def test_a_job_without_logs_is_reported_without_a_path(end, words, paths):
    told = _states.describe("7_1", end, paths)
    assert words in told and ".err" not in told and ".out" not in told


def test_an_empty_log_is_not_pointed_to(paths):
    paths.stderr.touch()
    paths.stdout.touch()
    assert _states.describe_logs(paths, End("FAILED", 1, nodes="node1")) == "It printed nothing."


# ---- results


@pytest.fixture
def handle(tmp_path):
    paths = SimpleNamespace(result_pickle=tmp_path / "result.pkl")
    return SimpleNamespace(task=lambda number: SimpleNamespace(paths=paths))


def test_an_unknown_error_is_reported_by_its_last_line(handle, tmp_path):
    trace = "Traceback (most recent call last):\n  File x\nModuleNotFoundError: No module named 'mine'\n"
    (tmp_path / "result.pkl").write_bytes(pickle.dumps(("error", trace)))
    done = _work.result_of(handle, [])
    assert str(done._return_value) == f"ModuleNotFoundError: No module named 'mine'\n{trace}"


def test_a_truncated_result_fails_only_its_job(handle, tmp_path):
    (tmp_path / "result.pkl").write_bytes(pickle.dumps(("success", "x" * 100))[:50])
    assert "the result of the job cannot be read: " in str(_work.result_of(handle, [])._return_value)


UNKNOWN = {"module": b"cno_such_module\nThing\n.", "attribute": b"cos\nno_such_thing\n.", "end": b""}
"""Results that need what this environment does not have."""


@pytest.mark.parametrize("result", UNKNOWN.values(), ids=UNKNOWN)
def test_a_result_from_another_environment_fails_only_its_job(result, handle, tmp_path):
    (tmp_path / "result.pkl").write_bytes(result)
    assert "the result of the job cannot be read: " in str(_work.result_of(handle, [])._return_value)


# ---- requeueing


@pytest.fixture
def script(slurm, tmp_path):
    """Run the end of a batch script after a run with an exit status and a duration in seconds."""
    config = SlurmLauncherConfig(name="x", submitit_folder=f"{tmp_path}/a b/%j", timeout_min=5, max_num_timeout=3)
    files = tmp_path / "a b" / "7_1"
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    files.mkdir(parents=True)
    (files / "7_1_run").write_text(f"{tmp_path}/run\n")
    slurm(squeue=(0, "RUNNING"), scontrol=(0, "requeued"), sleep=(0, ""))

    def run(status, seconds=300, restarts=0):
        text = "\n".join([f"SECONDS={seconds}", f"(exit {status})", *teardown(config)])
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_RESTART_COUNT": str(restarts)}
        environment |= {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}
        done = subprocess.run(["bash", "-c", text], env=environment, capture_output=True, text=True)
        return done.returncode, "requeued" in done.stdout, done.stderr

    return run


def test_a_job_is_requeued_while_it_makes_new_checkpoints(script, tmp_path):
    assert script(75) == (75, True, "")
    (tmp_path / "run" / "checkpoints" / "8").mkdir()
    (tmp_path / "run" / "checkpoints" / "9.orbax-checkpoint-tmp").mkdir()
    assert script(75, restarts=1) == (75, True, "")
    assert script(143, restarts=2)[0] == NO_PROGRESS
    (tmp_path / "run" / "checkpoints" / "10").mkdir()
    assert script(143, restarts=2) == (143, True, "")


def test_a_job_that_reaches_its_time_limit_twice_without_a_new_checkpoint_is_not_requeued(script):
    assert script(75) == (75, True, "")
    status, is_requeued, error = script(75, restarts=1)
    assert (status, is_requeued) == (NO_PROGRESS, False)
    assert "xlstm-hydra: not requeued: no new checkpoint since the last requeue, at step 0" in error


def test_a_preempted_job_is_requeued_with_or_without_a_new_checkpoint(script):
    assert all(script(75, seconds=10, restarts=number)[1] for number in range(3))


ENOUGH = {"it failed": (1, 0), "it is completed": (0, 0), "it was requeued often enough": (75, 3)}


@pytest.mark.parametrize(("status", "restarts"), ENOUGH.values(), ids=ENOUGH)
def test_a_job_is_not_requeued_since(script, status, restarts):
    assert script(status, restarts=restarts) == (status, False, "")


def test_a_job_that_was_cancelled_is_not_requeued(script, slurm):
    slurm(squeue=(0, "COMPLETING"))
    assert script(75) == (75, False, "")


def test_an_unknown_run_folder_has_no_checkpoints(script, slurm, tmp_path):
    slurm(ls=(0, "12"))  # as of /checkpoints
    (tmp_path / "a b" / "7_1" / "7_1_run").unlink()
    assert script(75) == (75, True, "")
    assert (tmp_path / "a b" / "7_1" / "7_1_requeued_at").read_text() == "0\n"


def test_a_run_folder_that_cannot_be_written_is_one_warning(tmp_path, monkeypatch, caplog):
    submitit = pytest.importorskip("submitit")
    paths = SimpleNamespace(folder=tmp_path / "nowhere")
    monkeypatch.setattr(submitit, "JobEnvironment", lambda: SimpleNamespace(job_id="7_1", paths=paths))
    note_run_folder(tmp_path / "run")
    [line] = caplog.messages
    assert line.startswith(f"{tmp_path}/nowhere/7_1_run cannot be written, so ")
    assert line.endswith(": No such file or directory")


# ---- from submitting to the table


@pytest.fixture
def cluster(slurm, tmp_path, monkeypatch):
    """A fake SLURM that accepts two jobs as array 7. The test defines how they end."""
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_slurm.time, "sleep", lambda seconds: None)
    slurm(sbatch=(0, "Submitted batch job 7"), srun=(0, ""))

    def sweep(*records, queue=""):
        cases = "".join(f'7_{number}) echo "JobId=1 {text} X=y";;' for number, text in enumerate(records))
        (tmp_path / "scontrol").write_text(f'#!/bin/sh\ncase "$4" in {cases} *) exit 1;; esac\n')
        slurm(squeue=(0, queue))
        line = ["hydra/launcher=slurm", "hydra.sweep.dir=sweep", "trainer.seed=1,2", "trainer.ignore_plan=true"]
        return run_command("-m", *line)

    return sweep


KILLED = "JobState=OUT_OF_MEMORY ExitCode=0:125 Reason=OutOfMemory NodeList=node1"
CANCELLED = "JobState=CANCELLED ExitCode=0:0 Reason=Priority NodeList="
UNSEEN = "JobState=FAILED ExitCode=0:53 Reason=JobLaunchFailure NodeList=node2"


def test_a_killed_job_outweighs_a_cancelled_one_in_the_exit_status(cluster):
    done = cluster(KILLED, CANCELLED)
    assert done.status == 1 and "2 jobs: 1 interrupted, 1 lost" in done.out
    assert "lost: SLURM job 7_0 ended as OUT_OF_MEMORY (it used more memory than requested" in done.err
    assert (
        "interrupted: SLURM job 7_1 ended as CANCELLED (it was cancelled, reason Priority). It never start" in done.err
    )


def test_a_folder_that_nodes_cannot_access_is_reported_with_the_fix(cluster, tmp_path):
    done = cluster(UNSEEN, UNSEEN)
    folder = tmp_path / "sweep" / ".submitit" / "7_0"
    assert done.status == 1
    assert f"Node node2 left no log in {folder}: the node cannot access or write to that folder." in done.err
    assert (
        "Set hydra.sweep.dir to a folder on a file system that all nodes share." in done.err and ".err" not in done.err
    )


def test_a_job_without_progress_has_failed_whatever_it_recorded(cluster):
    done = cluster(f"JobState=FAILED ExitCode={NO_PROGRESS}:0 NodeList=a", CANCELLED)
    assert done.status == 1 and read_record(Path("sweep"))[0].status == "failed"
    assert "it reached its time limit twice without a new checkpoint" in done.err


WAITING = {
    "held": ("JobHeldAdmin", "SLURM job 7_0 is held (JobHeldAdmin). scontrol release 7_0"),
    "held by its node": ("launch failed requeued held", "SLURM job 7_0 is held (launch failed requeued held)"),
    "too long": ("PartitionTimeLimit", "cannot start with its current settings (PartitionTimeLimit). scontrol show "),
    "no such account": ("InvalidAccount", "SLURM job 7_0 cannot start with its current settings (InvalidAccount)"),
    "later": ("Priority", ""),
    "when there is room": ("QOSMaxJobsPerUserLimit", ""),
}  # fmt: skip


@pytest.mark.parametrize(("reason", "words"), WAITING.values(), ids=WAITING)
def test_a_job_that_cannot_start_is_reported_once(reason, words, caplog):
    job, warned = _slurm.SlurmJob(0, "7_0", [], None), set()
    for _ in range(2):
        _slurm._warn_once(job, "PENDING", reason, warned)
    assert caplog.text.count("SLURM") == bool(words) and words in caplog.text


UNREACHABLE = "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)"


def test_an_unreachable_controller_is_not_reported_as_an_error_of_the_job(cluster, tmp_path):
    (tmp_path / "sbatch").write_text(f"#!/bin/sh\necho '{UNREACHABLE}' >&2\nexit 1\n")
    done = cluster()
    assert done.status == 2 and "hydra/launcher: SLURM's controller does not respond: Batch job submission" in done.err
    assert not Path("sweep/sweep.jsonl").exists()


def test_an_sbatch_answer_without_a_job_id_is_one_message(cluster, slurm):
    slurm(sbatch=(0, "thank you"))
    done = cluster()
    assert done.status == 2 and "Could not make sense of sbatch output" in done.err and done.err.count("\n") == 1


def test_an_unwritable_submitit_folder_is_one_message(cluster, tmp_path):
    (tmp_path / "file").touch()
    done = run_command(
        *("-m", "hydra/launcher=slurm", "trainer.seed=1,2", "hydra.sweep.dir=sweep", "trainer.ignore_plan=true"),
        f"hydra.launcher.submitit_folder={tmp_path}/file/%j",
    )
    assert done.status == 2 and "cannot be written: " in done.err and "hydra.launcher.submitit_folder=" in done.err


def test_jobs_are_not_lost_while_squeue_does_not_answer(slurm, tmp_path, capsys):
    slurm(squeue=(1, ""))
    start_sweep(tmp_path / "sweep", [["trainer.seed=0"]])
    update_record(tmp_path / "sweep", [Outcome(job=0, status="running", cluster_job="7_0")])
    assert finish_sweep(tmp_path / "sweep", KeyboardInterrupt()) == 130
    assert read_record(tmp_path / "sweep")[0].status == "running"
    assert "scancel 7_0" in capsys.readouterr().out


def test_a_machine_without_squeue_neither_loses_nor_restarts_cluster_jobs(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("PATH", str(tmp_path))
    folder, points = tmp_path / "sweep", [[f"trainer.seed={job}"] for job in range(3)]
    start_sweep(folder, points)
    statuses = ("running", "waiting", "failed")
    for job, status in enumerate(statuses):
        update_record(folder, [Outcome(job=job, overrides=points[job], status=status, cluster_job=f"7_{job}")])
    assert finish_sweep(folder, KeyboardInterrupt()) == 130
    assert start_sweep(folder, points, resume=True) == [2]
    finish_sweep(folder)
    assert read_record(folder)[0].status == "running"
    assert (
        "assumed to be running. Run this command on a machine with squeue to see which jobs have ended." in caplog.text
    )


def test_a_killed_local_process_is_lost_and_its_log_is_reported(paths, tmp_path):
    paths.stderr.write_text("Killed\n")
    handle = SimpleNamespace(task=lambda number: SimpleNamespace(paths=paths))
    changes = {}
    work = SimpleNamespace(update_fields=changes.update)
    done = _work._lost(3, handle, work, {3: ["trainer.seed=1"]})
    assert changes == {3: {"status": "running", "reason": str(done._return_value)}}
    assert str(done._return_value).endswith(f"(was it killed?). Last line: Killed. Log: {paths.stderr}")
