"""Trainings that are killed again and again, each held against the same training left alone: losses to the bit, adapter files, events.

Workers are forked from a process that has the libraries loaded, so that kills hit the training and not the imports. Seeded.
"""

import contextlib
import gc
import hashlib
import itertools
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft_space import events
from peft_space.recipe import Recipe
from peft_space.run import Run, evaluations_of, steps_of
from tests import small_models

COLOURS, THINGS, PLACES = ("red", "green", "blue"), ("lamp", "kettle", "chair", "mug"), ("Oslo", "Rome")
TASKS = ("causal-lm", "sequence-classification", "dpo")
_BEGIN, _END = b"(", b")"
"""What a worker tells of its saves."""


def rows_of(task: str) -> list[dict[str, Any]]:
    """24 rows."""
    rows = []
    for colour, thing, place in itertools.product(COLOURS, THINGS, PLACES):
        question, answer = f"Tell me about the {colour} {thing} in {place}.", f"The {thing} is {colour}."
        match task:
            case "causal-lm":
                rows.append({"prompt": question, "completion": answer})
            case "sequence-classification":
                rows.append({"text": f"the {colour} {thing} in {place}", "label": colour})
            case "dpo":
                rows.append({"prompt": question, "chosen": answer, "rejected": f"I like {place}."})
    return rows


@dataclass(frozen=True)
class Kit:
    """Tiny base models and data files, and fresh runs of them."""

    folder: Path
    bases: dict[str, str] = field(default_factory=dict)

    def run(self, name: str, task: str, rng: random.Random) -> Run:
        """A run of 7 to 12 steps in three or four epochs, with dropout and evaluation; accumulation and saves as the dice fall."""
        from peft_space.training.prepare import make_run

        accumulation = rng.choice((1, 2))
        recipe = Recipe(
            base_model=self._base("bert" if task == "sequence-classification" else "llama"), quantization="none", lora_rank=4, lora_dropout=0.1,
            batch_size=6 // accumulation, gradient_accumulation_steps=accumulation, num_epochs=rng.choice((3, 4)), held_out_share=0.25,
            eval_steps=rng.choice((2, 3)), save_steps=rng.choice((1, 2)), learning_rate=1e-3, seed=rng.randrange(1_000),
        )  # fmt: skip
        return make_run(self.folder / name, str(self.data(task)), recipe)

    def data(self, task: str) -> Path:
        path = self.folder / f"{task}.json"
        if not path.exists():
            path.write_text(json.dumps(rows_of(task)))
        return path

    def _base(self, kind: str) -> str:
        if kind not in self.bases:
            words = {*COLOURS, *THINGS, *PLACES, "the", "in"}
            folder = str(self.folder / kind)
            self.bases[kind] = small_models.bert(folder, words) if kind == "bert" else small_models.llama(folder)
        return self.bases[kind]


# Workers


