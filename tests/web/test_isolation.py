"""A stranger on a Space cannot reach another visitor's run.

The tests try ids, paths, addresses, Gradio's routes, private handlers and MCP. The victim's data
contain a mark that no answer may contain. The app connects to no address that a stranger names.
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
from peft_space.web.api_arguments import endpoint_parameters
from peft_space.web.auth import SecurityMiddleware
from tests.fixtures.app_process import App
from tests.web.test_api import ended
from tests.web.test_mcp import with_tools

MARK = "zebrafinch-7431"
STRANGER = "a stranger's own secret, long enough"
REQUIRED_ARGUMENTS = {
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
        parameter.name: REQUIRED_ARGUMENTS[parameter.name]
        for parameter in endpoint_parameters(operation)
        if parameter.required and parameter.name != "run"
    }
    for operation in operations_on("api")
    if any(parameter.kind.role in ("run", "trained_run") for parameter in operation.parameters)
}
"""Every endpoint that takes a run, with its other required arguments."""


class Victim:
    """A visitor with a finished run whose data, name and secret a stranger must not learn."""

    def __init__(self, app: App, rows: Path):
        client = Client(app.url, verbose=False, analytics_enabled=False)
        started = client.predict(data=handle_file(rows), recipe={"max_steps": 1}, api_name="/train")
        self.run, self.secret = started["run"], started["owner"]
        assert ended(client, self.run, self.secret)["status"] == "finished"
        self.exported = client.predict(self.run, self.secret, api_name="/export")
        client.close()
        [metadata] = app.home.glob(f"runs/*/{self.run}/run.json")
        self.folder = metadata.parent
        metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"name": MARK}))

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of each file of the run."""
        return {
            str(path): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self.folder.rglob("*")
            if path.is_file()
        }


class Listener:
    """A server that nothing may connect to."""

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
    """Check that a test changes no file of the victim's run."""
    before = victim.digests()
    yield
    assert victim.digests() == before


def answer_to(attempt) -> str:
    """Return the answer to an attempt, or its error."""
    try:
        return str(attempt())
    except Exception as error:  # noqa: BLE001 - the tests search every error
        return f"{error} {error.__cause__}"


def owners(victim: Victim) -> list[str]:
    """Secrets that a stranger could try: none, their own, and guesses."""
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


@pytest.mark.slow
def test_no_endpoint_opens_a_run_to_another_secret(victim, stranger, untouched):
    ask = functools.partial(stranger.predict, run=victim.run)
    attempts = 0
    for endpoint, more in OF_A_RUN.items():
        for owner in owners(victim):
            attempt = functools.partial(ask, owner=owner, api_name=f"/{endpoint}", **more)
            answer = answer_to(attempt)
            codes = ("[runs.unknown]", "[web.unknown_owner]")
            assert any(code in answer for code in codes), (endpoint, owner, answer)
            assert MARK not in answer
            attempts += 1
    for owner in owners(victim):
        answer = answer_to(functools.partial(stranger.predict, owner=owner, api_name="/list"))
        assert MARK not in answer
        attempts += 1
    assert attempts == 8 * (len(OF_A_RUN) + 1) >= 8 * 20


@pytest.mark.slow
def test_no_id_leads_out_of_an_owners_folder(victim, stranger, untouched):
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
            ask = functools.partial(stranger.predict, run=run_id, owner=STRANGER)
            answer = answer_to(functools.partial(ask, api_name=f"/{endpoint}"))
            assert "[runs.unknown]" in answer, answer
            assert MARK not in answer


def raw_get(url: str, path: str) -> bytes:
    """Request a path exactly as it is; HTTP clients would normalize it."""
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as connection:
        request = f"GET {path.replace(' ', '%20')} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        connection.sendall(request.encode())
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_gradio_routes_serve_no_file_and_visit_no_address(space, victim, untouched):
    listener = Listener()
    port = listener.url.rpartition(":")[2]
    rows = victim.folder / "data" / "train.jsonl"
    adapter = victim.folder / "adapter" / "adapter_model.safetensors"
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
        f"/gradio_api/file=http://localhost:{port}",
        f"/gradio_api/file=http://[::ffff:127.0.0.1]:{port}",
    ]
    for path in [shape.format(file) for shape in shapes for file in files] + addresses:
        answer = raw_get(space.url, path)
        for secret in (MARK.encode(), b"root:", b"PEFT_SPACE_HOME"):
            assert secret not in answer, path
        is_page = b"<!doctype html>" in answer[:4000].lower()
        assert is_page or not answer.startswith(b"HTTP/1.1 200"), (path, answer[:200])
    routes = ("deep_link?session_hash=a", "stream/a/b/1/playlist.m3u8", "run-history/records")
    for route in (*routes, "app_id/../token"):
        assert MARK not in httpx.get(f"{space.url}/gradio_api/{route}").text
    assert listener.visits == 0


