"""The report of a sweep about the programs that its jobs have compiled."""

import json
import sys

import pytest

from xlstm_hydra.sweep import COMPLETED, Outcome, finish_sweep, start_sweep, update_record


@pytest.fixture
def printed(tmp_path, monkeypatch, capsys):
    """Return the line about programs at the end of a sweep whose jobs have written these plans."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # no plots

    def finish(*plans):
        start_sweep(tmp_path, [[f"trainer.seed={job}"] for job in range(len(plans))])
        update_record(tmp_path, [Outcome(job=job, status=COMPLETED) for job in range(len(plans))])
        for job, content in enumerate(plans):
            (tmp_path / str(job)).mkdir()
            if content is not None:
                (tmp_path / str(job) / "plan.json").write_text(content)
        finish_sweep(tmp_path)
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("compiled: ")]

    return finish


def measured(programs, from_cache, seconds):
    return json.dumps(
        {"measured": {"programs": programs, "programs_from_cache": from_cache, "compile_seconds": seconds}}
    )


def test_the_compiled_programs_of_all_jobs_are_summed(printed):
    jobs = measured(7, 0, 20.0), measured(7, 6, 2.0), measured(0, 0, 0.0), measured(0, 0, 0.0)
    cached = "6 came from the cache (43%); 2 jobs reused programs of an earlier job"
    expected = f"compiled: 8 of 14 programs, 22.0 s in total; {cached}"
    assert printed(*jobs) == [expected]


def test_a_sweep_that_shares_nothing_says_so(printed):
    assert printed(measured(7, 0, 20.0)) == ["compiled: 7 of 7 programs, 20.0 s in total"]


@pytest.mark.parametrize("content", [None, "{", "[]", '{"measured": null}', '{"measured": {"step_seconds": 1.0}}'])
def test_a_job_that_has_not_ended_does_not_count(content, printed):
    assert printed(content) == []
