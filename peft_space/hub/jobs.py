"""A run handed over to Hugging Face Jobs: it goes into a private dataset of the user, is trained from there, and comes back by it, verified.

What happens inside the job is `runtime/hf_job_main.py`. Tokens are used and passed on to the job as a secret; none is written down.
"""

import collections
import functools
import json
import logging
import re
import shutil
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import get_args

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, JobInfo, get_token
from huggingface_hub._jobs_api import TERMINAL_JOB_STAGES, JobHardwareInfo
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from pydantic import ValidationError

from peft_space import settings
from peft_space.errors import UserError
from peft_space.estimation.hub_hardware import TERAFLOPS, HardwareOffer, SpaceHardware
from peft_space.formatting import duration
from peft_space.hub.client import check_token, translate_errors
from peft_space.runs import archive as run_archive
from peft_space.runs import events
from peft_space.runs.events import OnProgress, no_progress
from peft_space.runs.run import Run
from peft_space.runs.status import active_job
from peft_space.storage import atomic_io

logger = logging.getLogger(__name__)

PACKAGE = "package.zip"
RUN = "run/"
"""Where the run's files lie in the dataset, beside this package and the manifest."""
_MOST_LINES, _LONGEST_LINE = 10_000, 2_000
"""Of a job's log."""
_LABEL = "peft-space-run"
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_BEGIN = (
    "import sys,tempfile,zipfile;from huggingface_hub import snapshot_download as get;w=tempfile.mkdtemp();"
    "get(sys.argv[1],repo_type='dataset',revision=sys.argv[2],local_dir=w);zipfile.ZipFile(w+'/package.zip').extractall(w);"
    "sys.path.insert(0,w);from peft_space.execution.in_job import main;main(w,sys.argv[1],float(sys.argv[3]))"
)
"""What the job runs: so short that it needs no file of its own, and from one commit of the dataset, so that it is what was sent."""


