"""Memory and time are estimated, or measured in a few real steps that leave no files."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import SpaceHardware

from peft_space import hardware, operations
from peft_space.errors import UserError
from peft_space.estimation.hub_hardware import HARDWARE
from peft_space.models.resolve import find_base
from peft_space.planning.dry_run import _scratch_run, dry_run
from peft_space.planning.training_estimate import (
    estimate_training,
    flops_a_token,
    memory_here,
    multiplied_parameters,
)
from peft_space.recipe import Recipe
from peft_space.training.prepare import prepare
from peft_space.training.trainers import padded_tokens
from peft_space.web.render.recipe import spaces_html, words_markdown

SMALL = {"quantization": "none", "batch_size": 2, "max_steps": 20, "gradient_accumulation_steps": 4}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The result of the command line, its folder for scratch files, and its home."""
    folder, home = tmp_path_factory.mktemp("scratch"), tmp_path_factory.mktemp("home")
    command = [
        sys.executable,
        "-m",
        "peft_space",
        "dry-run",
        "demo",
        "--recipe",
        json.dumps(SMALL),
        "--json",
    ]
    environment = os.environ | {"TMPDIR": str(folder), "PEFT_SPACE_HOME": str(home)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout), folder, home


@pytest.mark.slow
def test_a_dry_run_measures_memory_and_time_next_to_the_estimates(measured):
    result, estimated = measured[0], measured[0]["estimates"]
    assert 0 < result["step_seconds"] < result["seconds"]
    assert result["seconds"] > 20 * result["step_seconds"]
    assert result["memory"] > estimated["memory"]["parts"]["weights"]
    assert result["memory_error"] == pytest.approx(
        estimated["memory"]["total"] / result["memory"] - 1
    )
    assert result["seconds_error"] == pytest.approx(
        estimated["time"]["seconds"] / result["seconds"] - 1
    )
    assert "20 steps" in result["words"][1]


@pytest.mark.slow
def test_the_memory_estimate_for_the_built_in_model_is_close(measured):
    # libraries take more or less memory on other machines, which counts most for a tiny model
    difference = measured[0]["estimates"]["memory"]["total"] - measured[0]["memory"]
    assert abs(difference) < 150_000_000


def test_a_dry_run_leaves_no_files(measured):
    _, scratch, home = measured
    assert not list(scratch.glob("peft_space*"))
    assert [path.name for path in home.iterdir()] == ["cache"]


@pytest.mark.slow
def test_the_command_line_and_the_operation_give_the_same_estimates(run_command):
    status, out, _ = run_command("estimate", "demo", "--recipe", json.dumps(SMALL), "--json")
    printed, returned = json.loads(out), operations.estimate("demo", SMALL)
    assert status == 0
    for measured_each_time in ("measured_tokens", "step_seconds", "seconds"):
        assert printed["time"].pop(measured_each_time) > 0
        assert returned["time"].pop(measured_each_time) > 0
    assert printed["time"] == returned["time"]
    assert (printed["spaces"], printed["memory"]["parts"]) == (
        returned["spaces"],
        returned["memory"]["parts"],
    )


@pytest.mark.slow
def test_a_recipe_that_does_not_fit_is_rejected_with_options(monkeypatch):
    recipe = Recipe(batch_size=64, gradient_checkpointing="off")
    limit = estimate_training("demo", recipe).memory.total * 4 // 5
    monkeypatch.setattr(hardware, "free_memory", lambda: limit)
    with pytest.raises(UserError, match=r"batches of (32, 2|16, 4)") as error:
        dry_run("demo", recipe)
    assert error.value.code == "planning.does_not_fit"


