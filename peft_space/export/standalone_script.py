"""Writes a run as one Python file that trains it anywhere: this package, the recipe and the rows.

Run it with `uv run train.py`, or with `accelerate launch` on several machines.
"""

import base64
import hashlib
import importlib.metadata
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import peft_space
from peft_space.demo import MODELS
from peft_space.errors import UserError
from peft_space.formatting import gigabytes
from peft_space.runs import archive as run_archive
from peft_space.runs.plan import Plan, read_plan
from peft_space.runs.run import Run

_LIBRARIES = (
    "torch transformers peft accelerate bitsandbytes trl datasets pyarrow numpy pandas "
    "huggingface-hub httpx2 psutil pydantic"
).split()
"""The libraries that training imports."""
_MAX_BYTES = 200_000_000
"""Of the packed files; Python reads the whole script at once."""


def dependencies(plan: Plan | None) -> list[str]:
    """Return the libraries that training needs, pinned.

    Args:
        plan: of a run that has been started; its versions replace the installed ones.
    """
    versions = {library: importlib.metadata.version(library) for library in _LIBRARIES}
    if plan:
        used = {name: version for name, version in plan.versions.items() if name in versions}
        versions |= used
    # no index has local versions such as "+cpu"
    return [f"{library}=={version.partition('+')[0]}" for library, version in versions.items()]


def package(base_model: str) -> dict[str, Path]:
    """Return the files of this package that training needs, by their path in an archive.

    Args:
        base_model: a built-in model is included only if it is this one.
    """
    folder = Path(peft_space.__file__).parent
    others = [folder for name, folder in MODELS.items() if name != base_model]
    excluded = ["web/", "demo/data/", *(f"demo/{folder.name}/" for folder in others)]
    files = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".pyc"
    }
    return {
        f"peft_space/{name}": files[name]
        for name in sorted(files)
        if not name.startswith(tuple(excluded))
    }


def zipped(files: Mapping[str, bytes | Path]) -> bytes:
    """Return a zip archive; the same contents give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            is_weights = name.endswith(".safetensors")  # these do not compress
            method = zipfile.ZIP_STORED if is_weights else zipfile.ZIP_DEFLATED
            data = content if isinstance(content, bytes) else content.read_bytes()
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


def write_script(run: Run, out: str | Path) -> Path:
    """Write a script that trains a run from its first step.

    Args:
        run: the run; it stays as it is.
        out: the script to create.

    Returns:
        Its absolute path.

    Raises:
        UserError: `out` exists or does not end in .py, or the script would be too large.
    """
    path = Path(out).absolute()
    if path.suffix != ".py":
        message = f"{out} is not a script name. Choose one that ends in .py, such as train.py."
        raise UserError("export.not_a_script", message)
    if path.exists():
        message = f"{out} already exists. Choose another name, or delete it."
        raise UserError("export.file_exists", message)
    plan, recipe = read_plan(run), run.recipe
    if plan and plan.base_on_hub:
        recipe = recipe.model_copy(update={"revision": plan.base_revision})
    files: dict[str, bytes | Path] = {}
    files |= {f"package/{name}": file for name, file in package(recipe.base_model).items()}
    for name, content in run_archive.pack(run).items():
        if name == "run.json" or name.startswith("data/"):
            files[name] = content
    files["recipe.json"] = (recipe.model_dump_json(indent=2) + "\n").encode()
    size = sum(_size(content) for content in files.values())
    if size > _MAX_BYTES:
        message = f"The run's data is too large for one script ({gigabytes(size)}). Copy the run's "
        message += "folder instead and continue there with `peft-space resume`."
        raise UserError("export.script_too_large", message)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_text(run.name, dependencies(plan), zipped(files)), encoding="utf-8")
    return path


def _size(content: bytes | Path) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _text(name: str, libraries: list[str], packed: bytes) -> str:
    pins = "".join(f"#   {json.dumps(library)},\n" for library in libraries)
    encoded = base64.b64encode(packed).decode()
    lines = "\n".join(encoded[start : start + 140] for start in range(0, len(encoded), 140))
    return "\n".join(
        [
            f'# /// script\n# requires-python = ">=3.11"\n# dependencies = [\n{pins}# ]\n# ///',
            _PROGRAM,
            f"NAME = {json.dumps(name)}",
            f'SHA256 = "{hashlib.sha256(packed).hexdigest()}"',
            f'PACKED = """\n{lines}\n"""\n',
            'if __name__ == "__main__":\n    main()\n',
        ]
    )


_PROGRAM = '''"""Trains an adapter on all GPUs of this machine. Written by peft_space.

`uv run THIS.py` installs the libraries listed above first; `python THIS.py` uses those installed.
On several machines that share this folder, run `accelerate launch THIS.py` on each. The run and its
adapter are stored in a folder next to this file. If you run it again, it resumes from the last
checkpoint. This file includes peft_space and the rows.
"""

import base64
import fcntl
import hashlib
import io
import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path


def main():
    folder = Path(__file__).absolute().with_name(Path(__file__).stem + "-run")
    unpack(folder)
    paths = [str(folder / "package"), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    os.environ.setdefault("PEFT_SPACE_HOME", str(folder / "home"))
    if "WORLD_SIZE" not in os.environ:
        command = ["-m", "peft_space", "resume", str(folder)]
    else:  # one of several processes that accelerate started
        command = ["-m", "peft_space.runtime.train_process", str(folder)]
        if os.environ["RANK"] == "0":
            lock(folder)
    print(f"Training {NAME}. The adapter will be in {folder / 'adapter'}.", file=sys.stderr)
    os.execv(sys.executable, [sys.executable, *command])


def unpack(folder):
    rename = "Move it away, or rename this script."
    if (folder / "script.sha256").is_file():
        if (folder / "script.sha256").read_text() != SHA256:
            sys.exit(f"{folder} belongs to another script. {rename}")
        return
    packed = base64.b64decode(PACKED)
    if hashlib.sha256(packed).hexdigest() != SHA256:
        sys.exit("This script is damaged: its content has another SHA-256. Export it again.")
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    zipfile.ZipFile(io.BytesIO(packed)).extractall(aside)
    (aside / "script.sha256").write_text(SHA256)
    try:
        aside.rename(folder)
    except OSError:
        shutil.rmtree(aside)
        if not (folder / "script.sha256").is_file():
            sys.exit(f"{folder} exists and does not belong to this script. {rename}")


def lock(folder):
    """Lock the run until the training ends, however it ends."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"{folder} is being trained by another process. Wait for it, or stop it first.")
    os.set_inheritable(descriptor, True)

'''