def seconds_of(timeout: str) -> float:
    """How long `90m`, `2h` or a number of seconds is. Raises UserError for what is none."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", timeout.strip())
    if not match or float(match[1]) == 0:
        raise UserError("todo", f"{timeout!r} is no length of time. Write it like 90m or 2h.")
    return float(match[1]) * _SECONDS[match[2] or "s"]


def offers(token: str | None) -> list[HardwareOffer]:
    """The hardware that jobs can have, as the Hub lists it now. Raises UserError where it cannot be reached."""
    check_token(token)
    with _hub_errors("Jobs", "The hardware could not be listed"):
        return [
            offer
            for info in HfApi(token=token or None).list_jobs_hardware()
            if (offer := _offer(info))
        ]


def _offer(info: JobHardwareInfo) -> HardwareOffer | None:
    a_unit = {"second": 1, "minute": 60, "hour": 3_600}.get(info.unit_label)
    gpu = info.accelerator
    if a_unit is None or (gpu and gpu.type != "gpu"):
        return None
    count = int(gpu.quantity) if gpu else 1
    memory = _gigabytes(gpu.vram) / count if gpu else _gigabytes(info.ram)
    teraflops = TERAFLOPS.get(gpu.model) if gpu else None
    kind = SpaceHardware(
        info.name, info.pretty_name, "cuda" if gpu else "cpu", round(memory), teraflops
    )
    return HardwareOffer(kind, count, info.unit_cost_usd * 3_600 / a_unit)


def _gigabytes(text: str) -> float:
    """What a size in words is; nothing where it is written in another way, so that nothing fits there."""
    match = re.fullmatch(r"([\d.]+)\s*([GT])i?B", text.strip())
    return float(match[1]) * (1_000 if match[2] == "T" else 1) if match else 0.0


def submit(
    run: Run, flavor: str, seconds: float, token: str | None, on_progress: OnProgress = no_progress
) -> events.SubmittedToJob:
    """Send a run to a job with hardware `flavor`, which is ended after so many seconds. It may be trained here again when it has come back.

    Raises UserError where the run, the hardware, the token or the Hub stands against it; then nothing is handed over.
    """
    api, token = _signed_in(token)
    with run.lock(), _hub_errors("Jobs", "The job was not started"):
        _refuse(run)
        on_progress(0.0, "Asking the Hub whose token this is")
        owner = api.whoami()["name"]
        _refuse_hardware(
            run, flavor, [offer for info in api.list_jobs_hardware() if (offer := _offer(info))]
        )
        run.truncate_partial_event()
        name = f"peft-space-run-{int(run.about['created'] * 1e6):x}"
        repo, labels = f"{owner}/{name}", {_LABEL: name}
        job = next(
            (
                job
                for job in api.list_jobs(labels=labels, namespace=owner)
                if job.status.stage not in TERMINAL_JOB_STAGES
            ),
            None,
        )
        if job is None:  # else the Hub's answer to an earlier try was lost
            on_progress(0.2, f"Uploading the run to {repo}")
            revision, libraries = _upload(api, run, repo)
            on_progress(0.9, "Starting the job")
            job = api.run_uv_job(
                "python", script_args=["-c", _BEGIN, repo, revision, str(seconds)], dependencies=libraries, flavor=flavor, timeout=seconds,
                secrets={"HF_TOKEN": token}, labels=labels, namespace=owner, name=name,
            )  # fmt: skip
        handed = events.SubmittedToJob(
            job=job.id,
            owner=owner,
            repo=repo,
            address=job.url,
            flavor=flavor,
            timeout=seconds,
            num_events=len(run.history()),
        )
        run.append(handed)
        return handed


def _signed_in(token: str | None) -> tuple[HfApi, str]:
    check_token(token)
    token = token or get_token()
    if not token:
        raise UserError(
            "todo",
            "There is no Hub token. Paste one with write access, or sign in with `hf auth login`.",
        )
    return HfApi(token=token), token


def _refuse(run: Run) -> None:
    status = run.status()
    if status in ("queued", "running", "on_job", "finished"):
        raise UserError(
            "todo",
            f"The run {run.name!r} is {status} already, so no job was started. Wait for it, or stop it first.",
        )
    if Path(run.recipe.base_model).expanduser().is_dir():
        raise UserError(
            "todo",
            f"The base model {run.recipe.base_model} is a folder on this machine, which a job does not see. Push it to the Hub and name it by its id.",
        )


def _refuse_hardware(run: Run, flavor: str, found: list[HardwareOffer]) -> None:
    offer = next((offer for offer in found if offer.kind.name == flavor), None)
    if offer is None:
        known = ", ".join(offer.kind.name for offer in found)
        raise UserError("todo", f"Jobs have no hardware {flavor!r} now. Choose one of: {known}.")
    if not _checkpoints(run):
        return
    if not run.path("plan.json").is_file():
        raise UserError(
            "todo",
            "This run has checkpoints, and no plan.json, which says how it computes. Put it back, or train anew.",
        )
    device = json.loads(run.path("plan.json").read_text())["device"]
    if device != offer.kind.device:
        words = {"cpu": "a CPU", "cuda": "a GPU"}
        raise UserError(
            "todo",
            f"This run was begun on {words[device]}, and {flavor} is {words[offer.kind.device]}: its checkpoints cannot go on there. "
            "Choose hardware of the same kind, or train its recipe anew.",
        )


def _upload(api: HfApi, run: Run, repo: str) -> tuple[str, list[str]]:
    """Bring the run and this package into the dataset; (commit, the libraries that it needs)."""
    from peft_space.export import standalone_script  # brings transformers
    from peft_space.runs.plan import read_plan

    packed = run_archive.pack(run)
    if not _checkpoints(run):
        packed.pop("plan.json", None)  # it was measured for this machine
    api.create_repo(repo, repo_type="dataset", private=True, exist_ok=True)
    there = {
        name for name in api.list_repo_files(repo, repo_type="dataset") if name.startswith(RUN)
    }
    digests = run_archive.digests_of(packed)
    gone = [
        CommitOperationDelete(name) for name in sorted(there - {f"{RUN}{name}" for name in packed})
    ]
    added = [CommitOperationAdd(f"{RUN}{name}", content) for name, content in packed.items()]
    added.append(
        CommitOperationAdd(
            PACKAGE, standalone_script.zipped(standalone_script.package(run.recipe.base_model))
        )
    )
    added.append(
        CommitOperationAdd(run_archive.ARCHIVE_MANIFEST, json.dumps(digests, indent=1).encode())
    )
    commit = api.create_commit(
        repo, [*gone, *added], commit_message="Hand the run over", repo_type="dataset"
    )
    atomic_io.write_text(run.path("job.json"), json.dumps(digests))
    return commit.oid, standalone_script.dependencies(
        read_plan(run) if "plan.json" in packed else None
    )


def poll(run: Run, token: str | None) -> bool:
    """Bring what the job has done since the last look into the run; whether the job is over. Only for who holds the run's lock.

    Raises UserError where the run has no job, or the Hub cannot be asked.
    """
    handed = _handed(run)
    api, _ = _signed_in(token)
    with _hub_errors(handed.repo, "The job could not be looked at"):
        job = _job(api, handed)
        over = job is None or job.status.stage in TERMINAL_JOB_STAGES
        try:
            theirs = _told_events(_take_files(api, run, handed.repo)[handed.num_events :])
            lost = None
        except (RepositoryNotFoundError, UserError) as error:
            if not over:
                raise
            theirs, lost = [], error
        _keep_log(api, run, handed)
    if over and not (theirs and isinstance(theirs[-1], get_args(events.Outcome))):
        theirs += (
            [events.Failed(message=str(lost))]
            if isinstance(lost, UserError)
            else _without_outcome(run, handed, job)
        )
    _write_events(run, theirs, job, over)
    return over


def cancel(run: Run, token: str | None) -> None:
    """End the job. What it has sent so far comes back with the next look. Raises UserError where there is none, or the Hub refuses."""
    handed = _handed(run)
    api, _ = _signed_in(token)
    with _hub_errors(handed.repo, "The job was not cancelled"):
        job = _job(api, handed)
        if job and job.status.stage not in TERMINAL_JOB_STAGES:
            api.cancel_job(job_id=handed.job, namespace=handed.owner)


def _handed(run: Run) -> events.SubmittedToJob:
    if handed := active_job(run.history()):
        return handed
    raise UserError(
        "todo", f"The run {run.name!r} has no job: it is {run.status()}. Hand it over first."
    )


def _job(api: HfApi, handed: events.SubmittedToJob) -> JobInfo | None:
    """The job; None where the Hub does not know it any more."""
    try:
        return api.inspect_job(job_id=handed.job, namespace=handed.owner)
    except HfHubHTTPError as error:
        if error.response.status_code == 404:
            return None
        raise


def _take_files(api: HfApi, run: Run, repo: str) -> list[bytes]:
    """Take what is new in the dataset, all of one commit; the lines of the job's events."""
    info = api.repo_info(repo, repo_type="dataset", files_metadata=True)
    commit, sizes = info.sha, {file.rfilename: file.size or 0 for file in info.siblings or []}
    known = json.loads(run.path("job.json").read_text()) if run.path("job.json").is_file() else {}
    with tempfile.TemporaryDirectory(dir=run.directory, prefix=".job-") as scratch:
        run_archive.refuse_large(
            {run_archive.ARCHIVE_MANIFEST: sizes.get(run_archive.ARCHIVE_MANIFEST, 0)},
            settings.largest_run_bytes(),
        )
        fetch = functools.partial(
            api.hf_hub_download, repo, repo_type="dataset", revision=commit, local_dir=scratch
        )
        digests = run_archive.read_manifest(
            Path(fetch(run_archive.ARCHIVE_MANIFEST)).read_text(encoding="utf-8")
        )
        coming = {
            name: sizes.get(f"{RUN}{name}", 0)
            for name in digests
            if _comes_back(name) or name == "events.jsonl"
        }
        run_archive.refuse_large(coming, settings.largest_run_bytes())
        new = {
            name
            for name, digest in digests.items()
            if known.get(name) != digest and _comes_back(name)
        }
        run_archive.install(run.directory, digests, new, lambda name: Path(fetch(f"{RUN}{name}")))
        for folder in _checkpoints(run):
            if not any(name.startswith(f"checkpoints/{folder.name}/") for name in digests):
                shutil.rmtree(folder)
        atomic_io.write_text(run.path("job.json"), json.dumps(digests))
        if "events.jsonl" not in digests:
            return []
        return (
            run_archive.verified(
                Path(fetch(f"{RUN}events.jsonl")), digests["events.jsonl"], "events.jsonl"
            )
            .read_bytes()
            .splitlines()
        )


