"""Pushes, stores and trains runs on the Hugging Face Hub, and deploys Spaces."""

from dataclasses import asdict

from peft_space.operations.evaluation import release_model
from peft_space.operations.export import ExportOptions
from peft_space.operations.registry import (
    AnyRun,
    HubToken,
    Json,
    NewRun,
    Progress,
    Repo,
    Report,
    TextFile,
    TrainedRun,
    operation,
    progress,
)
from peft_space.operations.runs import status
from peft_space.runs.run import Run


@operation(group="hub", text=lambda result, _: f"Pushed to {result['url']}.")
def push(
    run: TrainedRun,
    repo: Repo,
    token: HubToken = None,
    public: bool = False,
    card: TextFile = None,
    options: ExportOptions = ExportOptions(),  # noqa: B008 - it is frozen
    report: Progress = None,
) -> Json:
    """Push the adapter, or a verified export of it, to the Hugging Face Hub.

    The repository is private unless `public` is set. An existing one gets a pull request.

    Args:
        public: let everybody see a new repository
        card: an edited model card, in place of the generated one
    """
    from peft_space.hub import push as hub_push

    on_progress = progress(report)
    if options.target == "adapter":
        return {"url": hub_push.push(Run(run), repo, token, public, on_progress, card)}
    spec = options.spec()
    release_model()
    url = hub_push.push(
        Run(run),
        repo,
        token,
        public,
        on_progress,
        card,
        spec.in_words(),
        lambda opened, folder: (spec.deliver(opened, folder, on_progress), None)[1],
    )
    return {"url": url}


@operation(
    group="hub",
    text=lambda result, arguments: (
        f"Stored at {result['url']}. To continue elsewhere: "
        f"peft-space restore {arguments['repo']} --out RUN_DIR"
    ),
)
def backup(run: AnyRun, repo: Repo, token: HubToken = None, report: Progress = None) -> Json:
    """Store a run as a private dataset on the Hub, to continue it on another machine."""
    from peft_space.hub.backup import backup as store

    return {"url": store(Run(run), repo, token, progress(report))}


@operation(
    group="hub",
    text=lambda result, _: (
        f"The run is in {result['run']}. Next: peft-space resume {result['run']}"
    ),
)
def restore(directory: NewRun, repo: Repo, token: HubToken = None, report: Progress = None) -> Json:
    """Restore a run that was stored on the Hub."""
    from peft_space.hub.backup import restore as fetch

    return {"run": str(fetch(repo, directory, token, progress(report)).directory)}


_IN_JOB = {"cli": "The command `job` does it."}


@operation(group="jobs", surfaces=("api", "page"), why_not=_IN_JOB)
def job_hardware(run: AnyRun, token: HubToken = None) -> Json:
    """List the hardware of Hugging Face Jobs, with memory, time and cost of a run.

    Returns:
        `hardware`, each with a `timeout` that includes a margin.
    """
    from peft_space.hub import jobs
    from peft_space.planning.training_estimate import job_options

    return {"hardware": [asdict(choice) for choice in job_options(Run(run), jobs.offers(token))]}


@operation(group="jobs", watches_job=True, surfaces=("api", "page"), why_not=_IN_JOB)
def submit_job(
    run: AnyRun, flavor: str, timeout: str, token: HubToken = None, report: Progress = None
) -> Json:
    """Train a run as a job on Hugging Face.

    Args:
        flavor: the name of the hardware, as /job_hardware lists it
        timeout: the time limit, such as "90m" or "2h"

    Returns:
        `job`, its `address`, and `repo`, the private dataset that holds the run.
    """
    from peft_space.hub import jobs

    submitted = jobs.submit(Run(run), flavor, jobs.seconds_of(timeout), token, progress(report))
    return submitted.model_dump(include={"job", "address", "repo", "flavor", "timeout"})


@operation(
    group="jobs", watches_job=True, in_process=True, surfaces=("api", "page"), why_not=_IN_JOB
)
def follow_job(run: AnyRun, token: HubToken = None) -> Json:
    """Download the files of a run's job, if nothing does so since a restart."""
    return {"status": Run(run).status()}


