"""The endpoints that take a run elsewhere and back: saved, as a script, to Hugging Face Jobs."""

import os

import gradio as gr

from peft_space.compat.gradio import served_folder
from peft_space.operations import Json
from peft_space.runs import quotas
from peft_space.runs.run import Run
from peft_space.runs.store import open_run
from peft_space.runtime.job_watcher import start_watching
from peft_space.runtime.worker_pool import Workers
from peft_space.web.auth import new_owner, owners_of, token_of


class Elsewhere:
    """A run on other machines."""

    def __init__(self, workers: Workers):
        self._workers = workers

    def save(
        self,
        run: str,
        repo: str,
        token: str = "",
        owner: str = "",
        signed_in: gr.OAuthToken | None = None,
    ) -> Json:
        """Save a run that is not being trained to a private dataset repository, with its data and all that it takes to go on; return its address.

        Args:
            run: the id that /start returned.
            repo: OWNER/NAME. A new one is made; one that a run was saved to before gets this one instead.
            token: a Hub token with write access, used for this and forgotten; without it, the client's `oauth_token`.
            owner: the secret that /start returned.
        """
        opened = open_run(owners_of(owner), run)
        return self._workers.call(
            "backup", run=str(opened.directory), repo=repo.strip(), token=token_of(token, signed_in)
        )

    def take_up(
        self, repo: str, token: str = "", owner: str = "", signed_in: gr.OAuthToken | None = None
    ) -> Json:
        """Make a run of one that was saved, here or elsewhere; /resume goes on with it. Returns what /start returns.

        Args:
            repo: OWNER/NAME.
            token: a Hub token that may read it, used for this and forgotten; without it, the client's `oauth_token`.
            owner: the secret of an earlier start, to have this run in the same list; without one a new secret is made.
        """
        secret = new_owner(owner)
        folder = quotas.new_run(owners_of(secret)[0])
        self._workers.call(
            "restore", directory=str(folder), repo=repo.strip(), token=token_of(token, signed_in)
        )
        return {"run": folder.name, "owner": secret, "status": Run(folder).status()}

    def script(self, run: str, owner: str = "") -> gr.FileData:
        """The run as one script that trains it on any machine or cluster, `uv run train.py`; the client downloads it and returns the path.

        Args:
            run: the id that /start returned.
            owner: the secret that /start returned.
        """
        opened = open_run(owners_of(owner), run)
        made = self._workers.call(
            "script", run=str(opened.directory), out=os.path.join(served_folder(), "train.py")
        )
        return gr.FileData(path=made["path"], orig_name="train.py")

    def job_hardware(self, run: str, token: str = "", owner: str = "") -> Json:
        """The `hardware` that Hugging Face Jobs have now, each with memory, time and cost of this run, and a timeout with margin.

        Args:
            run: the id that /start returned.
            token: a Hub token; empty is the one that this machine is signed in with.
            owner: the secret that /start returned.
        """
        opened = open_run(owners_of(owner), run)
        return self._workers.call(
            "job_hardware", run=str(opened.directory), token=token_of(token, None)
        )

    def hand_over(
        self, run: str, flavor: str, timeout: str, token: str = "", owner: str = ""
    ) -> Json:
        """Let a job on Hugging Face train the run. /status tells how it goes, and in the end the adapter is here.

        Args:
            run: the id that /start returned.
            flavor: the name of the hardware, as /job_hardware lists it.
            timeout: after which the job is ended, such as "90m" or "2h".
            token: a Hub token that may write and run jobs; the job gets it as a secret, to send the run back.
            owner: the secret that /start returned.
        """
        opened, used = open_run(owners_of(owner), run), token_of(token, None)
        handed = self._workers.call(
            "submit_job", run=str(opened.directory), flavor=flavor, timeout=timeout, token=used
        )
        start_watching(opened, used)
        return {
            "run": run,
            "status": opened.status(),
            **{name: handed[name] for name in ("job", "address", "repo")},
        }

    def follow_job(self, run: str, token: str = "", owner: str = "") -> Json:
        """Bring back what the run's job does, where nobody does so any more, as when this machine was started again.

        Args:
            run: the id that /start returned.
            token: a Hub token that may read the run's dataset.
            owner: the secret that /start returned.
        """
        opened = open_run(owners_of(owner), run)
        if opened.status() == "on_job":
            start_watching(opened, token_of(token, None))
        return {"run": run, "status": opened.status()}

    def cancel_job(self, run: str, token: str = "", owner: str = "") -> Json:
        """End the run's job. What it has sent comes back, and /resume or /hand_over goes on from its last checkpoint.

        Args:
            run: the id that /start returned.
            token: a Hub token that may run jobs.
            owner: the secret that /start returned.
        """
        opened, used = open_run(owners_of(owner), run), token_of(token, None)
        self._workers.call("cancel_job", run=str(opened.directory), token=used)
        start_watching(opened, used)
        return {"run": run, "status": opened.status()}
