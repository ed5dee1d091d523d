"""Sixty trainings started and stopped leave nothing behind: no process, no open file, no folder but their own."""

import time
from pathlib import Path

import psutil
import pytest
from gradio_client import Client

from tests.fixtures.app_process import App

RUNS = 60


def settled(process: psutil.Process, home: Path) -> tuple[int, int, set[str]]:
    """(processes of the app and its trainings, open files of the app, folders in its home but runs), once nothing trains."""
    deadline = time.time() + 60
    while time.time() < deadline:
        mine = [
            one
            for one in psutil.process_iter(["cmdline"])
            if str(home) in " ".join(one.info["cmdline"] or [])
        ]
        if not mine:
            break
        time.sleep(0.2)
    folders = {
        str(path.relative_to(home))
        for path in home.rglob("*")
        if path.is_dir() and not path.is_relative_to(home / "runs")
    }
    left = {str(path.relative_to(home)) for path in (home / "runs").glob("*/.*")}
    return (
        len(process.children(recursive=True)) + len(mine),
        process.num_fds(),
        {name for name in folders | left if "/cache/" not in f"/{name}"},
    )


@pytest.mark.slow
def test_sixty_started_and_stopped_runs_leave_nothing_behind(tmp_path):
    app = App(tmp_path / "home")
    app.start()
    assert app.process
    process = psutil.Process(app.process.pid)
    client = Client(app.url, verbose=False, analytics_enabled=False)
    try:
        for number in range(RUNS):
            started = client.predict(data="demo", recipe={"max_steps": 500}, api_name="/train")
            while (
                number % 3 and client.predict(run=started["run"], api_name="/status")["step"] < 1
            ):  # every third is stopped before it trains
                time.sleep(0.1)
            client.predict(run=started["run"], api_name="/stop")
            while client.predict(run=started["run"], api_name="/status")["status"] in (
                "queued",
                "running",
            ):
                time.sleep(0.1)
            if number == 2:
                before = settled(process, app.home)
        after = settled(process, app.home)
        assert client.predict(api_name="/list")
        assert len(list(app.home.glob("runs/local/[!.]*"))) == RUNS
        print(
            f"after 3 and after {RUNS} runs: processes {before[0]} and {after[0]}, open files {before[1]} and {after[1]}"
        )
        assert after[0] <= before[0]
        assert after[1] <= before[1] + 5  # a connection that is being closed
        assert after[2] <= before[2]
    finally:
        client.close()
        app.kill()
