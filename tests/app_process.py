"""The app as a process of its own, for tests that drive it from outside: a browser, or programs that use its API."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parent.parent


class App:
    """`python app.py` on a free port, with a home of its own; can be killed and started again on the same home."""

    command: tuple[str, ...] = ("app.py",)

    def __init__(self, home: Path, **environment: str):
        self.home = home
        self.cache = home.with_name(f"{home.name}-cache")
        """Where Gradio keeps what it receives and sends; its own in each test, for in it Gradio refuses nothing."""
        self.environment = {"PEFT_SPACE_HOME": str(home), "GRADIO_TEMP_DIR": str(self.cache)} | environment
        self.process: subprocess.Popen | None = None
        self.log: Path | None = None
        """Where what it prints is written to, if not to the terminal."""
        self.url = ""

    def start(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        environment = os.environ | {"GRADIO_SERVER_PORT": str(port)} | self.environment
        out = open(self.log, "wb") if self.log else None  # noqa: SIM115 - it is the app that needs it
        command = [sys.executable, *self.command]
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, stdout=out, stderr=out)
        deadline = time.time() + 120
        while time.time() < deadline:
            assert self.process.poll() is None, "the app ended"
            try:
                urllib.request.urlopen(self.url, timeout=30).read()
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError("the page did not answer within two minutes")

    def kill(self) -> None:
        """Kill the app and all it started in its session; trainings are in sessions of their own."""
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
