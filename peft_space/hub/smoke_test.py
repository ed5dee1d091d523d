"""Tests a running page from outside: trains the demo for a few steps and compares the answers."""

import time
from collections.abc import Callable
from typing import Any

import httpx
from gradio_client import Client
from gradio_client.exceptions import AppError

from peft_space.errors import UserError
from peft_space.runs.events import OnProgress, no_progress

_STEPS = 4
_TRAINING_TIMEOUT = 600  # on a Space the training may have to wait for its turn
_ENDPOINTS = {"/check_data", "/start", "/status", "/resume", "/compare"}


def smoke_test(
    url: str, token: str | None = None, on_progress: OnProgress = no_progress
) -> list[dict[str, Any]]:
    """Use a page as a program would.

    Args:
        url: of the page, or OWNER/SPACE.
        token: for a private Space; None uses HF_TOKEN or the one this machine is signed in with.
        on_progress: called with the completed share and the current check.

    Returns:
        For each check `what`, `seconds` and `found`, its result as text.

    Raises:
        UserError: a check failed.
    """
    results: list[dict[str, Any]] = []

    def check(what: str, do: Callable[[], tuple[Any, str]]) -> Any:
        on_progress(len(results) / 4, what)
        start = time.monotonic()
        try:
            value, text = do()
        except (AppError, httpx.HTTPError, OSError, ValueError, TimeoutError) as error:
            reason = str(error) or type(error).__name__
            message = f"{url}: {what} failed: {reason}. Check the log of the page."
            raise UserError("hub.smoke_test_failed", message) from None
        seconds = round(time.monotonic() - start, 1)
        results.append({"what": what, "seconds": seconds, "found": text})
        return value

    client = check("Opening the page", lambda: _open(url, token))
    check("Checking the sample data", lambda: _check_data(client))
    run = check("Training the demo for a few steps", lambda: _train(client))
    check("Comparing base model and adapter", lambda: _compare(client, run))
    return results


def _open(url: str, token: str | None) -> tuple[Client, str]:
    client = Client(url, token=token, verbose=False, download_files=False, analytics_enabled=False)
    endpoints = client.view_api(print_info=False, return_format="dict")["named_endpoints"]
    if missing := _ENDPOINTS - set(endpoints):
        raise ValueError(f"it is another app, without {', '.join(sorted(missing))}")
    return client, f"{len(endpoints)} endpoints"


def _check_data(client: Client) -> tuple[None, str]:
    report = client.predict("demo", api_name="/check")
    if not report["to_train"] or not report["examples"]:
        raise ValueError("the sample data has no row to train on")
    return None, f"{report['to_train']} rows to train on, {report['held_out']} held out"


def _train(client: Client) -> tuple[dict[str, str], str]:
    started = client.predict("demo", {"max_steps": _STEPS}, api_name="/train")
    run = {"run": started["run"], "owner": started["owner"]}
    deadline = time.monotonic() + _TRAINING_TIMEOUT
    while time.monotonic() < deadline:
        state = client.predict(**run, api_name="/status")
        if state["status"] == "finished":
            loss = state["losses"][-1]["loss"]
            return run, f"{state['step']} steps, the last with a loss of {loss:.2f}"
        if state["status"] == "failed":
            raise ValueError(state["message"])
        if state["status"] in ("paused", "interrupted"):
            client.predict(**run, api_name="/resume")
        time.sleep(1)
    raise TimeoutError(
        f"after {_TRAINING_TIMEOUT} s it was {state['status']} at step {state['step']}"
    )


def _compare(client: Client, run: dict[str, str]) -> tuple[None, str]:
    result = client.predict(
        **run,
        prompts=["My parcel has not arrived."],
        sampling={"max_new_tokens": 16},
        api_name="/compare",
    )
    if not result["fairness"]["fair"]:
        raise ValueError(result["fairness"]["words"])
    return None, result["fairness"]["words"]
