"""A training that is killed, damaged or out of disk space resumes to the same result.

`benchmarks/crash_recovery.py` does the same with more runs.
"""

import random

import pytest

from tests.fixtures import crash_harness


@pytest.mark.slow
def test_runs_killed_twenty_times_end_like_uninterrupted_ones(tmp_path):
    crash_harness.load_libraries()
    kit, tally, rng = crash_harness.Kit(tmp_path), crash_harness.Tally(), random.Random(0)
    tasks = crash_harness.TASKS
    while tally.kills < 20 or tally.runs < len(tasks):
        name, task = f"run-{tally.runs}", tasks[tally.runs % len(tasks)]
        crash_harness.kill_and_compare(kit, name, task, rng, 8, tally)
    assert tally.problems == []
    assert tally.inside_saves >= 6


@pytest.mark.slow
@pytest.mark.parametrize("task", crash_harness.TASKS)
def test_a_disk_that_fills_up_in_a_save_leaves_the_previous_checkpoint(tmp_path, task):
    crash_harness.load_libraries()
    try:
        problem, message = crash_harness.fill_disk_and_compare(
            crash_harness.Kit(tmp_path), "full", task, random.Random(0)
        )
    except PermissionError as error:
        pytest.skip(str(error))
    assert problem is None
    assert message


@pytest.mark.slow
def test_every_file_of_a_checkpoint_is_checked(tmp_path):
    crash_harness.load_libraries()
    rng = random.Random(0)
    run, alone = crash_harness.cut_short(crash_harness.Kit(tmp_path), "whole", "dpo", rng)
    ways = crash_harness.WAYS * 4
    problems = [crash_harness.tamper_and_compare(run, alone, way, rng) for way in ways]
    assert problems == [None] * 16


@pytest.mark.slow
def test_a_killed_process_tree_ends_like_an_uninterrupted_one(tmp_path):
    crash_harness.load_libraries()
    tally = crash_harness.Tally()
    crash_harness.kill_process_tree(crash_harness.Kit(tmp_path), "tree", random.Random(0), 4, tally)
    assert tally.problems == []