def _comes_back(name: str) -> bool:
    return not name.startswith("data/") and name not in ("recipe.json", "run.json", "events.jsonl")


def _keep_log(api: HfApi, run: Run, handed: events.SubmittedToJob) -> None:
    """Keep the end of what the job has printed as job.log."""
    try:
        log = api.fetch_job_logs(job_id=handed.job, namespace=handed.owner)
        lines = collections.deque(
            (line.rstrip()[:_LONGEST_LINE] for line in log), maxlen=_MOST_LINES
        )
    except httpx2.HTTPError as error:  # the rest tells how it goes
        logger.warning("the log of the job %s cannot be read: %s", handed.job, error)
        return
    atomic_io.write_text(run.path("job.log"), "".join(f"{line}\n" for line in lines))


def _told_events(lines: list[bytes]) -> list[events.Event]:
    """What a job has sent. Raises UserError where no training tells such: the dataset was written by others too."""
    try:
        told = [events.parse_event(line) for line in lines]
    except ValidationError:
        raise UserError(
            "todo",
            "The events that came back from the job cannot be read. Resume the run here, or hand it over again.",
        ) from None
    if any(isinstance(event, events.SubmittedToJob | events.Queued) for event in told):
        raise UserError(
            "todo",
            "Events came back from the job that no training tells. Resume the run here, or hand it over again.",
        )
    return told


