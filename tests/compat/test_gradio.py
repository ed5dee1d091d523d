"""Gradio stores only the settings of components that a session has changed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr
from gradio.routes import App
from starlette.testclient import TestClient

from peft_space.compat import gradio as gradio_compat
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


def test_a_session_stores_only_the_settings_of_components_it_used():
    app = App.create_app(build(), app_kwargs={"lifespan": gradio_compat.lean_sessions})
    with started(app) as client:
        assert "[]" in asked(client, "v2/runs", owner="ab" * 8)
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
