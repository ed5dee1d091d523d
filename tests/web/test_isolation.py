"""A stranger on a Space cannot reach another visitor's run.

They try ids, paths, addresses, Gradio's own routes, private handlers and MCP. The victim's data
carry a mark that no answer may contain, and the app visits no address that a stranger names.
"""

import functools
import hashlib
import json
import socket
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client, handle_file
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from peft_space.operations.registry import operations_on
from peft_space.web.api import endpoint_parameters
from peft_space.web.middleware import SecurityMiddleware
from tests.fixtures.app_process import App
from tests.web.test_api import ended
from tests.web.test_mcp import with_tools

MARK = "zebrafinch-7431"
STRANGER = "a stranger's own secret, long enough"
NEEDED = {
    "prompts": ["Hi"],
    "pair": "1",
    "choice": "left",
    "repo": "a/b",
    "flavor": "t4-small",
    "timeout": "1h",
    "name": "x",
}
"""Arguments without a default, by name."""
OF_A_RUN: dict[str, dict[str, Any]] = {
    operation.name: {
        one.name: NEEDED[one.name]
        for one in endpoint_parameters(operation)
        if one.required and one.name != "run"
    }
    for operation in operations_on("api")
    if any(one.kind.role in ("run", "trained_run") for one in operation.parameters)
}
"""Every endpoint about a run, and what it needs besides."""


class Victim:
    """A visitor with a finished run whose data, name and secret a stranger must not learn."""

    def __init__(self, app: App, rows: Path):
        client = Client(app.url, verbose=False, analytics_enabled=False)
        started = client.predict(data=handle_file(rows), recipe={"max_steps": 1}, api_name="/train")
        self.run, self.secret = started["run"], started["owner"]
        assert ended(client, self.run, self.secret)["status"] == "finished"
        self.exported = client.predict(self.run, self.secret, api_name="/export")
        client.close()
        [told] = app.home.glob(f"runs/*/{self.run}/run.json")
        self.folder = told.parent
        told.write_text(json.dumps(json.loads(told.read_text()) | {"name": MARK}))

    def state(self) -> dict[str, str]:
        return {
            str(path): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self.folder.rglob("*")
            if path.is_file()
        }


class Listener:
    """A server that nobody should come to."""

    def __init__(self) -> None:
        self.socket, self.visits = socket.create_server(("127.0.0.1", 0)), 0
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self._count, daemon=True).start()

    def _count(self) -> None:
        while True:
            try:
                visitor, _ = self.socket.accept()
            except OSError:
                return
            self.visits += 1
            visitor.close()


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    running = App(tmp_path_factory.mktemp("isolation"), SYSTEM="spaces", HF_HUB_OFFLINE="1")
    running.start()
    yield running
    running.kill()


@pytest.fixture(scope="module")
def victim(space, tmp_path_factory):
    rows = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows.write_text(
        "".join(f'{{"prompt": "Say {n}", "completion": "{MARK} {n}"}}\n' for n in range(20))
    )
    return Victim(space, rows)


@pytest.fixture(scope="module")
def stranger(space):
    client = Client(space.url, verbose=False, analytics_enabled=False)
    yield client
    client.close()


@pytest.fixture
def untouched(victim):
    """What a test does changes nothing of the victim's."""
    before = victim.state()
    yield
    assert victim.state() == before


def answer_to(attempt) -> str:
    """All that an attempt is told."""
    try:
        return str(attempt())
    except Exception as error:  # noqa: BLE001 - whatever it is told is looked through
        return f"{error} {error.__cause__}"


def owners(victim: Victim) -> list[str]:
    """Secrets that a stranger could try: none, their own, and guesses of the victim's."""
    return [
        "",
        STRANGER,
        "local",
        victim.folder.parent.name,
        victim.run,
        victim.secret[:-1],
        victim.secret.upper(),
        f"../{victim.folder.parent.name}",
    ]


def test_no_endpoint_opens_a_run_to_another_secret(victim, stranger, untouched):
    tried = 0
    for endpoint, more in OF_A_RUN.items():
        for owner in owners(victim):
            said = answer_to(
                functools.partial(
                    stranger.predict, run=victim.run, owner=owner, api_name=f"/{endpoint}", **more
                )
            )
            assert "You have no run" in said or "`owner`" in said, (
                endpoint,
                owner,
                said,
            )
            assert MARK not in said
            tried += 1
    for owner in owners(victim):
        assert MARK not in answer_to(lambda: stranger.predict(owner=owner, api_name="/list"))  # noqa: B023
        tried += 1
    assert tried == 8 * (len(OF_A_RUN) + 1) >= 8 * 20


