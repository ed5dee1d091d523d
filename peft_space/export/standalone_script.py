"""A run as one file that trains it anywhere: `uv run train.py`, or under `accelerate launch`. It holds this package, the recipe and the rows."""

import base64
import hashlib
import importlib.metadata
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import peft_space
from peft_space.errors import UserError
from peft_space.formatting import gigabytes
from peft_space.runs import archive as run_archive
from peft_space.runs.plan import Plan, read_plan
from peft_space.runs.run import Run

_LIBRARIES = (
    "torch", "transformers", "peft", "accelerate", "bitsandbytes", "trl", "datasets", "pyarrow", "numpy", "pandas", "huggingface-hub",
    "httpx2", "psutil", "pydantic",
)  # fmt: skip
"""What training imports."""
_MOST_BYTES = 200_000_000
"""Of what is packed: Python reads the file as a whole."""


def dependencies(plan: Plan | None) -> list[str]:
    """The libraries that training needs, pinned to the versions of a run's plan, else to those that are installed here."""
    here = {library: importlib.metadata.version(library) for library in _LIBRARIES}
    there = {
        library: version
        for library, version in (plan.versions if plan else {}).items()
        if library in here
    }
    return [
        f"{library}=={version.partition('+')[0]}" for library, version in (here | there).items()
    ]  # "+cpu" is on no index


def package(base_model: str) -> dict[str, Path]:
    """The files of this package that training needs, by their paths: without the page, and with the built-in model only where it is the base."""
    folder = Path(peft_space.__file__).parent
    left_out = {"web"} if base_model == "demo" else {"web", "demo/model"}
    files = {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    wanted = [
        name
        for name in sorted(files)
        if not any(name.startswith(f"{part}/") for part in {*left_out, "demo/data"})
    ]
    return {f"peft_space/{name}": files[name] for name in wanted}


def zipped(files: Mapping[str, bytes | Path]) -> bytes:
    """A zip of them, the same for the same contents."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            stored = (
                zipfile.ZIP_STORED if name.endswith(".safetensors") else zipfile.ZIP_DEFLATED
            )  # numbers get no smaller
            archive.writestr(
                zipfile.ZipInfo(name),
                content if isinstance(content, bytes) else content.read_bytes(),
                stored,
            )
    return packed.getvalue()


def write_script(run: Run, out: str | Path) -> Path:
    """Write the script that trains this run from its first step to `out`. Raises UserError where that exists, is no .py, or would be too large."""
    path = Path(out).absolute()
    if path.suffix != ".py":
        raise UserError(
            "todo", f"{out} is no name of a script. Give one that ends in .py, such as train.py."
        )
    if path.exists():
        raise UserError("todo", f"{out} exists already. Give another name, or remove it.")
    plan = read_plan(run)
    recipe = run.recipe
    if plan and plan.base_on_hub:
        recipe = recipe.model_copy(update={"revision": plan.base_revision})
    files: dict[str, bytes | Path] = {
        f"package/{name}": file for name, file in package(recipe.base_model).items()
    }
    files |= {
        name: file
        for name, file in run_archive.pack(run).items()
        if name == "run.json" or name.startswith("data/")
    }
    files["recipe.json"] = (recipe.model_dump_json(indent=2) + "\n").encode()
    size = sum(
        len(content) if isinstance(content, bytes) else content.stat().st_size
        for content in files.values()
    )
    if size > _MOST_BYTES:
        raise UserError(
            "todo",
            f"The rows of this run are too many for one script ({gigabytes(size)}). Copy its folder instead, and train it there with `peft-space resume`.",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_text(run.name, dependencies(plan), zipped(files)), encoding="utf-8")
    return path


def _text(name: str, libraries: list[str], packed: bytes) -> str:
    listed = "".join(f"#   {json.dumps(library)},\n" for library in libraries)
    header = f'# /// script\n# requires-python = ">=3.11"\n# dependencies = [\n{listed}# ]\n# ///\n'
    coded = base64.b64encode(packed).decode()
    lines = "\n".join(coded[start : start + 140] for start in range(0, len(coded), 140))
    sha256 = hashlib.sha256(packed).hexdigest()
    return f'{header}{_PROGRAM}\nNAME = {json.dumps(name)}\nSHA256 = "{sha256}"\nPACKED = """\n{lines}\n"""\n\nif __name__ == "__main__":\n    main()\n'


_PROGRAM = '''"""Trains an adapter: `uv run THIS.py`, or `python THIS.py` where the above is installed. On a machine with several GPUs it uses them all.

On several machines, which share this folder: `accelerate launch THIS.py` on each, as accelerate says. The run and its adapter come to lie
in a folder beside this file. Run again, it goes on from the last checkpoint. Written by peft_space, which it holds, with the rows.
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
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder / "package"), *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ.setdefault("PEFT_SPACE_HOME", str(folder / "home"))
    if "WORLD_SIZE" not in os.environ:
        command = ["-m", "peft_space", "resume", str(folder)]
    else:  # one of several, which accelerate has started
        command = ["-m", "peft_space.runtime.train_process", str(folder)]
        if os.environ["RANK"] == "0":
            lock(folder)
    print(f"Training {NAME}. The adapter will be in {folder / 'adapter'}.", file=sys.stderr)
    os.execv(sys.executable, [sys.executable, *command])


def unpack(folder):
    if (folder / "script.sha256").is_file():
        if (folder / "script.sha256").read_text() != SHA256:
            sys.exit(f"{folder} is of another script. Move it away, or give this script another name.")
        return
    packed = base64.b64decode(PACKED)
    if hashlib.sha256(packed).hexdigest() != SHA256:
        sys.exit("This script is damaged: what it holds has another SHA-256 than it says. Export it again.")
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    zipfile.ZipFile(io.BytesIO(packed)).extractall(aside)
    (aside / "script.sha256").write_text(SHA256)
    try:
        aside.rename(folder)
    except OSError:
        shutil.rmtree(aside)
        if not (folder / "script.sha256").is_file():
            sys.exit(f"{folder} exists already and is not of this script. Move it away, or give this script another name.")


def lock(folder):
    """Held until the training ends, however it ends."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"{folder} is being trained by another process. Wait for it, or stop it first.")
    os.set_inheritable(descriptor, True)

'''