@dataclass
class Worker:
    """A forked process that trains a run, and what it has told of its saves."""

    pid: int
    told: int
    saves: int = 0
    """Begun so far."""
    saving: bool = False
    seconds: list[float] = field(default_factory=list)
    """Of each save."""

    def listen(self, seconds: float, saves: int | None = None) -> bool:
        """Until it has begun `saves` saves, or ended, or the time is up: whether it goes on."""
        until = time.perf_counter() + seconds
        while (left := until - time.perf_counter()) > 0 and (saves is None or self.saves < saves or not self.saving):
            if select.select([self.told], [], [], left)[0] and not self._take(os.read(self.told, 1)):
                return False
        return True

    def _take(self, mark: bytes) -> bytes:
        if mark == _BEGIN:
            self.saves, self.saving, self._began = self.saves + 1, True, time.perf_counter()
        elif mark == _END:
            self.saving = False
            self.seconds.append(time.perf_counter() - self._began)
        return mark

    def kill(self) -> bool:
        """End it with SIGKILL: whether it was alive until then. It may have ended by itself, but only well."""
        os.kill(self.pid, signal.SIGKILL)
        status = self.wait()
        assert status in (0, -signal.SIGKILL), f"the worker failed with {status}"
        return status == -signal.SIGKILL

    def wait(self) -> int:
        """Its exit status."""
        while self._take(os.read(self.told, 1)):
            pass
        os.close(self.told)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def start(run: Run, before_save: Callable[[int], None] = lambda save: None) -> Worker:
    """A worker that trains `run`. `before_save` is called in it, with the number of the save that begins."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid:
        os.close(tell)
        return Worker(pid, told)
    status = 1
    try:
        gc.freeze()  # the libraries' objects need not be searched again and again
        os.close(told)
        log = os.open(run.path("worker.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        _telling_saves(tell, before_save)
        from peft_space.training.train import train

        with run.lock():
            train(run)
        status = 0
    except BaseException:  # noqa: BLE001 - nothing of the parent may go on in the child
        with contextlib.suppress(OSError):
            run.path("worker.log").open("a").write(traceback.format_exc())
    finally:
        os._exit(status)


def _telling_saves(tell: int, before_save: Callable[[int], None]) -> None:
    from transformers import Trainer

    from peft_space.training.callbacks import RunCallback

    save, on_save, numbers = Trainer._save_checkpoint, RunCallback.on_save, itertools.count(1)

    def beginning(self: Any, *args: Any, **kwargs: Any) -> None:
        os.write(tell, _BEGIN)
        before_save(next(numbers))
        save(self, *args, **kwargs)

    def ending(self: Any, *args: Any, **kwargs: Any) -> None:
        on_save(self, *args, **kwargs)
        os.write(tell, _END)

    Trainer._save_checkpoint, RunCallback.on_save = beginning, ending  # type: ignore[method-assign]


def load_libraries() -> None:
    """What workers need, so that none imports it."""
    import bitsandbytes
    import peft
    import torch
    import trl

    import peft_space.training.prepare
    import peft_space.training.train

    torch.set_num_threads(1)
    assert trl.DPOTrainer  # trl, peft and bitsandbytes import lazily
    assert peft.LoraModel
    assert bitsandbytes.nn
    assert peft_space.training.train


def finish(run: Run) -> Worker:
    """Train a run to its end, uninterrupted."""
    worker = start(run)
    assert worker.wait() == 0, run.path("worker.log").read_text()[-2_000:]
    return worker


# Kills


@dataclass
class Tally:
    """What has been done to how many runs."""

    kills: int = 0
    inside_saves: int = 0
    runs: int = 0
    attempts: int = 0
    problems: list[str] = field(default_factory=list)


def kill_and_compare(kit: Kit, name: str, task: str, rng: random.Random, most_kills: int, tally: Tally, share_inside: float = 0.5) -> None:
    """Kill one run up to `most_kills` times, let it finish, and hold it against the same run left alone, which gets the same plan."""
    run = kit.run(name, task, rng)
    alone = Run(shutil.copytree(run.directory, kit.folder / f"{name}-alone"))
    seconds, save_seconds, killed = 1.0, 0.03, 0
    while killed < most_kills:
        began = time.perf_counter()
        worker = start(run)
        tally.attempts += 1
        if rng.random() < share_inside:
            alive = worker.listen(60, saves=rng.choice((1, 1, 2))) and worker.listen(rng.uniform(0, save_seconds))
        else:
            alive = worker.listen(rng.uniform(0, seconds))
        if not worker.kill() or not alive:
            break
        seconds = max(seconds, time.perf_counter() - began)
        save_seconds = sum(worker.seconds) / len(worker.seconds) if worker.seconds else save_seconds
        killed += 1
        tally.inside_saves += worker.saving
    tally.kills += killed
    if run.status() != "finished":
        finish(run)
    shutil.copy(run.path("plan.json"), alone.path("plan.json"))
    finish(alone)
    tally.runs += 1
    tally.problems += [f"{name} ({task}): {problem}" for problem in differences(run, alone)]
    shutil.rmtree(run.directory)
    shutil.rmtree(alone.directory)


def kill_process_tree(kit: Kit, name: str, rng: random.Random, most_kills: int, tally: Tally) -> None:
    """The same with the command line and all its children in a session of their own, which is killed as a whole, from the imports on."""
    run = kit.run(name, "causal-lm", rng)
    alone = Run(shutil.copytree(run.directory, kit.folder / f"{name}-alone"))
    command = [sys.executable, "-m", "peft_space", "train", "--resume", str(run.directory)]
    environment = os.environ | {"PEFT_SPACE_HOME": str(kit.folder / f"{name}-home")}  # nothing is kept there: the rows are rendered anew

    def start_command() -> subprocess.Popen[bytes]:
        with open(run.path("worker.log"), "ab") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    began, calibrating = time.perf_counter(), start_command()
    while run.status() != "running" and calibrating.poll() is None:
        time.sleep(0.05)
    imports = time.perf_counter() - began
    os.killpg(calibrating.pid, signal.SIGKILL)
    calibrating.wait()
    killed = 1
    while killed < most_kills and run.status() != "finished":
        process = start_command()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0.3, 1.1) * imports)
        os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
        assert process.wait() in (0, -signal.SIGKILL), f"the command failed with {process.returncode}"
        killed += process.returncode == -signal.SIGKILL
    assert start_command().wait() == 0
    shutil.copy(run.path("plan.json"), alone.path("plan.json"))
    finish(alone)
    tally.kills += killed
    tally.runs += 1
    tally.problems += [f"{name}: {problem}" for problem in differences(run, alone)]


# Damage


WAYS = ("missing", "truncated", "flipped", "emptied")


def cut_short(kit: Kit, name: str, task: str, rng: random.Random) -> tuple[Run, Run]:
    """A run that was killed after its third save and one left alone."""
    run = kit.run(name, task, rng)
    alone = Run(shutil.copytree(run.directory, kit.folder / f"{name}-alone"))
    worker = start(run)
    worker.listen(60, saves=3)
    while worker.saving:
        worker.listen(0.01)
    assert worker.kill()
    shutil.copy(run.path("plan.json"), alone.path("plan.json"))
    finish(alone)
    return run, alone


def tamper_and_compare(run: Run, alone: Run, way: str, rng: random.Random) -> str | None:
    """Damage one file of a copy's newest checkpoint, go on, and say what is wrong: whether it was not noticed, not told, or not mended."""
    copy = Run(shutil.copytree(run.directory, run.directory.with_name("tampered")))
    *_, before, newest = sealed(copy)
    victim = rng.choice(sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size))
    damage(victim, way, rng)
    finish(copy)
    happened = copy.history()
    told = [event.what for event in happened if isinstance(event, events.Adjusted)]
    last = [event for event in happened if isinstance(event, events.Started)][-1]
    problems = differences(copy, alone)
    if not any(
        what.startswith(f"Checkpoint {step_of(newest)} is damaged ({victim.name if victim.name != 'manifest.json' else ''}")
        for what in told
    ):
        problems.append(f"{way} {victim.name} was not told: {told}")
    if last.from_step != step_of(before):
        problems.append(f"{way} {victim.name}: went on from {last.from_step}")
    shutil.rmtree(copy.directory)
    return "; ".join(problems) or None