def test_no_id_leads_out_of_ones_own_folder(victim, stranger, untouched):
    theirs = victim.folder.parent.name
    ids = [
        f"../{theirs}/{victim.run}",
        f"..%2F{theirs}%2F{victim.run}",
        str(victim.folder),
        f"{theirs}/{victim.run}",
        f"./{victim.run}",
        f"{victim.run}/",
        f"{victim.run}\0",
        f"{victim.run}\n",
        victim.run.upper(),
        "*",
        ".",
        "..",
        "",
        f"....//{theirs}//{victim.run}",
        f"..\\{theirs}\\{victim.run}",
        f"/proc/self/cwd/{victim.run}",
    ]
    for run_id in ids:
        for endpoint in ("status", "export"):
            said = answer_to(
                functools.partial(
                    stranger.predict, run=run_id, owner=STRANGER, api_name=f"/{endpoint}"
                )
            )
            assert "You have no run" in said, said
            assert MARK not in said


def test_gradios_own_routes_hand_out_no_file_and_visit_no_address(space, victim, untouched):
    listener = Listener()
    rows, adapter = (
        victim.folder / "data" / "train.jsonl",
        victim.folder / "adapter" / "adapter_model.safetensors",
    )
    assert adapter.is_file()
    files = [
        str(rows),
        str(adapter),
        str(victim.folder / "events.jsonl"),
        str(victim.folder / "run.json"),
        "/proc/self/environ",
        "/etc/passwd",
    ]
    shapes = [
        "/gradio_api/file={}",
        "/gradio_api/file=/{}",
        "/gradio_api/file=.{}",
        "/gradio_api/file=/tmp/gradio/../..{}",
        "/gradio_api/file/{}",
        "/file={}",
        "/gradio_api/file=%2e%2e{}",
        "/static/..{}",
        "/assets/../../../../../../..{}",
        "/svelte/../../../../..{}",
        "/gradio_api/file=file://{}",
        "/gradio_api/custom_component/x/client/component/..{}",
        "/gradio_api/file=C:{}",
        "/gradio_api/file=\\\\localhost{}",
    ]
    addresses = [
        f"/gradio_api/file={listener.url}",
        f"/gradio_api/proxy={listener.url}",
        f"/file={listener.url}/x",
        f"/gradio_api/file/{listener.url}",
        f"/gradio_api/proxy={listener.url.replace('http', 'https')}",
        f"/gradio_api/file={listener.url.upper()}",
        f"/gradio_api/file=%20{listener.url}",
        f"/gradio_api/file=http://localhost:{listener.url.rpartition(':')[2]}",
        f"/gradio_api/file=http://[::ffff:127.0.0.1]:{listener.url.rpartition(':')[2]}",
    ]
    for path in [shape.format(file) for shape in shapes for file in files] + addresses:
        with socket.create_connection(
            ("127.0.0.1", int(space.url.rpartition(":")[2]))
        ) as raw:  # no client tidies the path up
            raw.sendall(
                f"GET {path.replace(' ', '%20')} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
            )
            answered = b"".join(iter(lambda: raw.recv(65536), b""))
        assert MARK.encode() not in answered, path
        assert b"root:" not in answered, path
        assert b"PEFT_SPACE_HOME" not in answered, path
        assert (
            not answered.startswith(b"HTTP/1.1 200")
            or b"<!doctype html>" in answered[:4000].lower()
        ), (path, answered[:200])
    for route in (
        "deep_link?session_hash=a",
        "stream/a/b/1/playlist.m3u8",
        "run-history/records",
        "app_id/../token",
    ):
        assert MARK not in httpx.get(f"{space.url}/gradio_api/{route}").text
    assert listener.visits == 0