def _write_events(run: Run, theirs: list[events.Event], job: JobInfo | None, over: bool) -> None:
    """Let the job's events follow those that the run had. Its outcome comes last of all, when the job is over: it gives the run back."""
    own = run.history()
    begin = 1 + max(
        place for place, event in enumerate(own) if isinstance(event, events.SubmittedToJob)
    )
    if not over and theirs and isinstance(theirs[-1], get_args(events.Outcome)):
        theirs = theirs[:-1]
    if not over and not theirs and job is not None:
        waiting = events.Preparing(what=_WAITING.get(job.status.stage, "The job is beginning"))
        same = (
            own[begin:] and isinstance(own[-1], events.Preparing) and own[-1].what == waiting.what
        )
        theirs = own[begin:] if same else [waiting]
    if theirs != own[begin:]:
        atomic_io.write_text(
            run.path("events.jsonl"),
            "".join(f"{event.model_dump_json()}\n" for event in [*own[:begin], *theirs]),
        )
    if over:
        run.path("job.json").unlink(missing_ok=True)


_WAITING = {
    "SCHEDULING": "Waiting for a machine of Hugging Face Jobs",
    "RUNNING": "Installing the libraries on the job's machine",
}


def _without_outcome(
    run: Run, handed: events.SubmittedToJob, job: JobInfo | None
) -> list[events.Event]:
    """How a job ended that did not say so itself."""
    steps = [int(folder.name.rpartition("-")[2]) for folder in _checkpoints(run)]
    going_on = (
        f"from step {max(steps)}, its last checkpoint"
        if steps
        else "from the first step, for no checkpoint had come back"
    )
    stage, message = (job.status.stage, job.status.message or "") if job else ("DELETED", "")
    if stage == "CANCELED":
        cancelled = events.Notice(
            what="The job was cancelled.",
            why=f"Training goes on {going_on}, here or in another job.",
        )
        return [cancelled, events.Paused(step=max(steps, default=0))]
    ran = job.durations.running_secs if job and job.durations else None
    if re.search(r"time.?(d.?)?out|time limit|deadline", message.lower()) or (
        ran and ran >= handed.timeout
    ):
        why = f"The job was ended by its time limit of {duration(handed.timeout)}. Hand the run over again with more time, or Resume it here"
    elif stage == "DELETED":
        why = "The Hub does not know the job any more. Hand the run over again, or Resume it here"
    else:
        said = f" ({message})" if message else ""
        why = f"The job ended with an error{said}; job.log in the run's folder has its last words. Mend that, and hand the run over again or Resume it here"
    return [events.Failed(message=f"{why}: it goes on {going_on}.")]


def _checkpoints(run: Run) -> list[Path]:
    return [path.parent for path in run.path("checkpoints").glob("checkpoint-*/manifest.json")]


_REASONS = {
    402: "there is no credit for jobs. Add some on the Hub's billing page",
    403: "the token may not do this. It needs write access and the right to run jobs",
}


def _hub_errors(repo: str, failed: str) -> AbstractContextManager[None]:
    """What the Hub refuses, in a sentence."""
    return translate_errors(repo, failed, "", _REASONS)
