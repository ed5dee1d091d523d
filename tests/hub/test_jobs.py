"""A run on Hugging Face Jobs: the real client against a Hub of our own (hub_server.py), whose jobs really run what was sent to them."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from peft_space import operations
from peft_space.__main__ import main
from peft_space.errors import UserError
from peft_space.hub import jobs
from peft_space.recipe import Recipe
from peft_space.runs import archive as run_archive
from peft_space.runs import events
from peft_space.runs.run import Run
from peft_space.runtime.supervisor import start_training
from peft_space.training.prepare import make_run
from tests.conftest import READER, WRITER
from tests.fixtures.app_process import App
from tests.fixtures.fake_hub import Commit
from tests.hub.test_push import PLAN

RECIPE = Recipe(
    max_steps=4, save_steps=2, compute_dtype="float32", max_length=96, lora_rank=4, eval_steps=4
)
LONG = RECIPE.model_copy(
    update={"max_steps": 4_000, "num_epochs": 100.0, "save_steps": 3, "eval_steps": 4_000}
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text(
        "".join(
            json.dumps({"question": f"What is {n}?", "answer": f"It is {n}."}) + "\n"
            for n in range(40)
        )
    )
    return str(path)


@pytest.fixture
def jobs_hub(the_hub, hub_environment, tmp_path):
    """The Hub, empty, with jobs that have a home and nothing else of ours."""
    inherited = {
        name: value
        for name, value in hub_environment.items()
        if name not in {"HF_TOKEN", "HF_HOME", "PYTHONPATH"}
    }
    own = {
        "PEFT_SPACE_HOME": str(tmp_path / "job-home"),
        "HF_HOME": str(tmp_path / "job-hf"),
        "HOME": str(tmp_path),
    }
    the_hub.job_environment = (
        inherited | own | {"PEFT_SPACE_JOB_SECONDS": "0.3", "OMP_NUM_THREADS": "1"}
    )
    return the_hub


@pytest.fixture
def job(hub_environment):
    """Runs `python -m peft_space job`, and returns the process."""

    def started(run, *arguments, token=WRITER):
        command = [
            sys.executable,
            "-m",
            "peft_space",
            "job",
            str(run.directory),
            *map(str, arguments),
        ]
        environment = hub_environment | {"HF_TOKEN": token, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return started


def done(process):
    out, err = process.communicate(timeout=180)
    return process.returncode, out, err


def until(true, seconds=90):
    end = time.time() + seconds
    while not (found := true()):
        assert time.time() < end, "it did not come to that"
        time.sleep(0.2)
    return found


@pytest.mark.slow
def test_a_run_goes_to_a_job_and_comes_back_with_the_adapter_that_is_trained_here_byte_for_byte(
    jobs_hub, job, rows, tmp_path, monkeypatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run = make_run(tmp_path / "run", rows, RECIPE)
    here = Run(shutil.copytree(run.directory, tmp_path / "here"))
    following = job(run, "--flavor", "cpu-basic", "--timeout", "10m", "--follow")
    assert main(["resume", str(here.directory)]) == 0
    status, out, err = done(following)
    assert status == 0, err
    assert "The run is finished, at step 4." in out
    assert run.status() == "finished"
    for name in ("adapter_model.safetensors", "adapter_config.json", "tokenizer.json"):
        assert (run.adapter / name).read_bytes() == (here.adapter / name).read_bytes()
    told = [event for event in run.history() if isinstance(event, events.Step)]
    assert [event.loss for event in told] == [
        event.loss for event in here.history() if isinstance(event, events.Step)
    ]
    assert "step 4: loss" in err
    assert [path.name for path in sorted(run.path("checkpoints").iterdir())] == [
        "checkpoint-2",
        "checkpoint-4",
    ]
    assert not run.path("job.json").exists()
    [repository] = jobs_hub.repositories.values()
    assert repository.private
    [sent] = jobs_hub.jobs.values()
    assert sent.spec["flavor"] == "cpu-basic"
    assert sent.spec["timeoutSeconds"] == 600
    assert sent.spec["secrets"] == {"HF_TOKEN": WRITER}
    everything = b"".join(
        content for commit in repository.commits for content in commit.files.values()
    )
    kept = b"".join(path.read_bytes() for path in run.directory.rglob("*") if path.is_file())
    assert WRITER.encode() not in everything + kept
    assert WRITER not in json.dumps(
        {name: value for name, value in sent.spec.items() if name != "secrets"}
    )


@pytest.mark.slow
def test_a_cancelled_job_leaves_a_run_that_goes_on_from_its_last_checkpoint(
    jobs_hub, job, rows, tmp_path
):
    run = make_run(tmp_path / "run", rows, LONG)
    assert done(job(run, "--flavor", "cpu-basic", "--timeout", "10m"))[0] == 0
    following = job(run, "--follow")
    until(
        lambda: (
            run.path("checkpoints").is_dir()
            and any(run.path("checkpoints").glob("checkpoint-*/manifest.json"))
        )
    )
    assert run.status() == "on_job"
    [sent] = jobs_hub.jobs.values()
    command = [sys.executable, "-m", "peft_space", "resume", str(run.directory)]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert (refused.returncode, "is trained on Hugging Face Jobs" in refused.stderr) == (2, True)
    sent.end("CANCELED", "Job was canceled")
    status, out, err = done(following)
    assert (status, "The run is paused, at step" in out) == (0, True), err
    run.path("recipe.json").write_text(
        run.recipe.model_copy(update={"max_steps": 12}).model_dump_json()
    )
    assert main(["resume", str(run.directory), "--ignore-mismatch"]) == 0
    begun = [event for event in run.history() if isinstance(event, events.Started)]
    assert begun[-1].from_step > 0


@pytest.mark.slow
def test_a_job_leaves_before_its_time_is_over_and_nothing_is_lost(jobs_hub, job, rows, tmp_path):
    run = make_run(
        tmp_path / "run",
        rows,
        LONG.model_copy(update={"save_steps": 40_000, "max_steps": 40_000, "num_epochs": 1000}),
    )
    status, out, err = done(job(run, "--flavor", "cpu-basic", "--timeout", "60", "--follow"))
    assert (status, "The run is paused, at step" in out) == (0, True), err
    last = run.history()[-1]
    assert isinstance(last, events.Paused)
    assert last.step > 0
    assert run.path("checkpoints", f"checkpoint-{last.step}", "manifest.json").is_file()
    assert any(
        isinstance(event, events.Notice) and "nearly over" in event.why for event in run.history()
    )


@pytest.mark.slow
def test_a_training_that_fails_in_a_job_says_why_in_its_own_words(jobs_hub, job, rows, tmp_path):
    run = make_run(tmp_path / "run", rows, RECIPE)
    run.path("data", "about.json").write_text("{")
    status, out, err = done(job(run, "--flavor", "cpu-basic", "--timeout", "10m", "--follow"))
    assert status == 0, err
    assert "The run is failed, at step 0. This is a fault of the app" in out
    assert "JSONDecodeError" in run.path("job.log").read_text()


@pytest.mark.slow
def test_a_program_hands_a_run_over_follows_it_and_has_its_adapter(
    jobs_hub, hub_environment, tmp_path, rows
):
    only = ("HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_XET", "HF_HOME")
    app = App(
        tmp_path / "home", OMP_NUM_THREADS="1", **{name: hub_environment[name] for name in only}
    )
    app.start()
    try:
        client = Client(
            app.url, verbose=False, download_files=tmp_path / "downloads", analytics_enabled=False
        )
        recipe = RECIPE.model_dump(exclude_defaults=True)
        made = client.predict(
            data=handle_file(rows), recipe=recipe, no_train=True, api_name="/train"
        )
        assert made["status"] == "new"
        mine = {"run": made["run"]}
        hardware = client.predict(**mine, token=WRITER, api_name="/job_hardware")["hardware"]
        assert "cpu-basic" in [one["name"] for one in hardware]
        handed = client.predict(
            **mine, flavor="cpu-basic", timeout="10m", token=WRITER, api_name="/submit_job"
        )
        assert handed["status"] == "on_job"
        with pytest.raises(AppError, match="is handed over: there is nothing to resume"):
            client.predict(**mine, api_name="/resume")
        until(lambda: client.predict(**mine, api_name="/status")["status"] != "on_job", seconds=150)
        told = client.predict(**mine, api_name="/status")
        assert (told["status"], [loss["step"] for loss in told["losses"]]) == (
            "finished",
            [1, 2, 3, 4],
        ), told["message"]
        assert client.predict(**mine, api_name="/export").endswith(".zip")
    finally:
        app.kill()
    kept = b"".join(path.read_bytes() for path in app.home.rglob("*") if path.is_file())
    assert WRITER.encode() not in kept


# What a job could do, played by the test


@pytest.fixture
def here(the_hub, monkeypatch):
    """The Hub, and the client of this process is pointed at it. Its jobs only wait."""
    the_hub.job_environment = None
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", the_hub.url)
    monkeypatch.setattr(
        huggingface_hub.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        the_hub.url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return the_hub


@pytest.fixture(scope="module")
def made(rows, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("made") / "run", rows, RECIPE)


@pytest.fixture
def run(made, tmp_path):
    """A new run, of a base on the Hub, so that the built-in model does not go along."""
    copied = shutil.copytree(made.directory, tmp_path / "run")
    (copied / "recipe.json").write_text(
        RECIPE.model_copy(update={"base_model": "maria/base"}).model_dump_json()
    )
    return Run(copied)


def hand_over(run, **more):
    return jobs.submit(run, **{"flavor": "cpu-basic", "seconds": 600, "token": WRITER} | more)


def look(run):
    with run.lock():
        return jobs.poll(run, WRITER)


def send(hub, run, *happened, **files):
    """Commit what a job would have sent."""
    [repository] = hub.repositories.values()
    packed = {
        name.removeprefix("run/"): content
        for name, content in repository.files.items()
        if name.startswith("run/")
    }
    packed["events.jsonl"] = packed.get("events.jsonl", b"") + b"".join(
        event.model_dump_json().encode() + b"\n" for event in happened
    )
    packed |= files
    digests = run_archive.digests_of(packed)
    files = {f"run/{name}": content for name, content in packed.items()} | {
        "packed.json": json.dumps(digests).encode()
    }
    repository.commits.append(Commit("sent", repository.files | files))
    return repository


def step(number):
    return events.Step(
        attempt=1, step=number, loss=1.0, learning_rate=0.1, grad_norm=1.0, tokens=9, seconds=0.1
    )


BEGUN = events.Started(attempt=1, from_step=0, total_steps=4)
CHECKPOINT = {
    "plan.json": PLAN.model_dump_json().encode(),
    "checkpoints/checkpoint-2/weights.pt": b"w",
    "checkpoints/checkpoint-2/manifest.json": b"{}",
}


def test_events_come_while_it_goes_on_and_the_outcome_when_all_else_has_come(here, run):
    hand_over(run)
    assert run.status() == "on_job"
    assert not look(run)
    assert not look(run)
    assert [event.what for event in run.history() if isinstance(event, events.Preparing)] == [
        "Installing the libraries on the job's machine"
    ]
    send(here, run, BEGUN, step(1))
    assert not look(run)
    assert not any(isinstance(event, events.Preparing) for event in run.history())
    send(here, run, step(2), **CHECKPOINT)
    assert not look(run)
    assert run.path("checkpoints", "checkpoint-2", "weights.pt").read_bytes() == b"w"
    send(here, run, events.Finished(step=4, seconds=1), **{"adapter/adapter_config.json": b"{}"})
    assert not look(run)
    assert run.status() == "on_job"
    here.jobs["job0"].end("COMPLETED", "")
    assert look(run)
    assert run.status() == "finished"
    assert [event.step for event in run.history() if isinstance(event, events.Step)] == [1, 2]
    assert run.adapter.is_dir()


@pytest.mark.parametrize(
    ("stage", "message", "sent", "status", "words"),
    [
        (
            "CANCELED",
            "Job was canceled",
            True,
            "paused",
            r"The job was cancelled\. Training goes on from step 2",
        ),
        (
            "ERROR",
            "Job timeout",
            True,
            "failed",
            r"ended by its time limit of 10 min 0 s\. .* it goes on from step 2, its last checkpoint",
        ),
        (
            "ERROR",
            "exit code: 137",
            False,
            "failed",
            r"ended with an error \(exit code: 137\); job\.log .* from the first step",
        ),
        ("COMPLETED", "", True, "failed", "ended with an error; job.log"),
        (None, "", True, "failed", "The Hub does not know the job any more"),
    ],
)
def test_how_a_job_ended_is_told_in_a_sentence_and_the_run_can_be_gone_on_with(
    here, run, stage, message, sent, status, words
):
    hand_over(run)
    if sent:
        send(here, run, BEGUN, step(1), step(2), **CHECKPOINT)
    here.jobs["job0"].end(stage or "ERROR", message)
    if stage is None:
        del here.jobs["job0"]
    assert look(run)
    assert run.status() == status
    told = [
        f"{event.what} {event.why}" for event in run.history() if isinstance(event, events.Notice)
    ]
    told += [event.message for event in run.history() if isinstance(event, events.Failed)]
    assert re.search(words, told[-1]), told
    with pytest.raises(UserError, match="has no job"):
        look(run)
    assert hand_over(run).job in here.jobs  # once more, from where it was


@pytest.mark.parametrize("sent", [b"not an event\n", b'{"event": "Queued"}\n'])
def test_what_no_training_tells_does_not_come_back_and_does_not_hold_the_run(here, run, sent):
    hand_over(run)
    send(here, run, **{"events.jsonl": sent})
    with pytest.raises(UserError, match="came back from the job"):
        look(run)
    assert run.status() == "on_job"
    here.jobs["job0"].end("COMPLETED", "")
    assert look(run)
    assert run.status() == "failed"
    assert "hand it over again" in run.history()[-1].message


def test_cancelling_ends_the_job(here, run):
    hand_over(run)
    jobs.cancel(run, WRITER)
    assert here.jobs["job0"].stage()[0] == "CANCELED"
    assert look(run)
    jobs_before = len(here.jobs)
    with pytest.raises(UserError, match="has no job: it is paused"):
        jobs.cancel(run, WRITER)
    assert len(here.jobs) == jobs_before


def test_while_a_job_has_it_nothing_here_trains_or_deletes_the_run(here, run):
    hand_over(run)
    for forbidden in (lambda: start_training(run), run.delete, lambda: hand_over(run)):
        with pytest.raises(UserError, match=r"Hugging Face Jobs|handed over already"):
            forbidden()
    assert run.directory.is_dir()
    assert len(here.jobs) == 1


@pytest.mark.parametrize(
    ("fault", "more", "words"),
    [
        (None, {"token": "hf_wrong"}, "The job was not started: the Hub does not accept the token"),
        (None, {"token": READER}, "The job was not started: the token may not do this"),
        (
            None,
            {"flavor": "h900"},
            "Jobs have no hardware 'h900' now. Choose one of: cpu-basic, t4-small, l4x4",
        ),
        (("/api/jobs/maria", 402), {}, "there is no credit for jobs"),
        (("/api/jobs/hardware", 503), {}, r"an error of its own \(503\)"),
        (("/commit/", 500), {}, "The job was not started"),
    ],
)
def test_what_stands_against_a_job_is_told_and_the_run_is_as_it_was(here, run, fault, more, words):
    if fault:
        here.fail_next(*fault, times=20)
    with pytest.raises(UserError, match=words) as refusal:
        hand_over(run, **more)
    assert "\n" not in str(refusal.value)
    assert "hf_wrong" not in str(refusal.value)
    assert (run.status(), run.history(), len(here.jobs)) == ("new", [], 0)


def test_where_the_hubs_answer_was_lost_no_second_job_is_started(here, run):
    handed = hand_over(run)
    run.path("events.jsonl").unlink()  # as if the first had never been told
    assert hand_over(run).job == handed.job
    assert len(here.jobs) == 1


def test_a_run_with_checkpoints_of_a_cpu_does_not_go_to_a_gpu(here, run):
    run.path("plan.json").write_text(PLAN.model_dump_json())
    run.path("checkpoints", "checkpoint-2").mkdir(parents=True)
    run.path("checkpoints", "checkpoint-2", "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="begun on a CPU, and t4-small is a GPU"):
        hand_over(run, flavor="t4-small")


@pytest.mark.parametrize(
    "name",
    ["../outside", "adapter/../../outside", "/tmp/outside", "data/a\\b", "worker.log", "adapter/"],
)
def test_nothing_is_taken_that_belongs_to_no_run(name):
    with pytest.raises(UserError, match="belongs to no run"):
        run_archive.read_manifest(json.dumps({"plan.json": "0" * 64, name: "0" * 64}))


def test_what_is_not_as_it_was_packed_does_not_come_back(here, run):
    hand_over(run)
    repository = send(here, run, BEGUN, **{"adapter/adapter_model.safetensors": b"right"})
    repository.commits.append(
        Commit("bad", repository.files | {"run/adapter/adapter_model.safetensors": b"wrong"})
    )
    with pytest.raises(UserError, match="not as it was packed"):
        look(run)
    assert not run.path("adapter").exists()


@pytest.mark.parametrize(
    ("limit", "sent", "words"),
    [
        (
            "1",
            {"adapter/adapter_model.safetensors": 2_000_000},
            r"takes 0\.00 GiB, and at most 0\.00 GiB are taken here",
        ),
        (
            "1",
            {f"checkpoints/checkpoint-{step}/weights.pt": 300_000 for step in (1, 2, 3, 4)},
            "PEFT_SPACE_MAX_RUN_MB",
        ),
        (
            "900",
            {f"adapter/part-{number}.txt": 1 for number in range(10_001)},
            "and a run has at most 10,000",
        ),
        ("1", {"packed.json": 1_500_000}, "PEFT_SPACE_MAX_RUN_MB"),
    ],
)
def test_more_than_a_run_can_have_does_not_come_back_and_is_not_even_fetched(
    here, run, monkeypatch, limit, sent, words
):
    monkeypatch.setenv("PEFT_SPACE_MAX_RUN_MB", limit)
    hand_over(run)
    if "packed.json" in sent:
        [repository] = here.repositories.values()
        repository.commits.append(
            Commit("sent", repository.files | {"packed.json": bytes(sent["packed.json"])})
        )
    else:
        send(
            here,
            run,
            BEGUN,
            step(1),
            **{name: bytes(size) for name, size in sent.items()},
            **{"plan.json": b"{}"},
        )
    before = sorted(run.directory.rglob("*"))
    here.requests.clear()
    with pytest.raises(UserError, match=words):
        look(run)
    assert sorted(run.directory.rglob("*")) == before
    assert not [request.path for request in here.requests if "/run/" in request.path]
    here.jobs["job0"].end("COMPLETED", "")
    assert look(run)
    assert run.status() == "failed"
    assert re.search(words, run.history()[-1].message)
    assert not run.path("adapter").exists()


def test_a_file_of_text_is_not_as_large_as_weights_may_be():
    run_archive.refuse_large(
        {"adapter/adapter_model.safetensors": 300_000_000, "adapter/tokenizer.json": 100_000_000},
        1e9,
    )
    with pytest.raises(
        UserError,
        match=r"adapter_config\.json has 0\.28 GiB, and no such file of a run has more than 0\.19 GiB",
    ):
        run_archive.refuse_large({"adapter/adapter_config.json": 300_000_000}, 1e9)


def test_where_one_file_is_not_as_it_was_packed_nothing_of_the_others_comes_back(here, run):
    hand_over(run)
    files = {
        "adapter/adapter_config.json": b"{}",
        "checkpoints/checkpoint-2/manifest.json": b"{}",
        "plan.json": b"right",
    }
    repository = send(here, run, BEGUN, **files)
    repository.commits.append(Commit("bad", repository.files | {"run/plan.json": b"wrong"}))
    before = sorted(filter(Path.is_file, run.directory.rglob("*")))
    with pytest.raises(UserError, match=r"plan\.json is not as it was packed"):
        look(run)
    assert sorted(filter(Path.is_file, run.directory.rglob("*"))) == before


def test_of_a_jobs_log_the_end_is_kept(here, run):
    hand_over(run)
    job = here.jobs["job0"]
    with open(f"{job._folder.name}/log", "w") as log:
        log.writelines(f"line {number}{'!' * 3_000}\n" for number in range(10_500))
    look(run)
    kept = run.path("job.log").read_text().splitlines()
    assert (len(kept), kept[-1][:10], max(map(len, kept))) == (10_000, "line 10499", 2_000)


def test_the_estimates_say_what_fits_how_long_and_what_it_costs(here, made):
    found = operations.job_hardware(str(made.directory), WRITER)["hardware"]
    assert {one["name"] for one in found} == {"cpu-basic", "t4-small", "l4x4"}
    by_name = {one["name"]: one for one in found}
    assert all(one["fits"] for one in found)
    assert by_name["cpu-basic"]["seconds"] is None
    assert by_name["t4-small"]["dollars_an_hour"] == pytest.approx(0.4, rel=0.01)
    assert by_name["t4-small"]["timeout"] >= 1_200
    assert by_name["l4x4"]["seconds"] < by_name["t4-small"]["seconds"]


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("90m", 5400), ("2h", 7200), ("1.5h", 5400), ("600", 600), ("1d", 86_400)],
)
def test_a_length_of_time_is_written_as_people_do(written, seconds):
    assert jobs.seconds_of(written) == seconds


@pytest.mark.parametrize("written", ["", "0", "soon", "-1h", "2 weeks"])
def test_what_is_no_length_of_time_is_refused(written):
    with pytest.raises(UserError, match="no length of time"):
        jobs.seconds_of(written)


def test_links_are_not_taken(tmp_path):
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "plan.json").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="a link in place of"):
        run_archive.install(
            tmp_path / "run",
            run_archive.digests_of({"plan.json": b"x"}),
            ["plan.json"],
            lambda name: tmp_path / name,
        )
