"""Tests the image of a Space: a clean Python 3.12 environment serves what `deploy-space` uploads.

    python -m benchmarks.space_image [--python python3.12] [--constraint torch==2.13.0]

Needs the network, for pip only, and about 6 GB in the temporary folder. The result is written by
hand to docs/space.md.
"""

import argparse
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from peft_space.hub.space import ROOT, files_to_upload, smoke_test
from tests.fixtures.fake_oidc import OpenIdProvider

_PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "bitsandbytes",
    "gradio",
    "spaces",
    "huggingface_hub",
    "datasets",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default="python3.12")
    parser.add_argument(
        "--constraint", action="append", default=[], help="for pip, such as torch==2.13.0"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, OpenIdProvider("hf_of_nobody") as provider:
        folder = Path(scratch)
        for name in files_to_upload(ROOT):
            (folder / "app" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / "app" / name)
        python = _environment(folder, arguments.python, arguments.constraint)
        _serve(folder, python, provider)


def _environment(folder: Path, python: str, constraints: list[str]) -> Path:
    (folder / "constraints.txt").write_text("\n".join(constraints))
    began = time.monotonic()
    subprocess.run([python, "-m", "venv", folder / "environment"], check=True)
    made = folder / "environment" / "bin" / "python"
    requirements = ["-r", folder / "app" / "requirements.txt", "-c", folder / "constraints.txt"]
    subprocess.run(
        [made, "-m", "pip", "install", "--quiet", *requirements],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    print(f"- installed in {time.monotonic() - began:.0f} s: {_versions(made)}")
    return made


def _versions(python: Path) -> str:
    code = (
        "import sys, platform, importlib.metadata as m;"
        "versions = [f'· {n} {m.version(n)}' for n in sys.argv[1:]];"
        "print('Python', platform.python_version(), *versions)"
    )
    return subprocess.run(
        [python, "-c", code, *_PACKAGES], check=True, capture_output=True, text=True
    ).stdout.strip()


def _serve(folder: Path, python: Path, provider: OpenIdProvider) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_TOKEN")
    }
    own = {
        "SYSTEM": "spaces",
        "GRADIO_SERVER_PORT": str(port),
        "PEFT_SPACE_HOME": str(folder / "home"),
        "HF_HUB_OFFLINE": "1",
    }
    began = time.monotonic()
    with subprocess.Popen(
        [python, "app.py"], cwd=folder / "app", env=inherited | own | provider.environment
    ) as app:
        try:
            while True:
                try:
                    assert httpx.get(url, timeout=30).status_code == 200
                    break
                except httpx.TransportError:
                    assert app.poll() is None, "the app ended"
                    time.sleep(0.2)
            print(f"- the page answers after {time.monotonic() - began:.1f} s")
            sign_in = urlsplit(httpx.get(f"{url}/login/huggingface").headers["location"])
            print(f"- signing in leads to {sign_in.path}")
            for check in smoke_test(url):
                print(f"- {check['what']}: {check['found']} ({check['seconds']} s)")
        finally:
            app.terminate()


if __name__ == "__main__":
    main()
