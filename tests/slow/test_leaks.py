"""Sixty trainings that start and stop leak no process, no open file and no folder."""

import time
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from gradio_client import Client

from tests.fixtures.app_process import App

RUNS = 60


class Usage(NamedTuple):
    """What the app uses while nothing trains."""

    processes: int
    """Processes of the app and of its trainings."""
    open_files: int
    """Open files of the app."""
    folders: set[str]
    """Folders in its home, except those of runs and the cache."""


def measure_when_idle(app: psutil.Process, home: Path) -> Usage:
    """Wait up to a minute until nothing trains, then measure."""
    deadline = time.time() + 60
    while (trainings := processes_with(home)) and time.time() < deadline:
        time.sleep(0.2)
    runs = home / "runs"
    paths = [path for path in home.rglob("*") if path.is_dir() and not path.is_relative_to(runs)]
    names = {str(path.relative_to(home)) for path in [*paths, *runs.glob("*/.*")]}
    folders = {name for name in names if "/cache/" not in f"/{name}"}
    return Usage(len(app.children(recursive=True)) + len(trainings), app.num_fds(), folders)


def processes_with(home: Path) -> list[psutil.Process]:
    """Return the processes with the home folder on their command line."""
    processes = psutil.process_iter(["cmdline"])
    return [
        process for process in processes if str(home) in " ".join(process.info["cmdline"] or [])
    ]


def start_and_stop(client: Client, wait_for_step: bool) -> None:
    """Start a training and stop it, after its first step or before."""
    run = client.predict(data="demo", recipe={"max_steps": 500}, api_name="/train")["run"]
    while wait_for_step and client.predict(run=run, api_name="/status")["step"] < 1:
        time.sleep(0.1)
    client.predict(run=run, api_name="/stop")
    while client.predict(run=run, api_name="/status")["status"] in ("queued", "running"):
        time.sleep(0.1)


@pytest.mark.slow
def test_sixty_started_and_stopped_runs_leak_nothing(tmp_path):
    app = App(tmp_path / "home")
    app.start()
    assert app.process
    process = psutil.Process(app.process.pid)
    client = Client(app.url, verbose=False, analytics_enabled=False)
    try:
        for number in range(RUNS):
            start_and_stop(client, wait_for_step=number % 3 != 0)
            if number == 2:
                before = measure_when_idle(process, app.home)
        after = measure_when_idle(process, app.home)
        assert client.predict(api_name="/list")
        assert len(list(app.home.glob("runs/local/[!.]*"))) == RUNS
        processes = f"processes {before.processes} and {after.processes}"
        open_files = f"open files {before.open_files} and {after.open_files}"
        print(f"after 3 and after {RUNS} runs: {processes}, {open_files}")
        assert after.processes <= before.processes
        assert after.open_files <= before.open_files + 5  # connections that are closing
        assert after.folders <= before.folders
    finally:
        client.close()
        app.kill()
