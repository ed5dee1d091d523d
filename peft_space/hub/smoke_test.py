"""Checks a running page from outside, as a program uses it: a Space or one's own machine trains the demo for a few steps and compares."""

import time
from collections.abc import Callable
from typing import Any

import httpx
from gradio_client import Client
from gradio_client.exceptions import AppError

from peft_space.errors import UserError
from peft_space.runs.events import OnProgress, no_progress

_STEPS = 4
_SECONDS = 600
"""For the training; on a Space it may wait for its turn."""


def smoke_test(
    url: str, token: str | None = None, on_progress: OnProgress = no_progress
) -> list[dict[str, Any]]:
    """What was tried, with `what`, `seconds` and `found`, each of which went well.

    Args:
        url: of the page, or OWNER/SPACE.
        token: for a private Space; without one, that of HF_TOKEN or of this machine.

    Raises UserError naming what did not go well.
    """
    done: list[dict[str, Any]] = []

    def tried(what: str, do: Callable[[], tuple[Any, str]]) -> Any:
        on_progress(len(done) / 4, what)
        began = time.monotonic()
        try:
            value, found = do()
        except (AppError, httpx.HTTPError, OSError, ValueError, TimeoutError) as error:
            raise UserError(
                "todo", f"{url}: {what} did not go well: {str(error) or type(error).__name__}"
            ) from None
        done.append({"what": what, "seconds": round(time.monotonic() - began, 1), "found": found})
        return value

    client = tried("Opening the page", lambda: _opened(url, token))
    tried("Checking the sample data", lambda: _checked(client))
    run = tried("Training the demo for a few steps", lambda: _trained(client))
    tried("Comparing base and adapter", lambda: _compared(client, run))
    return done


def _opened(url: str, token: str | None) -> tuple[Client, str]:
    client = Client(url, token=token, verbose=False, download_files=False, analytics_enabled=False)
    endpoints = client.view_api(print_info=False, return_format="dict")["named_endpoints"]  # type: ignore[index]
    missing = {"/check", "/train", "/status", "/resume", "/compare"} - set(endpoints)
    if missing:
        raise ValueError(f"it is another app, without {', '.join(sorted(missing))}")
    return client, f"{len(endpoints)} endpoints"


def _checked(client: Client) -> tuple[None, str]:
    found = client.predict("demo", api_name="/check")
    if not found["to_train"] or not found["examples"]:
        raise ValueError("no row can be trained")
    return None, f"{found['to_train']} rows to train, {found['held_out']} to score on"


def _trained(client: Client) -> tuple[dict[str, str], str]:
    started = client.predict("demo", {"max_steps": _STEPS}, api_name="/train")
    run = {"run": started["run"], "owner": started["owner"]}
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        now = client.predict(**run, api_name="/status")
        if now["status"] == "finished":
            return (
                run,
                f"{now['step']} steps, the last with a loss of {now['losses'][-1]['loss']:.2f}",
            )
        if now["status"] == "failed":
            raise ValueError(now["message"])
        if now["status"] in ("paused", "interrupted"):
            client.predict(**run, api_name="/resume")
        time.sleep(1)
    raise TimeoutError(f"after {_SECONDS} s it was {now['status']} at step {now['step']}")


def _compared(client: Client, run: dict[str, str]) -> tuple[None, str]:
    found = client.predict(
        **run,
        prompts=["My parcel has not arrived."],
        sampling={"max_new_tokens": 16},
        api_name="/compare",
    )
    if not found["fairness"]["fair"]:
        raise ValueError(found["fairness"]["words"])
    return None, found["fairness"]["words"]
