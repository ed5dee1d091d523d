"""Hugging Face Jobs: the real client against a fake Hub whose jobs run what was sent to them."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from peft_space import operations
from peft_space.__main__ import main
from peft_space.demo import PICTURES_FILE
from peft_space.errors import UserError
from peft_space.hub import jobs
from peft_space.recipe import Recipe
from peft_space.runs import archive, events
from peft_space.runs.run import Run
from peft_space.runtime.supervisor import start_training
from peft_space.training.prepare import make_run
from tests.conftest import READER, WRITER
from tests.fixtures.app_process import App
from tests.fixtures.fake_hub import Commit
from tests.fixtures.plans import PLAN
from tests.fixtures.waiting import wait_for

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
    """The empty Hub, whose jobs run with their own home and without our Python path."""
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
    """Starts `python -m peft_space job`, and returns the process."""

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


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["texts", "pictures"])
def test_a_job_returns_the_same_adapter_as_a_local_training(
    kind, jobs_hub, job, rows, tmp_path, monkeypatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    data, recipe = rows, RECIPE
    if kind == "pictures":
        data = str(PICTURES_FILE)
        recipe = RECIPE.model_copy(update={"base_model": "demo-pictures", "max_length": 256})
    run = make_run(tmp_path / "run", data, recipe)
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
def test_after_a_cancelled_job_the_run_resumes_from_its_last_checkpoint(
    jobs_hub, job, rows, tmp_path
):
    run = make_run(tmp_path / "run", rows, LONG)
    assert done(job(run, "--flavor", "cpu-basic", "--timeout", "10m"))[0] == 0
    following = job(run, "--follow")
    wait_for(
        lambda: (
            run.path("checkpoints").is_dir()
            and any(run.path("checkpoints").glob("checkpoint-*/manifest.json"))
        )
    )
    assert run.status() == "on_job"
    [sent] = jobs_hub.jobs.values()
    command = [sys.executable, "-m", "peft_space", "resume", str(run.directory)]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert (refused.returncode, "[runs.on_job]" in refused.stderr) == (2, True)
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
def test_a_job_pauses_before_its_time_limit_and_loses_nothing(jobs_hub, job, rows, tmp_path):
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
        isinstance(event, events.Notice) and event.what == "Paused:" for event in run.history()
    )


@pytest.mark.slow
def test_a_training_that_fails_in_a_job_reports_its_own_error(jobs_hub, job, rows, tmp_path):
    run = make_run(tmp_path / "run", rows, RECIPE)
    run.path("data", "about.json").write_text("{")
    status, _, err = done(job(run, "--flavor", "cpu-basic", "--timeout", "10m", "--follow"))
    assert status == 0, err
    last = run.history()[-1]
    assert (run.status(), last.code, last.fault) == ("failed", "bug", True)
    assert "JSONDecodeError" in run.path("job.log").read_text()


@pytest.mark.slow
def test_a_program_submits_a_run_and_gets_its_adapter(jobs_hub, hub_environment, tmp_path, rows):
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
        with pytest.raises(AppError, match=r"runs\.on_job"):
            client.predict(**mine, api_name="/resume")
        wait_for(
            lambda: client.predict(**mine, api_name="/status")["status"] != "on_job", seconds=150
        )
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


# Tests that play the job


@pytest.fixture
def here(the_hub, monkeypatch):
    """The Hub, for the client of this process. Its jobs do nothing."""
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
    """A new run of a base model on the Hub, so that the built-in model is not uploaded."""
    copied = shutil.copytree(made.directory, tmp_path / "run")
    (copied / "recipe.json").write_text(
        RECIPE.model_copy(update={"base_model": "maria/base"}).model_dump_json()
    )
    return Run(copied)


def submit(run, **more):
    return jobs.submit(run, **{"flavor": "cpu-basic", "seconds": 600, "token": WRITER} | more)


def poll(run):
    with run.lock():
        return jobs.poll(run, WRITER)


def send(hub, run, *happened, **files):
    """Commit what a job would send."""
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
    manifest = {archive.MANIFEST: archive.manifest_of(packed).to_bytes()}
    files = {f"run/{name}": content for name, content in packed.items()} | manifest
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


def test_events_arrive_during_the_job_and_the_outcome_at_its_end(here, run):
    submit(run)
    assert run.status() == "on_job"
    assert not poll(run)
    assert not poll(run)
    assert [event.what for event in run.history() if isinstance(event, events.Preparing)] == [
        "Installing the libraries on the job's machine"
    ]
    send(here, run, BEGUN, step(1))
    assert not poll(run)
    assert not any(isinstance(event, events.Preparing) for event in run.history())
    send(here, run, step(2), **CHECKPOINT)
    assert not poll(run)
    assert run.path("checkpoints", "checkpoint-2", "weights.pt").read_bytes() == b"w"
    send(here, run, events.Finished(step=4, seconds=1), **{"adapter/adapter_config.json": b"{}"})
    assert not poll(run)
    assert run.status() == "on_job"
    here.jobs["job0"].end("COMPLETED", "")
    assert poll(run)
    assert run.status() == "finished"
    assert [event.step for event in run.history() if isinstance(event, events.Step)] == [1, 2]
    assert run.adapter.is_dir()


@pytest.mark.parametrize(
    ("stage", "message", "sent", "code", "words"),
    [
        ("CANCELED", "Job was canceled", True, None, r"from step 2"),
        ("ERROR", "Job timeout", True, "hub.job_timeout", r"10 min 0 s.*from step 2"),
        ("ERROR", "exit code: 137", False, "hub.job_failed", r"\(exit code: 137\).*first step"),
        ("COMPLETED", "", True, "hub.job_failed", r"job\.log.*from step 2"),
        (None, "", True, "hub.job_deleted", r"from step 2"),
    ],
)
@pytest.mark.sample(4)
def test_the_end_of_a_job_has_its_reason_and_the_run_can_be_resumed(
    here, run, stage, message, sent, code, words
):
    submit(run)
    if sent:
        send(here, run, BEGUN, step(1), step(2), **CHECKPOINT)
    here.jobs["job0"].end(stage or "ERROR", message)
    if stage is None:
        del here.jobs["job0"]
    assert poll(run)
    last = run.history()[-1]
    if code:
        assert (run.status(), last.code) == ("failed", code)
        text = last.message
    else:
        assert (run.status(), last.step) == ("paused", 2)
        [text] = [event.why for event in run.history() if isinstance(event, events.Notice)]
    assert re.search(words, text), text
    with pytest.raises(UserError) as error:
        poll(run)
    assert error.value.code == "hub.no_job"
    assert submit(run).job in here.jobs  # once more, from where it was


@pytest.mark.parametrize("sent", [b"not an event\n", b'{"event": "Queued"}\n'])
def test_events_that_no_training_writes_are_rejected_and_free_the_run(here, run, sent):
    submit(run)
    send(here, run, **{"events.jsonl": sent})
    with pytest.raises(UserError) as error:
        poll(run)
    assert error.value.code == "hub.invalid_job_events"
    assert run.status() == "on_job"
    here.jobs["job0"].end("COMPLETED", "")
    assert poll(run)
    assert run.status() == "failed"
    assert run.history()[-1].code == "hub.invalid_job_events"


def test_cancelling_ends_the_job(here, run):
    submit(run)
    jobs.cancel(run, WRITER)
    assert here.jobs["job0"].stage()[0] == "CANCELED"
    assert poll(run)
    jobs_before = len(here.jobs)
    with pytest.raises(UserError, match="paused") as error:
        jobs.cancel(run, WRITER)
    assert error.value.code == "hub.no_job"
    assert len(here.jobs) == jobs_before


def test_a_run_on_a_job_can_be_neither_trained_nor_deleted_here(here, run):
    submit(run)
    for forbidden in (lambda: start_training(run), run.delete, lambda: submit(run)):
        with pytest.raises(UserError) as error:
            forbidden()
        assert error.value.code in ("runs.on_job", "hub.run_not_available")
    assert run.directory.is_dir()
    assert len(here.jobs) == 1


@pytest.mark.parametrize(
    ("fault", "more", "code"),
    [
        (None, {"token": "hf_wrong"}, "hub.unauthorized"),
        (None, {"token": READER}, "hub.forbidden"),
        (None, {"flavor": "h900"}, "hub.unknown_hardware"),
        (("/api/jobs/maria", 402), {}, "hub.payment_required"),
        (("/api/jobs/hardware", 503), {}, "hub.server_error"),
        (("/commit/", 500), {}, "hub.server_error"),
    ],
)
def test_a_job_that_cannot_start_leaves_the_run_unchanged(here, run, fault, more, code):
    if fault:
        here.fail_next(*fault, times=20)
    with pytest.raises(UserError) as error:
        submit(run, **more)
    assert error.value.code == code
    assert "\n" not in str(error.value)
    assert "hf_wrong" not in str(error.value)
    assert "flavor" not in more or "cpu-basic, t4-small, l4x4" in str(error.value)
    assert (run.status(), run.history(), len(here.jobs)) == ("new", [], 0)


def test_after_a_lost_answer_of_the_hub_no_second_job_is_started(here, run):
    handed = submit(run)
    run.path("events.jsonl").unlink()  # as if the first had never been told
    assert submit(run).job == handed.job
    assert len(here.jobs) == 1


def test_a_run_with_cpu_checkpoints_is_not_submitted_to_a_gpu(here, run):
    run.path("plan.json").write_text(PLAN.model_dump_json())
    run.path("checkpoints", "checkpoint-2").mkdir(parents=True)
    run.path("checkpoints", "checkpoint-2", "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="t4-small") as error:
        submit(run, flavor="t4-small")
    assert error.value.code == "hub.other_device"


@pytest.mark.parametrize(
    "name",
    ["../outside", "adapter/../../outside", "/tmp/outside", "data/a\\b", "worker.log", "adapter/"],
)
def test_a_manifest_with_a_foreign_file_is_rejected(name):
    files = {"plan.json": "0" * 64, name: "0" * 64}
    content = json.dumps({"format": 1, "files": files}).encode()
    with pytest.raises(UserError) as error:
        archive.read_manifest(content, "maria/run")
    assert error.value.code == "runs.archive_foreign_file"
    assert repr(name) in str(error.value)


def test_a_file_with_another_digest_is_not_imported(here, run):
    submit(run)
    repository = send(here, run, BEGUN, **{"adapter/adapter_model.safetensors": b"right"})
    repository.commits.append(
        Commit("bad", repository.files | {"run/adapter/adapter_model.safetensors": b"wrong"})
    )
    with pytest.raises(UserError, match="adapter_model") as error:
        poll(run)
    assert error.value.code == "runs.archive_damaged"
    assert not run.path("adapter").exists()


@pytest.mark.parametrize(
    ("limit", "sent"),
    [
        ("1", {"adapter/adapter_model.safetensors": 2_000_000}),
        ("1", {f"checkpoints/checkpoint-{step}/weights.pt": 300_000 for step in (1, 2, 3, 4)}),
        ("900", {f"adapter/part-{number}.txt": 1 for number in range(10_001)}),
        ("1", {archive.MANIFEST: 1_500_000}),
    ],
)
def test_files_over_a_limit_are_never_downloaded(here, run, monkeypatch, limit, sent):
    monkeypatch.setenv("PEFT_SPACE_MAX_RUN_MB", limit)
    submit(run)
    if archive.MANIFEST in sent:
        [repository] = here.repositories.values()
        files = {archive.MANIFEST: bytes(sent[archive.MANIFEST])}
        repository.commits.append(Commit("sent", repository.files | files))
    elif len(sent) > archive.MAX_FILES:
        [repository] = here.repositories.values()
        manifest = {"format": 1, "files": dict.fromkeys(sent, "0" * 64)}
        files = {f"run/{name}": b"x" for name in sent}
        files[archive.MANIFEST] = json.dumps(manifest).encode()
        repository.commits.append(Commit("sent", repository.files | files))
    else:
        files = {name: bytes(size) for name, size in sent.items()} | {"plan.json": b"{}"}
        send(here, run, BEGUN, step(1), **files)
    before = sorted(run.directory.rglob("*"))
    here.requests.clear()
    codes = {"runs.archive_too_large", "runs.archive_damaged"}
    with pytest.raises(UserError) as error:
        poll(run)
    assert error.value.code in codes
    assert sorted(run.directory.rglob("*")) == before
    assert not [request.path for request in here.requests if "/run/" in request.path]
    here.jobs["job0"].end("COMPLETED", "")
    assert poll(run)
    assert (run.status(), run.history()[-1].code) == ("failed", error.value.code)
    assert not run.path("adapter").exists()


def test_a_text_file_has_a_lower_limit_than_weights():
    sizes = {"adapter/adapter_model.safetensors": 300_000_000, "adapter/tokenizer.json": 10**8}
    archive.check_sizes(sizes, 1e9, "maria/run")
    with pytest.raises(UserError, match="adapter_config") as error:
        archive.check_sizes({"adapter/adapter_config.json": 300_000_000}, 1e9, "maria/run")
    assert error.value.code == "runs.archive_too_large"


def test_one_damaged_file_prevents_the_import_of_all_others(here, run):
    submit(run)
    files = {
        "adapter/adapter_config.json": b"{}",
        "checkpoints/checkpoint-2/manifest.json": b"{}",
        "plan.json": b"right",
    }
    repository = send(here, run, BEGUN, **files)
    repository.commits.append(Commit("bad", repository.files | {"run/plan.json": b"wrong"}))
    before = sorted(filter(Path.is_file, run.directory.rglob("*")))
    with pytest.raises(UserError, match=r"plan\.json") as error:
        poll(run)
    assert error.value.code == "runs.archive_damaged"
    assert sorted(filter(Path.is_file, run.directory.rglob("*"))) == before


def test_the_end_of_a_jobs_log_is_stored(here, run):
    submit(run)
    job = here.jobs["job0"]
    with open(f"{job._folder.name}/log", "w") as log:
        log.writelines(f"line {number}{'!' * 3_000}\n" for number in range(10_500))
    poll(run)
    kept = run.path("job.log").read_text().splitlines()
    assert (len(kept), kept[-1][:10], max(map(len, kept))) == (10_000, "line 10499", 2_000)


@pytest.mark.slow
def test_the_hardware_list_has_fit_duration_and_cost(here, made):
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
def test_a_duration_is_parsed(written, seconds):
    assert jobs.seconds_of(written) == seconds


@pytest.mark.parametrize("written", ["", "0", "soon", "-1h", "2 weeks"])
def test_an_invalid_duration_is_rejected(written):
    with pytest.raises(UserError) as error:
        jobs.seconds_of(written)
    assert error.value.code == "hub.invalid_duration"


def test_a_link_in_an_archive_is_rejected(tmp_path):
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "plan.json").symlink_to(tmp_path / "secret")
    manifest = archive.manifest_of({"plan.json": b"x"})
    sent = archive.Archive("maria/run", manifest, lambda name: tmp_path / name)
    with pytest.raises(UserError, match=r"plan\.json") as error:
        sent.install(tmp_path / "run", ["plan.json"])
    assert error.value.code == "runs.archive_damaged"
