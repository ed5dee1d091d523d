"""Measures the time until the page answers, relative to a bare `import gradio`.

`python -m benchmarks.startup_time`. Processes are started in turn, and medians are compared,
because other work on the machine affects both.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROUNDS = 5
ROOT = Path(__file__).resolve().parent.parent


def import_seconds() -> float:
    """Seconds of a process that only imports gradio."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", "import gradio"],
        check=True,
        env=os.environ | {"GRADIO_ANALYTICS_ENABLED": "False"},
    )
    return time.perf_counter() - start


def page_seconds() -> float:
    """Seconds from starting `app.py` to the page's first answer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as home:
        start = time.perf_counter()
        app = subprocess.Popen(
            [sys.executable, "app.py"],
            cwd=ROOT,
            env=os.environ | {"GRADIO_SERVER_PORT": str(port), "PEFT_SPACE_HOME": home},
            stdout=subprocess.DEVNULL,
        )
        try:
            while True:
                assert app.poll() is None, "the app ended"
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30).read()
                    return time.perf_counter() - start
                except OSError:
                    time.sleep(0.02)
        finally:
            app.kill()
            app.wait()


def main() -> None:
    import_seconds(), page_seconds()  # warms the file cache
    imports, pages = zip(*[(import_seconds(), page_seconds()) for _ in range(ROUNDS)], strict=True)
    result = {
        "import_gradio_seconds": statistics.median(imports),
        "page_seconds": statistics.median(pages),
        "ratio": statistics.median(page / bare for page, bare in zip(pages, imports, strict=True)),
    }
    print(json.dumps({key: round(value, 3) for key, value in result.items()}))


if __name__ == "__main__":
    main()
