"""A Run is a directory: its recipe, data, plan, events, checkpoints and adapter, and the lock of who works on it.

Knows nothing about models. Its status is derived from its events and its lock, never stored, so it cannot be out of date.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from peft_space.errors import UserError
from peft_space.recipe import Recipe
from peft_space.runs import events
from peft_space.runs.status import active_job
from peft_space.storage import atomic_io

logger = logging.getLogger(__name__)

Status = Literal[
    "new", "queued", "on_job", "running", "paused", "stopped", "interrupted", "finished", "failed"
]

StopKind = Literal["stop", "pause"]

_START_SECONDS = 60  # a queued run without a worker for longer than this has lost it


class Run:
    """One fine-tuning, in one directory.

    recipe.json  run.json  plan.json  data/  events.jsonl  checkpoints/  adapter/  README.md  worker.log
    """

    def __init__(self, directory: str | Path):
        """Open an existing run. Raises UserError where `directory` is none."""
        self.directory = Path(directory).absolute()
        if not (self.directory / "run.json").is_file():
            raise UserError(
                "todo",
                f"{directory} is not a run: it has no run.json. Give the folder that `train --out` wrote.",
            )
        self.recipe = Recipe.model_validate_json((self.directory / "recipe.json").read_text())
        self.about: dict[str, Any] = json.loads((self.directory / "run.json").read_text())

    @classmethod
    def create(
        cls, directory: str | Path, recipe: Recipe, files: Mapping[str, str | Path], name: str = ""
    ) -> "Run":
        """Make a run whole or not at all: written aside, then renamed.

        Args:
            directory: where; must not exist, or be empty.
            files: relative path -> text, or a file to copy, that the data module wants kept (see `data.check`).
        """
        target = Path(directory).absolute()
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UserError(
                "todo",
                f"{directory} already exists and is not empty. Choose another folder, or go on with `peft-space resume {directory}`.",
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            for path, content in files.items():
                (aside / path).parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, Path):
                    shutil.copyfile(content, aside / path)
                else:
                    (aside / path).write_text(content, encoding="utf-8")
            (aside / "recipe.json").write_text(recipe.model_dump_json(indent=2) + "\n")
            (aside / "run.json").write_text(
                json.dumps({"name": name or target.name, "created": time.time()}) + "\n"
            )
            atomic_io.atomic_rename(aside, target)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        return cls(target)

    @property
    def name(self) -> str:
        return self.about["name"]

    def rename(self, name: str) -> None:
        """Give the run another name. Raises UserError where it is empty or long."""
        if not 0 < len(name.strip()) <= 100:
            raise UserError("todo", "A run's name has 1 to 100 characters. Choose another one.")
        self.about |= {"name": name.strip()}
        atomic_io.write_text(self.path("run.json"), json.dumps(self.about) + "\n")

    def delete(self) -> None:
        """Remove the run and all that is in it. Raises UserError while it is being trained, here or elsewhere."""
        ensure_not_on_job(self)
        with self.lock():
            gone = self.directory.with_name(f".{self.directory.name}-deleted")
            self.directory.rename(gone)  # at once out of every list
            shutil.rmtree(gone)

    def size(self) -> int:
        """Bytes on the disk, roughly: a training may be removing files meanwhile."""
        total = 0
        for folder, _, names in os.walk(self.directory):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    total += os.stat(os.path.join(folder, name)).st_size
        return total

    # Files of the run

    def path(self, *parts: str) -> Path:
        """A path inside the run."""
        return self.directory.joinpath(*parts)

    @property
    def adapter(self) -> Path:
        """The folder of the trained adapter. Raises UserError where training has not got that far."""
        folder = self.path("adapter")
        if not (folder / "adapter_config.json").is_file():
            raise UserError(
                "todo",
                f"The run {self.name!r} has no adapter yet: it is {self.status()}. Finish the training first.",
            )
        return folder

    # Events

    def append(self, event: events.Event) -> None:
        """Add one line to events.jsonl; all but the frequent Step lines are on disk when this returns."""
        line = event.model_dump_json().encode() + b"\n"
        with open(self.path("events.jsonl"), "ab", buffering=0) as file:
            begin = file.seek(0, os.SEEK_END)
            if file.write(line) < len(line):  # half a line fitted on a full disk
                file.truncate(begin)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if not isinstance(event, events.Step):
                os.fsync(file.fileno())

    def history(self) -> list[events.Event]:
        """All events so far. A last line without its end is being written, or was torn by a kill, and is left out."""
        try:
            lines = self.path("events.jsonl").read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        return [events.parse_event(line) for line in lines[:-1]]

    def truncate_partial_event(self) -> None:
        """Cut off what a killed worker left of its last line. Only for who holds the lock."""
        path = self.path("events.jsonl")
        if path.is_file():
            data = path.read_bytes()
            os.truncate(path, data.rfind(b"\n") + 1)

    # Who works on it

    @contextmanager
    def lock(self) -> Iterator[int]:
        """Hold the run for this process; the lock ends with the process, however it ends.

        Yields the descriptor that holds it, for a child to inherit. Raises UserError where another process holds the run.
        """
        with open(self.path("lock"), "a") as file:
            for attempt in range(
                20
            ):  # `is_locked` holds it for an instant, so one refusal proves nothing
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if attempt == 19:
                        raise UserError(
                            "todo",
                            f"The run {self.name!r} is being trained by another process. Wait for it, or stop it first.",
                        ) from None
                    time.sleep(0.05)
            try:
                yield file.fileno()
            finally:
                fcntl.flock(
                    file, fcntl.LOCK_UN
                )  # a process forked meanwhile has the descriptor too, and would hold the lock as long as it lives

    def is_locked(self) -> bool:
        """Whether a living process works on this run."""
        with open(self.path("lock"), "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            fcntl.flock(file, fcntl.LOCK_UN)  # as in `lock`
            return False

    def request_stop(self, how: StopKind) -> None:
        """Ask the worker to save and leave after its current step: to stop for good, with an adapter, or to pause."""
        self.path("request").write_text(how)

    def requested_stop(self) -> StopKind | None:
        """What was asked of the worker, or None."""
        try:
            asked = self.path("request").read_text()
        except FileNotFoundError:
            return None
        return {"pause": "pause", "stop": "stop"}.get(asked)  # type: ignore[return-value] - nothing while it is being written

    def clear_stop_request(self) -> None:
        """Nothing is asked of the worker any more."""
        self.path("request").unlink(missing_ok=True)

    def status(self, happened: list[events.Event] | None = None) -> Status:
        """What state the run is in, from its events (read anew unless given) and its lock."""
        kinds = (
            events.Queued,
            events.Started,
            events.Paused,
            events.Stopped,
            events.Finished,
            events.Failed,
        )
        happened = self.history() if happened is None else happened
        if active_job(happened):
            return "on_job"
        decisive = [event for event in happened if isinstance(event, kinds)]
        if not decisive:
            return "new"
        last = decisive[-1]
        if isinstance(last, events.Started):
            return "running" if self.is_locked() else "interrupted"
        if isinstance(last, events.Queued):
            waiting = self.is_locked() or time.time() - last.at < _START_SECONDS
            return "queued" if waiting else "interrupted"
        return last.event.lower()  # type: ignore[return-value]


def ensure_not_on_job(run: Run) -> None:
    """Raise UserError where a job trains the run."""
    if handed := active_job(run.history()):
        raise UserError(
            "todo",
            f"The run {run.name!r} is trained on Hugging Face Jobs ({handed.address}). Wait for it, or cancel the job first; then it goes on here.",
        )


def append_notice_once(run: Run, event: events.Notice, ever: bool = False) -> None:
    """Append an event, unless it has been told since training last started, or `ever`: a kill may come between telling and doing."""
    happened = run.history()
    last_start = max(
        (place for place, one in enumerate(happened) if isinstance(one, events.Started)), default=0
    )
    told = [one for one in happened[0 if ever else last_start :] if isinstance(one, events.Notice)]
    if (event.what, event.why) not in [(one.what, one.why) for one in told]:
        run.append(event)


# The runs of one owner
