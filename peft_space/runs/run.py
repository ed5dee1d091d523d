"""A run is a directory with a recipe, data, plan, events, checkpoints, an adapter and a lock.

Its status is derived from its events and its lock, never stored, so it cannot be out of date.
"""

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from peft_space.errors import UserError
from peft_space.recipe import Recipe
from peft_space.runs import events
from peft_space.runs.events import active_job
from peft_space.storage import atomic_io, file_lock

Status = Literal[
    "new", "queued", "on_job", "running", "paused", "stopped", "interrupted", "finished", "failed"
]

StopKind = Literal["stop", "pause"]

#: The format of a run's files. A run of another format is not opened.
FORMAT = 2
_START_SECONDS = 60  # a run that is queued for longer than this without a process has lost it
_LOCK_TIMEOUT = 1.0  # `is_locked` holds the lock for an instant, so one failure proves nothing
_MAX_NAME_LENGTH = 100


class Run:
    """One fine-tuning, in one directory.

    recipe.json  run.json  plan.json  data/  events.jsonl  checkpoints/  adapter/  README.md
    worker.log
    """

    def __init__(self, directory: str | Path):
        """Open an existing run.

        Raises:
            UserError: `directory` is not a run, or a version with another format wrote it.
        """
        self.directory = Path(directory).absolute()
        if not (self.directory / "run.json").is_file():
            raise UserError(
                "runs.not_a_run",
                f"{directory} is not a run: it has no run.json. Give the directory that "
                "`train --out` created.",
            )
        self.about: dict[str, Any] = json.loads((self.directory / "run.json").read_text())
        if (written := self.about.get("format")) != FORMAT:
            raise UserError(
                "runs.other_format",
                f"The run in {directory} has the format {written!r}, and this version reads only "
                f"format {FORMAT}. Open it with the version of peft_space that created it, or "
                "train its recipe and data again.",
            )
        self.recipe = Recipe.model_validate_json((self.directory / "recipe.json").read_text())

    @classmethod
    def create(
        cls, directory: str | Path, recipe: Recipe, files: Mapping[str, str | Path], name: str = ""
    ) -> "Run":
        """Create a run completely or not at all: it is written elsewhere, then renamed.

        Args:
            directory: where; it must not exist, or be empty.
            files: relative path -> text, or a file to copy.
            name: for people; the name of the directory if empty.

        Raises:
            UserError: `directory` already contains something.
        """
        target = Path(directory).absolute()
        advice = f"Choose another folder, or resume it with `peft-space resume {directory}`."
        with atomic_io.atomic_directory(target, advice, private=True) as aside:
            for path, content in files.items():
                (aside / path).parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, Path):
                    shutil.copyfile(content, aside / path)
                else:
                    (aside / path).write_text(content, encoding="utf-8")
            (aside / "recipe.json").write_text(recipe.model_dump_json(indent=2) + "\n")
            about = {"format": FORMAT, "name": name or target.name, "created": time.time()}
            (aside / "run.json").write_text(json.dumps(about) + "\n")
        return cls(target)

    @property
    def name(self) -> str:
        """The name that people see; several runs may share it."""
        return self.about["name"]

    def rename(self, name: str) -> None:
        """Give the run another name.

        Raises:
            UserError: the name is empty or too long.
        """
        if not 0 < len(name.strip()) <= _MAX_NAME_LENGTH:
            raise UserError(
                "runs.name_length",
                f"The name of a run must have 1 to {_MAX_NAME_LENGTH} characters. "
                "Choose another one.",
            )
        self.about |= {"name": name.strip()}
        atomic_io.write_text(self.path("run.json"), json.dumps(self.about) + "\n")

    def delete(self) -> None:
        """Remove the run's directory.

        Raises:
            UserError: the run is being trained, on this machine or by a job.
        """
        ensure_not_on_job(self)
        with self.lock():
            aside = self.directory.with_name(f".{self.directory.name}-deleted")
            self.directory.rename(aside)  # no list shows it from now on
            shutil.rmtree(aside)

    def size(self) -> int:
        """Bytes on the disk; approximate while a training removes files."""
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
        """The folder of the trained adapter.

        Raises:
            UserError: the run does not have an adapter yet.
        """
        folder = self.path("adapter")
        if not (folder / "adapter_config.json").is_file():
            raise UserError(
                "runs.no_adapter",
                f"The run {self.name!r} does not have an adapter yet: it is {self.status()}. "
                "Finish the training first.",
            )
        return folder

    # Events

    def append(self, event: events.Event) -> None:
        """Add one line to events.jsonl.

        Every event except the frequent Step is on the disk when this returns.
        """
        line = event.model_dump_json().encode() + b"\n"
        with open(self.path("events.jsonl"), "ab", buffering=0) as file:
            start = file.seek(0, os.SEEK_END)
            if file.write(line) < len(line):  # the disk is full, and part of the line fitted
                file.truncate(start)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if not isinstance(event, events.Step):
                os.fsync(file.fileno())

    def history(self) -> list[events.Event]:
        """All events so far.

        A last line without a newline is being written, or a kill cut it off; it is left out.
        """
        try:
            lines = self.path("events.jsonl").read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        return [events.parse_event(line) for line in lines[:-1]]

    def truncate_partial_event(self) -> None:
        """Cut off the incomplete last line that a killed process left. Needs the run's lock."""
        path = self.path("events.jsonl")
        if path.is_file():
            os.truncate(path, path.read_bytes().rfind(b"\n") + 1)

    # The lock, and requests to the process that holds it

    @contextmanager
    def lock(self) -> Iterator[int]:
        """Hold the run's lock, which ends with this process, however it ends.

        Yields:
            The descriptor of the lock file. A child that inherits it keeps the lock.

        Raises:
            UserError: another process holds the lock.
        """
        with contextlib.ExitStack() as stack:
            try:
                locked = file_lock.file_lock(self.path("lock"), timeout=_LOCK_TIMEOUT)
                descriptor = stack.enter_context(locked)
            except BlockingIOError:
                raise UserError(
                    "runs.locked",
                    f"Another process is working on the run {self.name!r}. Wait for it, or stop "
                    "it first.",
                ) from None
            yield descriptor

    def is_locked(self) -> bool:
        """Return True if a living process works on this run."""
        return file_lock.is_locked(self.path("lock"))

    def request_stop(self, kind: StopKind) -> None:
        """Ask the training to save and end after its current step.

        Args:
            kind: "stop" ends it for good and writes an adapter, "pause" only saves a checkpoint.
        """
        self.path("request").write_text(kind)

    def requested_stop(self) -> StopKind | None:
        """The current request; None if there is none, or while it is being written."""
        try:
            text = self.path("request").read_text()
        except FileNotFoundError:
            return None
        kinds: dict[str, StopKind] = {"pause": "pause", "stop": "stop"}
        return kinds.get(text)

    def clear_stop_request(self) -> None:
        """Withdraw the request."""
        self.path("request").unlink(missing_ok=True)

    def status(self, history: list[events.Event] | None = None) -> Status:
        """The run's state.

        Args:
            history: the run's events, if the caller has read them already.
        """
        history = self.history() if history is None else history
        if active_job(history):
            return "on_job"
        decisive = (events.Queued, events.Started, *events.OUTCOMES)
        last = next((event for event in reversed(history) if isinstance(event, decisive)), None)
        if last is None:
            return "new"
        if isinstance(last, events.Started):
            return "running" if self.is_locked() else "interrupted"
        if isinstance(last, events.Queued):
            is_waiting = self.is_locked() or time.time() - last.at < _START_SECONDS
            return "queued" if is_waiting else "interrupted"
        return last.event.lower()  # type: ignore[return-value]


def ensure_not_on_job(run: Run) -> None:
    """Raise UserError if a job on Hugging Face trains the run."""
    if job := active_job(run.history()):
        raise UserError(
            "runs.on_job",
            f"A job on Hugging Face trains the run {run.name!r} ({job.address}). Wait for it, or "
            "cancel the job first. You can then resume the run here.",
        )


def append_notice_once(run: Run, notice: events.Notice, ever: bool = False) -> None:
    """Append a notice unless it is there already, which a kill before the next step can cause.

    Args:
        notice: what the trainer did, and why.
        ever: compare with the whole history, not only with the events since the last start.
    """
    history = run.history()
    starts = [index for index, event in enumerate(history) if isinstance(event, events.Started)]
    recent = history if ever or not starts else history[starts[-1] :]
    known = {(event.what, event.why) for event in recent if isinstance(event, events.Notice)}
    if (notice.what, notice.why) not in known:
        run.append(notice)
