"""ZeroGPU without its GPUs: a stand-in for the service that lends them, and what lets the real `spaces` package run with a CPU's torch.

`python -m tests.zerogpu page` serves the page as on ZeroGPU, `python -m tests.zerogpu train` trains runs in slices without one.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from peft_space.recipe import Recipe
from peft_space.run import Run
from tests.app_process import ROOT, App


class Lender:
    """Lends GPUs as the platform does: refuses, counts what was asked for, and ends who keeps one for too long. Used with `with`."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        """Seconds of each slice that was asked for."""
        self.pids: list[int] = []
        """The process of each fresh worker, in order."""
        self.quota = float("inf")
        self.longest = float("inf")
        self.expired = False
        self.no_gpu = False
        self.overrun: float | None = None
        """Seconds after which any worker is ended."""
        self._known: set[str] = set()

    def __enter__(self) -> "Lender":
        lender = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                pass

            def do_POST(self) -> None:
                url = urlsplit(self.path)
                status, told = lender.answer(url.path, {key: values[0] for key, values in parse_qs(url.query).items()})
                body = json.dumps(told).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *args: Any) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, query: dict[str, str]) -> tuple[int, dict[str, Any]]:
        if path == "/allow":
            self.pids.append(int(query["pid"]))
            self._known.add(query["allowToken"])
            if self.overrun:
                threading.Timer(self.overrun, kill, [self.pids[-1]]).start()
        if path != "/schedule":
            return 200, {}
        seconds = float(query["durationSeconds"])
        if self.expired:
            return 401, {}
        if self.no_gpu:
            return 503, {}
        if seconds > self.longest:
            return 429, {"left": int(self.longest), "wait": -1}
        if seconds > self.quota:
            return 429, {"left": int(self.quota), "wait": 3600}
        self.quota -= seconds
        self.asked.append(seconds)
        token = f"task-{query['taskId']}"
        return 200, {"idle": token in self._known, "nvidiaIndex": 0, "nvidiaUUID": "none", "allowToken": token}

    @property
    def environment(self) -> dict[str, str]:
        """Of a process that takes itself for a ZeroGPU Space. Signed in nowhere: the quota is that of the Space."""
        return {"SPACES_ZERO_GPU": "true", "SPACES_ZERO_DEVICE_API_URL": f"http://127.0.0.1:{self._server.server_port}"}

    @contextlib.contextmanager
    def trainer(self) -> "Iterator[Trainer]":
        """Whoever asks for slices, in a process of its own, whose forks end with it."""
        environment = os.environ | self.environment
        command = [sys.executable, "-m", "tests.zerogpu", "train"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **pipes)
        try:
            yield Trainer(process)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class Trainer:
    """Trains runs in slices, in another process."""

    def __init__(self, process: subprocess.Popen):
        self._process = process

    def begin(self, directory: Path, seconds: int) -> None:
        """Slices of at most so many seconds, until the run ends or is refused."""
        assert self._process.stdin
        self._process.stdin.write(f"{seconds} {directory}\n")
        self._process.stdin.flush()

    def wait(self) -> None:
        """Until that is so."""
        assert self._process.stdout
        while (line := self._process.stdout.readline()) != _ENDED:
            assert line, "it did not end as it should"

    def train(self, directory: Path, seconds: int) -> None:
        self.begin(directory, seconds)
        self.wait()


_ENDED = "no more slices\n"


class Page(App):
    """The page as ZeroGPU runs it."""

    command = ("-m", "tests.zerogpu", "page")


HASTY_SECONDS = 9
"""Of slices that a scoring of `SlowPage` does not fit in."""
TRAINED = "5" * 24
"""The id of the run that `hasty_page` has."""


def much_to_score(directory: Path) -> Run:
    """A trained run, its base in 4 bits, with many held-out rows."""
    from peft_space.training.prepare import make_run
    from peft_space.training.train import train

    run = make_run(directory, "demo", Recipe(max_steps=4, held_out_share=0.3, eval_steps=4))
    with run.lock():
        train(run)
    return run


class SlowPage(Page):
    """The same where each batch of a scoring takes most of a second longer, so that on any machine it needs several slices."""

    command = ("-m", "tests.zerogpu", "slow-page")


def hasty_page(home: Path, run: Run, lending: Lender) -> Page:
    """A slow page with very short slices and a copy of that run."""
    shutil.copytree(run.directory, home / "runs" / "local" / TRAINED)
    return SlowPage(home, PEFT_SPACE_SLICE_SECONDS=str(HASTY_SECONDS), **lending.environment)


def kill(pid: int) -> None:
    """End a worker as the platform does."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _no() -> bool:
    return False  # a function that has a name, for the package asks it in another process


def import_spaces_without_a_gpu() -> None:
    """Import the real package; what it would do with CUDA is left out, all else is its own: forks, pickling, warm workers, refusals."""
    import bitsandbytes  # noqa: F401 - before, so that it finds its kernels for the CPU
    import torch

    torch.version.cuda = torch.version.cuda or "13.0"
    torch.cuda._is_in_bad_fork = _no
    for name in ("_cuda_init", "_cuda_getDeviceCount", "_cuda_emptyCache", "_cuda_getCurrentRawStream"):
        if not hasattr(torch._C, name):
            setattr(torch._C, name, lambda *args: 0)
    import spaces.zero.torch

    spaces.zero.torch.init = lambda nvidia_uuid: None
    spaces.zero.torch.move = lambda callback=None: None
    spaces.zero.torch.size = lambda: 0


def train() -> None:
    """For each line with seconds and a run: slices until it ends, or one is refused."""
    from peft_space.execution import zerogpu

    zerogpu.import_libraries()
    workers = zerogpu.SlicedWorkers()
    for line in sys.stdin:
        seconds, directory = line.rstrip("\n").split(" ", 1)
        run = Run(directory)
        zerogpu.start(run)
        while zerogpu.go_on(run, workers, int(seconds)):
            pass
        print(_ENDED, end="", flush=True)


def slow_down_scoring(seconds: float) -> None:
    """Let each batch that is measured take so much longer."""
    from peft_space.scoring import Scoring

    keep = Scoring.batch

    def batch(scoring: Scoring, part: str, number: int, measure: Callable[[], Any]) -> Any:
        return keep(scoring, part, number, lambda: (time.sleep(seconds), measure())[1])

    Scoring.batch = batch  # type: ignore[method-assign]


def main() -> None:
    from peft_space.settings import prepare_libraries

    prepare_libraries()
    import_spaces_without_a_gpu()
    if sys.argv[1] == "slow-page":
        slow_down_scoring(0.8)
    if sys.argv[1] == "train":
        train()
    else:
        from peft_space.ui.app import launch

        launch()


if __name__ == "__main__":
    main()
