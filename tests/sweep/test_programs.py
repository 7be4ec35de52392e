"""What a sweep tells of the programs that its jobs have compiled."""

import json

import pytest

from xlstm_hydra.sweep._programs import tell_programs


def told(folder, *jobs):
    for number, content in enumerate(jobs):
        (folder / str(number)).mkdir()
        if content is not None:
            (folder / str(number) / "plan.json").write_text(content)
    return tell_programs(folder / str(number) for number in range(len(jobs)))


def measured(programs, from_cache, seconds):
    return json.dumps(
        {"measured": {"programs": programs, "programs_from_cache": from_cache, "compile_seconds": seconds}}
    )


def test_the_programs_of_all_jobs_are_summed_up(tmp_path):
    jobs = measured(7, 0, 20.0), measured(7, 6, 2.0), measured(0, 0, 0.0), measured(0, 0, 0.0)
    expected = (
        "compiled: 8 of 14 programs, 22.0 s in all; 6 came from the cache (43%); 2 jobs ran those of the job before"
    )
    assert told(tmp_path, *jobs) == expected


def test_a_sweep_that_shares_nothing_says_so(tmp_path):
    assert told(tmp_path, measured(7, 0, 20.0)) == "compiled: 7 of 7 programs, 20.0 s in all"


@pytest.mark.parametrize("content", [None, "{", "[]", '{"measured": null}', '{"measured": {"step_seconds": 1.0}}'])
def test_a_job_that_has_not_ended_does_not_count(content, tmp_path):
    assert told(tmp_path, content) is None