def test_no_file_or_address_is_taken_as_data_but_what_was_uploaded(
    space, victim, stranger, untouched
):
    listener = Listener()
    meta = {"_type": "gradio.FileData"}
    rows = str(victim.folder / "data" / "train.jsonl")
    made_up: list[Any] = [
        rows,
        {"path": rows, "meta": meta},
        {"path": rows, "url": f"{space.url}/gradio_api/file={rows}", "meta": meta},
        f"file://{rows}",
        listener.url,
        {"path": listener.url, "meta": meta},
        {"path": "x", "url": listener.url, "meta": meta},
        victim.exported,
        {"path": victim.exported, "meta": meta},
        [rows],
        {"path": f"{rows}/../train.jsonl", "meta": meta, "is_stream": True},
        {"path": rows, "meta": {"_type": "gradio.FileData"}, "size": -1},
    ]
    for data in made_up:
        for endpoint in ("check", "recommend", "train"):
            event = httpx.post(
                f"{space.url}/gradio_api/call/v2/{endpoint}", json={"data": data}, timeout=60
            )
            said = event.text
            if event.status_code == 200:
                said += httpx.get(
                    f"{space.url}/gradio_api/call/{endpoint}/{event.json()['event_id']}", timeout=60
                ).text
            assert MARK not in said, (endpoint, data, said)
            assert "event: complete" not in said, (endpoint, data, said)
    assert listener.visits == 0


def _of_private_handler(url: str, number: int, inputs: list[Any]) -> str:
    session = uuid.uuid4().hex
    joined = httpx.post(
        f"{url}/gradio_api/queue/join",
        json={"data": inputs, "fn_index": number, "session_hash": session},
        timeout=30,
    )
    if joined.status_code != 200:
        return joined.text
    told = ""
    with httpx.stream(
        "GET", f"{url}/gradio_api/queue/data", params={"session_hash": session}, timeout=20
    ) as stream:
        for line in stream.iter_lines():
            told += line
            if "process_completed" in line or "close_stream" in line:
                break
    return told


def test_no_private_handler_of_the_page_opens_a_run_to_another_secret(space, victim, untouched):
    config = httpx.get(f"{space.url}/config").json()
    kinds = {component["id"]: component for component in config["components"]}

    def value(number: int) -> Any:
        component = kinds[number]
        if component["props"].get("elem_id") == "run":
            return victim.run
        return STRANGER if component["type"] == "browserstate" else component["props"].get("value")

    handlers = [
        one
        for one in config["dependencies"]
        if any(kinds[number]["props"].get("elem_id") == "run" for number in one["inputs"])
    ]
    assert len(handlers) > 30

    def attempt(handler: dict[str, Any]) -> None:
        told = answer_to(
            lambda: _of_private_handler(
                space.url, handler["id"], [value(number) for number in handler["inputs"]]
            )
        )
        assert MARK not in told, (handler["targets"], told[:500])
        assert victim.folder.parent.name not in told, (handler["targets"], told[:500])

    with ThreadPoolExecutor(4) as several:
        list(several.map(attempt, handlers))


@pytest.mark.parametrize(
    ("origin", "kept"),
    [
        ("http://space.example", True),
        (None, True),
        ("https://evil.example", False),
        ("null", False),
        ("http://space.example.evil.example", False),
    ],
)
def test_cookies_count_only_for_pages_of_this_site(origin, kept):
    seen = []

    async def page(scope, receive, send):
        seen.append(Headers(scope=scope).get("cookie"))
        await PlainTextResponse("")(scope, receive, send)

    sent = {"Host": "space.example", "Cookie": "session=signed-in"} | (
        {"Origin": origin} if origin else {}
    )
    TestClient(SecurityMiddleware(page)).get("/config", headers=sent)
    assert seen == ["session=signed-in" if kept else None]


def test_no_tool_of_an_agent_opens_a_run_to_another_secret(space, victim, untouched):
    async def try_all(session):
        said = []
        for endpoint, more in OF_A_RUN.items():
            answer = await session.call_tool(
                endpoint, {"run": victim.run, "owner": STRANGER, **more}
            )
            assert answer.isError, endpoint
            said.append(answer.content[0].text)
        listener = Listener()
        for data in (
            listener.url,
            f"data:text/plain;base64,{'QQ' * 8}",
            str(victim.folder / "data" / "train.jsonl"),
        ):
            answer = await session.call_tool("check", {"data": data})
            assert answer.isError, data
            said.append(answer.content[0].text)
        assert listener.visits == 0
        return said

    said = with_tools(space.url, try_all)
    assert len(said) == len(OF_A_RUN) + 3
    assert MARK not in " ".join(said)
