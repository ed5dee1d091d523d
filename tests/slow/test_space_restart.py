"""The real app, started as on a Space with a dedicated GPU, survives restarts of its container."""

import threading
from pathlib import Path

import psutil
import pytest
from gradio_client import Client

from peft_space.runs import events
from peft_space.runs.events import steps_of
from peft_space.runs.run import Run
from peft_space.runs.store import owner_directory
from peft_space.runtime import machine_queue
from peft_space.web.auth import owner_of
from tests.fixtures.app_process import App
from tests.fixtures.waiting import wait_for
from tests.runtime.test_machine_queue import end_everything

pytestmark = pytest.mark.slow
RECIPE = {"max_steps": 60, "num_epochs": 8, "save_steps": 5, "compute_dtype": "float32"}
MAX_BYTES = 2 * 2**30
"""Memory limit of the app, its workers and a training together."""


@pytest.fixture
def space(tmp_path, monkeypatch):
    monkeypatch.setenv("SYSTEM", "spaces")
    app = App(
        tmp_path / "home",
        SYSTEM="spaces",
        SPACE_ID="maria/lora",
        ACCELERATOR="t4",
        OMP_NUM_THREADS="1",
    )
    app.start()
    yield app
    app.kill()


class Memory(threading.Thread):
    """Measures the peak memory of all processes of the app. Shared pages count once."""

    def __init__(self, app: App):
        super().__init__(daemon=True)
        self.app, self.peak, self._done = app, 0, threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.5):
            self.peak = max(self.peak, sum(map(_bytes_of, _processes_of(self.app))))

    def stop(self) -> None:
        self._done.set()
        self.join()


def _processes_of(app: App) -> list[psutil.Process]:
    """The app with its workers, and the trainings, which run in separate sessions."""
    assert app.process
    trainings = [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(app.home) in " ".join(process.info["cmdline"] or [])
    ]
    main = psutil.Process(app.process.pid)
    processes = [*trainings, main, *main.children(recursive=True)]
    return list({process.pid: process for process in processes}.values())


def _bytes_of(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().pss
    except psutil.Error:
        return 0


def visitor(app: App) -> Client:
    return Client(app.url, verbose=False, download_files=False, analytics_enabled=False)


def test_five_runs_survive_two_restarts_of_a_space_within_its_memory(space, monkeypatch):
    monkeypatch.setenv("PEFT_SPACE_HOME", str(space.home))
    secrets: dict[str, str] = {}
    runs = []
    for name in ("anna", "ben", "anna", "carla", "ben"):
        secret = secrets.get(name, "")
        started = visitor(space).predict("demo", RECIPE, owner=secret, api_name="/train")
        secrets[name] = started["owner"]
        runs.append(Run(owner_directory(owner_of(started["owner"])) / started["run"]))
    assert len({run.directory.parent for run in runs}) == 3

    restart_during(runs[0], space, runs)
    wait_for(lambda: runs[0].status() == "finished", seconds=240)
    wait_for(lambda: runs[1].status() == "running", seconds=120)
    memory = Memory(space)
    memory.start()
    arguments = {"run": runs[0].directory.name, "owner": secrets["anna"]}
    arguments |= {"prompts": ["My parcel has not arrived."], "sampling": {"max_new_tokens": 16}}
    compared = visitor(space).predict(**arguments, api_name="/compare")
    assert compared["fairness"]["fair"], compared["fairness"]["words"]
    steps_meanwhile = [event.step for event in steps_of(runs[1].history())]
    memory.stop()
    assert steps_meanwhile, "no training ran during the comparison"
    print(f"comparison during a training: {memory.peak / 2**30:.2f} GiB at most")
    assert 0 < memory.peak < MAX_BYTES

    current = next(run for run in runs if run.status() != "finished")
    restart_during(current, space, runs)
    for run in runs:
        wait_for(lambda run=run: run.status() == "finished", seconds=240)
    finished = [
        [event.at for event in run.history() if isinstance(event, events.Finished)] for run in runs
    ]
    assert [len(times) for times in finished] == [1] * 5
    assert finished == sorted(finished), "the runs did not finish in the order of their start"
    for run in runs:
        assert [event.step for event in steps_of(run.history())] == list(range(1, 61))
        failures = events.OutOfMemory | events.Failed
        assert not [event for event in run.history() if isinstance(event, failures)]
    wait_for(lambda: machine_queue._tickets() == [])
    for name, count in (("anna", 2), ("ben", 2), ("carla", 1)):
        assert len(visitor(space).predict(owner=secrets[name], api_name="/list")) == count


def restart_during(run: Run, app: App, runs: list[Run]) -> None:
    """End all processes once the run has some steps, and start the app again."""
    start = len(run.history())
    wait_for(lambda: any(event.step > 6 for event in steps_of(run.history()[start:])), seconds=240)
    app.kill()
    end_everything(runs)
    assert run.status() == "interrupted"
    app.start()


def test_the_page_warns_that_home_is_not_on_a_mounted_volume(space):
    assert "storage-notice" in str(visitor(space).config)


def test_every_run_is_stored_under_home(space, monkeypatch):
    monkeypatch.setenv("PEFT_SPACE_HOME", str(space.home))
    started = visitor(space).predict("demo", {"max_steps": 1}, api_name="/train")
    folder = Path(owner_directory(owner_of(started["owner"]))) / started["run"]
    assert folder.is_relative_to(space.home)
    wait_for(lambda: Run(folder).status() == "finished", seconds=240)