def sealed(run: Run) -> list[Path]:
    """Complete checkpoints, the newest last."""
    from peft_space.training import checkpoints

    return [folder for folder in checkpoints.in_order(run) if checkpoints.damage(folder) is None]


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.partition("-")[2])


def damage(path: Path, way: str, rng: random.Random) -> None:
    """Damage a file in one of `WAYS`."""
    content = path.read_bytes()
    match way:
        case "missing":
            path.unlink()
        case "truncated":
            path.write_bytes(content[: rng.randrange(1, len(content))] if len(content) > 1 else b"")
        case "flipped":
            at = rng.randrange(len(content))
            path.write_bytes(content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :])
        case "emptied":
            path.write_bytes(b"")


# A full disk


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: float) -> Iterator[Path]:
    """A file system of this size, mounted at `folder`. Raises PermissionError where that is not allowed."""
    folder.mkdir()
    size = f"size={int(megabytes * 1024)}k"
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", str(folder)], capture_output=True).returncode:
        raise PermissionError("a file system cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill_disk_and_compare(kit: Kit, name: str, task: str, rng: random.Random) -> tuple[str | None, str]:
    """Let the disk fill up in a save, make room, go on: what is wrong, if anything, and what the user was told."""
    made = kit.run(name, task, rng)
    with small_disk(kit.folder / f"{name}-disk", 16) as disk:
        run = Run(shutil.copytree(made.directory, disk / name))
        ballast = disk / "ballast"
        wanted, left = rng.randrange(1, 5), rng.choice((0, 4, 8, 16, 32, 64)) * 1024

        def fill(save: int) -> None:
            if save == wanted:
                ballast.write_bytes(bytes(max(0, shutil.disk_usage(disk).free - left)))

        worker = start(run, before_save=fill)
        status, last, problems = worker.wait(), run.history()[-1], []
        message = last.message if isinstance(last, events.Failed) else str(last)
        if status != 1 or "The disk is full. Free some space" not in message:
            problems.append(f"with {left} bytes left in save {wanted}: {last}")
        from peft_space.training import checkpoints

        if sealed(run) != checkpoints.in_order(run):
            problems.append(f"half a checkpoint was left: {checkpoints.in_order(run)}")
        ballast.unlink()
        finish(run)
        shutil.copy(run.path("plan.json"), made.path("plan.json"))
        finish(made)
        problems += differences(run, made)
    return "; ".join(problems) or None, message


# What is compared


def differences(run: Run, alone: Run) -> list[str]:
    """How a run that was interrupted differs from the one left alone, and what is wrong with its own events."""
    mine, its = _as_read(run), _as_read(alone)
    found = [f"{name}: {mine[name]} instead of {its[name]}"[:400] for name in mine if mine[name] != its[name]]
    return found + list(_disorder(run.history()))


def _as_read(run: Run) -> dict[str, Any]:
    """What a reader sees of a run, and its adapter; not what takes time, which differs."""
    happened = run.history()
    return {
        "steps": [(s.step, s.loss, s.learning_rate, s.grad_norm, s.tokens, s.metrics) for s in steps_of(happened)],
        "evaluations": [(e.step, e.loss, e.metrics) for e in evaluations_of(happened)],
        "checkpoints": sorted({e.step for e in happened if isinstance(e, events.Checkpointed)}),
        "told": [e.what for e in happened if isinstance(e, events.Adjusted) and not e.what.startswith("Checkpoint ")],
        "ends": [e.step for e in happened if isinstance(e, events.Finished)],
        "status": run.status(),
        "adapter": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(run.path("adapter").iterdir())
            if path.name != "README.md"  # tells how long it took
        },
    }


def _disorder(happened: list[events.Event]) -> Iterator[str]:
    """Events that do not follow each other as they should."""
    expected, attempt, saved, told = 0, 0, {0}, []
    for before, event in itertools.pairwise([happened[0], *happened]):
        if event.at < before.at:
            yield f"{event} is earlier than {before}"
        match event:
            case events.Started():
                attempt += 1
                if event.attempt != attempt or event.from_step not in saved:
                    yield f"{event}: attempt {attempt}, checkpoints {saved}"
                expected, told = event.from_step, []
            case events.Step():
                expected += 1
                if event.step != expected:
                    yield f"step {event.step} instead of {expected}"
            case events.Evaluated() if event.step != expected:
                yield f"evaluation of step {event.step} after step {expected}"
            case events.Checkpointed():
                saved.add(event.step)
            case events.Adjusted():
                if (event.what, event.why) in told:
                    yield f"told twice: {event.what}"
                told.append((event.what, event.why))
    if not isinstance(happened[-1], events.Finished):
        yield f"the last event is {happened[-1]}"