@operation(group="jobs", watches_job=True, surfaces=("api", "page"), why_not=_IN_JOB)
def cancel_job(run: AnyRun, token: HubToken = None) -> Json:
    """Cancel the job of a run; the app downloads the job's files."""
    from peft_space.hub import jobs

    jobs.cancel(Run(run), token)
    return {"status": Run(run).status()}


def _job_text(result: Json, arguments: Json) -> str:
    if "hardware" in result:
        return "\n".join(choice["words"] for choice in result["hardware"])
    if "address" in result:
        return f"The job is {result['address']}. Next: peft-space job {arguments['run']} --follow"
    return (
        f"The run is {result['status']}, at step {result['step']}. {result['message'] or ''}"
    ).strip()


@operation(
    group="jobs",
    surfaces=("cli",),
    why_not={
        "api": "The endpoints are /job_hardware, /submit_job, /follow_job and /cancel_job.",
        "page": "Its panel calls these four.",
    },
    text=_job_text,
)
def job(
    run: AnyRun,
    flavor: str = "",
    timeout: str = "",
    follow: bool = False,
    cancel: bool = False,
    report: Progress = None,
) -> Json:
    """Train a run on Hugging Face Jobs, or list the hardware, or show how its job is doing.

    The token is HF_TOKEN.

    Args:
        flavor: submit the run to a job with this hardware
        timeout: the time limit of the job, such as 2h; without it, the estimate with a margin
        follow: report the job's progress until it ends
        cancel: end the job; training can resume from its last checkpoint
    """
    from peft_space.hub import jobs
    from peft_space.runs.events import active_job

    opened = Run(run)
    if cancel:
        cancel_job(run)
        if opened.is_locked():  # the process that follows the job brings the rest back
            return _job_state(run)
    elif flavor:
        submitted = submit_job(run, flavor, timeout or _timeout(run, flavor), report=report)
        if not follow:
            return submitted
    elif active_job(opened.history()) is None:
        return job_hardware(run)
    if follow or cancel:
        _follow(opened, cancel, report)
    elif not opened.is_locked():
        with opened.lock():
            jobs.poll(opened, None)
    return _job_state(run)


def _timeout(run: str, flavor: str) -> str:
    timeouts = {choice["name"]: choice["timeout"] for choice in job_hardware(run)["hardware"]}
    return str(timeouts.get(flavor, "6h"))


def _follow(run: Run, soon: bool, report: Report | None) -> None:
    from peft_space.hub.jobs import SECONDS_BETWEEN, watch_job

    def on_message(words: str) -> None:
        if report:
            report({"what": words})

    with run.lock():
        watch_job(run, None, 2.0 if soon else SECONDS_BETWEEN, on_message)


def _job_state(run: str) -> Json:
    state = status(run)
    failed = state["status"] == "failed"
    shown = {name: state[name] for name in ("run", "status", "step")}
    return shown | {"message": state["message"] if failed else ""}


_FROM_OUTSIDE = dict.fromkeys(
    ("api", "page"), "It acts on a whole Space from outside, with its owner's token."
)


@operation(
    group="spaces",
    surfaces=("cli",),
    why_not=_FROM_OUTSIDE,
    text=lambda result, arguments: (
        f"The Space is at {result['url']}; the Hub builds it now. When it runs: "
        f"peft-space smoke-test {arguments['space']}"
    ),
)
def deploy_space(
    space: str,
    token: HubToken = None,
    hardware: str | None = None,
    public: bool = False,
    report: Progress = None,
) -> Json:
    """Create or update a Space of this clone.

    Args:
        space: OWNER/NAME
        hardware: zero-a10g, t4-small and so on; without it, the hardware stays
        public: let everybody see a new Space
    """
    from peft_space.hub.space import deploy_space as deploy

    return {"url": deploy(space, token, hardware, public, progress(report))}


@operation(
    group="spaces",
    surfaces=("cli",),
    why_not=_FROM_OUTSIDE,
    text=lambda result, _: "\n".join(
        f"✓ {one['what']}: {one['found']} ({one['seconds']} s)" for one in result["checks"]
    ),
)
def smoke_test(url: str, token: HubToken = None, report: Progress = None) -> Json:
    """Check a running Space or page from outside: train the demo briefly and compare.

    Args:
        url: the address of the page, or OWNER/NAME of a Space
    """
    from peft_space.hub.space import smoke_test as check_page

    return {"checks": check_page(url, token, progress(report))}
