"""Gradio stores only the settings of components that a session has changed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr
import gradio.oauth
import pytest
from gradio.routes import App
from starlette.middleware import Middleware
from starlette.routing import Match
from starlette.testclient import TestClient

from peft_space.compat import gradio as gradio_compat
from peft_space.compat.gradio import (
    CLOSED_ROUTES,
    current_blocks,
    explain_rejected_files,
    hide_login_endpoint,
    served_folder,
    session_of_request,
    upload_folder,
    uploaded_files,
)
from peft_space.web.app import build


@contextmanager
def started(app: App) -> Iterator[TestClient]:
    with TestClient(app) as client:
        client.get("/gradio_api/startup-events")  # Gradio works on calls from here on
        yield client
        app.get_blocks()._queue.close()


def asked(client: TestClient, path: str, session: str | None = None, **given) -> str:
    called = client.post(
        f"/gradio_api/call/{path}", json=given | ({"session_hash": session} if session else {})
    )
    told = client.get(f"/gradio_api/call/{path.removeprefix('v2/')}/{called.json()['event_id']}")
    assert "event: complete" in told.text, told.text
    return told.text


def sessions_of(app: App) -> list[tuple[str, Any]]:
    return list(app.state_holder.session_data.items())


@pytest.mark.slow
def test_a_session_stores_only_the_settings_of_components_it_used():
    app = App.create_app(build(), app_kwargs={"lifespan": gradio_compat.lean_sessions})
    with started(app) as client:
        assert "[]" in asked(client, "v2/list", owner="ab" * 8)
    ((_, session),) = sessions_of(app)
    assert len(session.config_values) == 2, "what was asked, and the answer"
    assert len(session.blocks_config.blocks) > 100, "the page itself is known to the session"


def test_a_change_by_a_handler_is_stored_for_its_session_only():
    with gr.Blocks() as blocks:
        count, box = gr.State(0), gr.Number(0)
        gr.Button().click(
            lambda n: (n + 1, gr.Number(n + 1, minimum=n)), count, [count, box], api_name="more"
        )
    app = App.create_app(blocks, app_kwargs={"lifespan": gradio_compat.lean_sessions})
    with started(app) as client:
        for session, times in (("first", 3), ("second", 1)):
            for _ in range(times):
                asked(client, "more", session, data=[])
    kept = {
        name: [
            props["minimum"]
            for config in session.components
            if "minimum" in (props := config["props"])
        ]
        for name, session in sessions_of(app)
    }
    assert kept == {"first": [2], "second": [0]}


@pytest.fixture(autouse=True)
def own_uploads(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))


@contextmanager
def running(blocks: gr.Blocks, **app_options) -> Iterator[TestClient]:
    blocks.has_launched, blocks.max_file_size = True, None  # as `launch` does
    blocks.blocked_paths, blocks.allowed_paths = [], []
    app = App.create_app(blocks, app_kwargs=app_options)
    with TestClient(app) as client:
        client.get("/gradio_api/startup-events")  # Gradio handles calls from here on
        yield client
        app.get_blocks()._queue.close()


def call(client: TestClient, name: str, *data) -> str:
    event = client.post(f"/gradio_api/call/{name}", json={"data": list(data)}).json()["event_id"]
    return client.get(f"/gradio_api/call/{name}/{event}").text


def test_the_page_under_construction_is_the_outermost_one():
    with gr.Blocks() as blocks, gr.Row():
        assert current_blocks() is blocks
    with pytest.raises(AssertionError):
        current_blocks()


def test_an_uploaded_file_is_in_the_live_set_of_uploads():
    with gr.Blocks() as blocks:
        files = uploaded_files(blocks)
    assert not files
    with running(blocks) as client:
        client.post("/gradio_api/upload", files={"files": ("rows.csv", b"a,b\n")})
    assert [os.path.basename(path) for path in files] == ["rows.csv"]
    assert all(path.startswith(str(upload_folder())) for path in files)


def test_a_served_folder_is_new_each_time_and_its_files_are_not_copied():
    first, second = served_folder(), served_folder()
    assert first != second
    path = os.path.join(first, "votes.csv")
    with open(path, "w") as file:
        file.write("a")
    with gr.Blocks() as blocks:
        gr.Button().click(lambda: path, None, gr.File(), api_name="file")
    with running(blocks) as client:
        assert path in call(client, "file")


def test_a_file_that_was_never_uploaded_is_rejected_with_our_message(tmp_path):
    path = tmp_path / "secret.txt"
    path.write_text("secret")
    with gr.Blocks() as blocks:
        explain_rejected_files(blocks, "Upload it first.")
        gr.Button().click(lambda file: file, gr.File(), gr.Textbox(), api_name="read")
    with running(blocks) as client:
        answer = call(client, "read", {"path": str(path), "meta": {"_type": "gradio.FileData"}})
    assert "event: error" in answer
    assert "Upload it first." in answer


def test_a_handler_sees_the_cookie_session_of_its_request():
    assert session_of_request() == {}
    seen = []
    with gr.Blocks() as blocks:
        gr.Button().click(lambda: seen.append(session_of_request()), api_name="look")
    with running(blocks, middleware=[Middleware(SignedIn)]) as client:
        call(client, "look")
    assert seen == [{"oauth_info": "maria"}]


class SignedIn:
    """Middleware that puts an account into the session, as signing in does."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        await self.app(scope | {"session": {"oauth_info": "maria"}}, receive, send)


def test_the_login_button_s_endpoint_is_hidden(monkeypatch):
    monkeypatch.setenv("SYSTEM", "spaces")
    monkeypatch.setenv("SPACE_ID", "maria/space")
    for name in ("OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES", "OPENID_PROVIDER_URL"):
        monkeypatch.setattr(gradio.oauth, name, "http://localhost")
    with gr.Blocks() as blocks:
        gr.LoginButton()
    names = {handler.api_name for handler in blocks.fns.values()}
    assert "_check_login_status" in names
    hide_login_endpoint(blocks)
    assert "/_check_login_status" not in blocks.get_api_info()["named_endpoints"]


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=https://example.com/a.png",
        "/gradio_api/proxy=https://example.com/a",
        "/gradio_api/deep_link",
        "/gradio_api/custom_component/a/client/component/b",
        "/gradio_api/stream/a/b/c/playlist.m3u8",
    ],
)
@pytest.mark.sample(1)
def test_the_closed_routes_exist_in_gradio(path):
    assert CLOSED_ROUTES.search(path)
    with gr.Blocks() as blocks:
        pass
    app = App.create_app(blocks)
    assert is_served(app, path)
    assert not is_served(app, "/gradio_api/no-such-route/x")


def is_served(app: App, path: str) -> bool:
    request = {"type": "http", "method": "GET", "path": path}
    return any(route.matches(request)[0] == Match.FULL for route in app.routes)


@pytest.mark.parametrize(
    "path", ["/gradio_api/file=/tmp/gradio/a.zip", "/config", "/gradio_api/queue/join"]
)
def test_the_page_s_own_routes_stay_open(path):
    assert not CLOSED_ROUTES.search(path)