@pytest.mark.slow
def test_only_uploaded_files_are_accepted_as_data(space, victim, stranger, untouched):
    listener = Listener()
    meta = {"_type": "gradio.FileData"}
    rows = str(victim.folder / "data" / "train.jsonl")
    sources: list[Any] = [
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
        {"path": rows, "meta": meta, "size": -1},
    ]
    for data in sources:
        for endpoint in ("check", "recommend", "train"):
            url = f"{space.url}/gradio_api/call"
            event = httpx.post(f"{url}/v2/{endpoint}", json={"data": data}, timeout=60)
            answer = event.text
            if event.status_code == 200:
                event_id = event.json()["event_id"]
                answer += httpx.get(f"{url}/{endpoint}/{event_id}", timeout=60).text
            assert MARK not in answer, (endpoint, data, answer)
            assert "event: complete" not in answer, (endpoint, data, answer)
    assert listener.visits == 0


def _call_private_handler(url: str, number: int, inputs: list[Any], picked: str) -> str:
    """Call a handler of the page by its number, as its JavaScript does; return the answer."""
    session, queue = uuid.uuid4().hex, f"{url}/gradio_api/queue"
    event = {"data": inputs, "fn_index": number, "session_hash": session}
    event["event_data"] = {"value": picked, "index": [0, 0]}
    response = httpx.post(f"{queue}/join", json=event, timeout=30)
    if response.status_code != 200:
        return response.text
    answer, params = "", {"session_hash": session}
    with httpx.stream("GET", f"{queue}/data", params=params, timeout=20) as stream:
        for line in stream.iter_lines():
            answer += line
            if "process_completed" in line or "close_stream" in line:
                break
    return answer


@pytest.mark.slow
def test_no_private_handler_of_the_page_opens_a_run_to_another_secret(space, victim, untouched):
    config = httpx.get(f"{space.url}/config").json()
    components = {component["id"]: component for component in config["components"]}

    def value(number: int) -> Any:
        component = components[number]
        if component["type"] in ("textbox", "dropdown", "radio", "state"):
            return victim.run
        return STRANGER if component["type"] == "browserstate" else component["props"].get("value")

    def has_visitor(handler: dict[str, Any]) -> bool:
        return any(components[number]["type"] == "browserstate" for number in handler["inputs"])

    handlers = [
        handler
        for handler in config["dependencies"]
        if has_visitor(handler) and handler["backend_fn"]
    ]
    assert len(handlers) > 30

    def attempt(handler: dict[str, Any]) -> None:
        inputs = [value(number) for number in handler["inputs"]]
        answer = answer_to(
            lambda: _call_private_handler(space.url, handler["id"], inputs, victim.run)
        )
        for secret in (MARK, victim.folder.parent.name):
            assert secret not in answer, (handler["targets"], answer[:500])

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(attempt, handlers))


@pytest.mark.parametrize(
    ("origin", "has_cookies"),
    [
        ("http://space.example", True),
        (None, True),
        ("https://evil.example", False),
        ("null", False),
        ("http://space.example.evil.example", False),
    ],
)
def test_only_pages_of_this_site_can_send_cookies(origin, has_cookies):
    received = []

    async def page(scope, receive, send):
        received.append(Headers(scope=scope).get("cookie"))
        await PlainTextResponse("")(scope, receive, send)

    headers = {"Host": "space.example", "Cookie": "session=signed-in"}
    if origin:
        headers["Origin"] = origin
    TestClient(SecurityMiddleware(page)).get("/config", headers=headers)
    assert received == ["session=signed-in" if has_cookies else None]


@pytest.mark.slow
def test_no_mcp_tool_opens_a_run_to_another_secret(space, victim, untouched):
    listener = Listener()
    rows = str(victim.folder / "data" / "train.jsonl")
    sources = (listener.url, f"data:text/plain;base64,{'QQ' * 8}", rows)
    stolen_run = {"run": victim.run, "owner": STRANGER}
    calls = [(endpoint, stolen_run | more) for endpoint, more in OF_A_RUN.items()]
    calls += [("check", {"data": data}) for data in sources]

    async def call_all(session):
        answers = []
        for tool, arguments in calls:
            answer = await session.call_tool(tool, arguments)
            assert answer.isError, (tool, arguments)
            answers.append(answer.content[0].text)
        return answers

    answers = with_tools(space.url, call_all)
    assert listener.visits == 0
    assert len(answers) == len(OF_A_RUN) + 3
    assert MARK not in " ".join(answers)
