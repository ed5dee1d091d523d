"""What a visitor types for the base model is searched on the Hub, which may not answer."""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs, urlparse

import pytest
from huggingface_hub import constants

from peft_space.web.panels import models


@pytest.fixture
def hub(monkeypatch):
    """A server that finds what contains the query, and the queries that it got."""
    queries = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            queries.append(parse_qs(urlparse(self.path).query))
            [query] = queries[-1]["search"]
            found = [{"id": f"maria/{query}-{n}"} for n in range(2)]
            body = json.dumps(found if query != "broken" else {"error": "no"}).encode()
            self.send_response(200 if query != "broken" else 500)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield queries
    server.shutdown()
    server.server_close()


def test_models_of_every_task_are_found(hub):
    assert models.search_hub("bert") == ["maria/bert-0", "maria/bert-1"]
    assert "pipeline_tag" not in hub[0]


def test_an_answer_that_is_an_error_finds_nothing(hub):
    assert models.search_hub("broken") == []


def test_a_hub_that_is_silent_or_offline_finds_nothing_in_time(monkeypatch):
    assert models.search_hub("bert") == []  # the tests are offline
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(models, "SEARCH_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, never answers
        port = silent.getsockname()[1]
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        assert models.search_hub("bert") == []
