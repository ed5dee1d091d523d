"""Lets fifty visitors of a Space upload, check and poll at once while one of them trains.

`python -m benchmarks.load [--seconds 600]`. Each visitor waits 3 to 5 s between actions. Every
value that a visitor uploads has the visitor's tag; the script searches every answer for tags, and
another visitor's tag is a fault. It prints the faults, the tagged values, and the median and 95th
percentile of each action. It also prints the share of seconds in which a training made progress,
and the memory of the app with its workers after each minute. Visitors, app and training share the
machine's cores.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import secrets
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

VISITORS, ROWS = 50, 60
LONG_RECIPE = {"num_epochs": 1000, "eval_steps": 2000, "save_steps": 500}
"""A training that takes longer than the visitors stay."""
TAG = re.compile(r"tag([0-9a-f]{8})x")


class Load:
    """The actions of all visitors and their results."""

    def __init__(self, url: str, ends: float):
        self.url, self.ends = url, ends
        self.seconds: dict[str, list[float]] = {"upload": [], "check": [], "poll": []}
        self.faults: list[str] = []
        self.tagged = 0
        self.training: list[bool] = []
        """For each second, True if a training made progress."""
        self.memory: list[int] = []
        """MB after each minute."""

    async def call(self, client: httpx.AsyncClient, endpoint: str, **arguments: Any) -> Any:
        url = f"{self.url}/gradio_api/call/v2/{endpoint}"
        joined = await client.post(url, json=arguments)
        joined.raise_for_status()
        event = joined.json()["event_id"]
        answer = await client.get(f"{self.url}/gradio_api/call/{endpoint}/{event}")
        kind, data = re.findall(r"event: (\w+)\ndata: (.*)\n", answer.text)[-1]
        if kind != "complete":
            raise RuntimeError(f"{endpoint}: {data[:300]}")
        return json.loads(data)[0]

    def look_through(self, answer: Any, own: str) -> None:
        rows = answer.get("examples", []) if isinstance(answer, dict) else []
        tags = TAG.findall(
            json.dumps(answer)
            + "\n".join("".join(text for text, _ in row["tokens"]) for row in rows)
        )
        self.tagged += len(tags)
        if others := [tag for tag in tags if tag != own]:
            self.faults.append(f"an answer to {own} has {len(others)} values of {others[0]}")

    async def timed(self, what: str, action: Any) -> Any:
        began = time.perf_counter()
        answer = await action
        self.seconds[what].append(time.perf_counter() - began)
        return answer

    async def visitor(self, number: int, trains: bool) -> None:
        """One visitor, from arrival to the end."""
        own, draw = f"{number:02d}{secrets.token_hex(3)}", random.Random(number)
        run: dict[str, Any] = {}
        await asyncio.sleep(draw.uniform(0, 5))
        # the server closes idle connections; a browser would send the request again
        async with httpx.AsyncClient(
            timeout=120, limits=httpx.Limits(keepalive_expiry=2)
        ) as client:
            data: Any = None
            actions = 0
            while time.time() < self.ends:
                try:
                    if data is None or actions % 4 == 0:  # another file
                        rows = "".join(
                            json.dumps(
                                {
                                    "prompt": f"tag{own}x What is {actions} {n}?",
                                    "completion": f"tag{own}x It is {n}.",
                                }
                            )
                            + "\n"
                            for n in range(ROWS)
                        )
                        files = {"files": (f"tag{own}x.jsonl", rows.encode())}
                        sent = await self.timed(
                            "upload", client.post(f"{self.url}/gradio_api/upload", files=files)
                        )
                        data = {"path": sent.json()[0], "meta": {"_type": "gradio.FileData"}}
                    elif actions % 4 == 1:
                        self.look_through(
                            await self.timed("check", self.call(client, "check", data=data)),
                            own,
                        )
                    else:
                        if trains and (
                            not run
                            or (await self.call(client, "status", **run))["status"]
                            not in ("queued", "running")
                        ):
                            started = await self.call(
                                client, "train", data=data, recipe=LONG_RECIPE, owner=own * 4
                            )
                            run = {"run": started["run"], "owner": started["owner"]}
                        answer = await self.timed(
                            "poll",
                            self.call(client, "status", **run)
                            if run
                            else self.call(client, "list", owner=own * 4),
                        )
                        self.look_through(answer, own)
                except (httpx.HTTPError, RuntimeError, ValueError, IndexError) as error:
                    self.faults.append(f"{type(error).__name__}: {str(error)[:200]}")
                actions += 1
                await asyncio.sleep(draw.uniform(3, 5))
            if run:
                await self.call(client, "stop", **run)

    async def all(self) -> None:
        await asyncio.gather(
            *(self.visitor(number, trains=number == 0) for number in range(VISITORS))
        )


def memory_mb(app: psutil.Process) -> float:
    """Memory of the app and its workers, with shared pages counted once.

    Trainings have separate sessions and are not included.
    """
    total = 0.0
    for process in [app, *app.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(process.pid) == os.getsid(app.pid):
                total += process.memory_full_info().pss
    return total / 1e6


async def watch(load: Load, app: psutil.Process, home: Path) -> None:
    """Record each second if trainings made progress, and each minute the memory."""
    seen, began = 0, time.time()
    while time.time() < load.ends:
        steps = sum(
            events.read_text().count('"event":"Step"')
            for events in home.glob("runs/*/*/events.jsonl")
        )
        load.training.append(steps > seen)
        seen = steps
        if time.time() - began >= 60 * (1 + len(load.memory)):
            load.memory.append(round(memory_mb(app)))
        await asyncio.sleep(1)


async def work(load: Load, app: psutil.Process, home: Path) -> None:
    await asyncio.gather(load.all(), watch(load, app, home))


def main() -> None:
    from tests.fixtures.app_process import App

    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=600)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        app = App(Path(home, "home"), SYSTEM="spaces", HF_HUB_OFFLINE="1")
        app.start()
        try:
            load = Load(app.url, time.time() + arguments.seconds)
            assert app.process
            asyncio.run(work(load, psutil.Process(app.process.pid), app.home))
        finally:
            app.kill()
    result: dict[str, Any] = {
        "visitors": VISITORS,
        "seconds": arguments.seconds,
        "faults": len(load.faults),
        "tagged_values": load.tagged,
    }
    for what, seconds in load.seconds.items():
        result[what] = {
            "count": len(seconds),
            "median": round(statistics.median(seconds), 3),
            "p95": round(statistics.quantiles(seconds, n=20)[-1], 3),
        }
    result |= {
        "share_of_time_training": round(statistics.mean(load.training), 2),
        "memory_mb_by_minute": load.memory,
    }
    print(json.dumps(result | {"first_faults": load.faults[:5]}))


if __name__ == "__main__":
    main()