@pytest.mark.slow
def test_a_killed_dry_run_ends_its_child_and_removes_its_files(tmp_path):
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "peft_space", "dry-run", "demo", "--recipe", json.dumps(SMALL)]
    process = subprocess.Popen(command, env=environment)
    wait_until(lambda: list(tmp_path.glob("peft_space-dry-run-*/run/events.jsonl")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: not list(tmp_path.glob("peft_space-dry-run-*")))


def wait_until(condition):
    deadline = time.time() + 60
    while not condition():
        assert time.time() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_the_last_step_has_the_longest_rows_and_the_others_typical_ones():
    prepared, recipe = prepare("demo", Recipe(batch_size=4)), Recipe(batch_size=4)
    with tempfile.TemporaryDirectory() as scratch:
        run = _scratch_run(Path(scratch, "run"), prepared, recipe)
        about = json.loads(run.path("data", "about.json").read_text())
    places = [place for start, end in about["train"] for place in range(start, end)]
    lengths = prepared.train.at(np.array(places)).column("length").reshape(4, 4)
    everything = np.sort(prepared.train.column("length"))
    assert sorted(lengths[-1]) == list(everything[-4:])
    assert np.median(lengths[0]) == pytest.approx(np.median(everything), rel=0.1)
    assert (lengths[0] == lengths[2]).all()


def test_tokens_are_counted_with_their_padding():
    assert padded_tokens(np.array([10] * 7), 3) == 10
    assert padded_tokens(np.array([2, 8]), 2) == 8
    assert padded_tokens(np.array([2, 8]), 1) == 5


def test_a_token_costs_four_flops_per_parameter_and_six_with_checkpointing():
    parameters = multiplied_parameters(find_base("demo").config, "causal-lm")
    assert flops_a_token(parameters, "causal-lm", False) == 4 * parameters
    assert flops_a_token(parameters, "causal-lm", True) == 6 * parameters
    assert flops_a_token(parameters, "dpo", False) == 6 * parameters


def test_the_hardware_is_what_the_hub_offers_with_at_most_one_gpu():
    several = {kind.value for kind in SpaceHardware if kind.value[-2:] in ("x2", "x4", "x8")}
    assert {kind.name for kind in HARDWARE} == {kind.value for kind in SpaceHardware} - several


def test_the_page_shows_each_kind_of_hardware_and_escapes_what_it_shows():
    line = {
        "name": "t4-small",
        "title": "T4 <small>",
        "memory": 14.4e9,
        "need": 2e10,
        "fits": False,
        "least_seconds": 130.0,
    }
    shown = spaces_html([line, line | {"need": 2e9, "fits": True}])
    assert "✗ does not fit: 18.6 GiB of 13.4 GiB" in shown
    assert "✓ fits: 1.9 GiB of 13.4 GiB" in shown
    assert shown.count("at least 2 min") == 1
    assert "T4 &lt;small&gt;" in shown
    assert words_markdown(["Time: 3 s."]) == "**Time:** 3 s\\."


@pytest.mark.slow
def test_several_gpus_share_the_rows_and_the_time_of_a_step(monkeypatch):
    recipe = Recipe(quantization="none", batch_size=8)
    one = estimate_training("demo", recipe)
    monkeypatch.setattr(hardware, "num_devices", lambda: 4)
    four = estimate_training("demo", recipe)
    monkeypatch.setattr(hardware, "num_devices", lambda: 1)
    quarter = memory_here(
        Recipe(quantization="none", batch_size=2), find_base("demo").config, "causal-lm",
        one.memory.length,
    )  # fmt: skip
    assert four.memory.total < one.memory.total
    assert four.memory.parts["activations"] == pytest.approx(quarter.parts["activations"], rel=0.01)
    assert four.time.flops == one.time.flops
    assert four.time.step_seconds < one.time.step_seconds / 2


def test_a_tenth_of_a_gpu_is_left_to_libraries_and_holes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10_000, 16_000))
    assert hardware.free_memory() == 9_000


def test_a_gpu_may_leave_no_holes_between_batches_of_different_lengths():
    code = "from peft_space.settings import prepare_libraries as p; p(); import os;"
    command = [sys.executable, "-c", code + "print(os.environ['PYTORCH_ALLOC_CONF'])"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "expandable_segments:True" in done.stdout
