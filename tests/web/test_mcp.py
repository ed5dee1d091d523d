"""An agent can use every endpoint as a tool, with the official MCP client."""

import ast
import asyncio
import io
import urllib.request
import zipfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client

from tests.fixtures.app_process import App
from tests.web.test_api import ENDPOINTS


def with_tools(url: str, use) -> Any:
    """Return what `use` returns for a session with the app's tools."""

    async def talk():
        async with (
            streamablehttp_client(f"{url}/gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            return await use(session)

    with ThreadPoolExecutor(
        1
    ) as apart:  # a browser test before it may have left its own loop in this thread
        return apart.submit(asyncio.run, talk()).result()


async def told(session: ClientSession, tool: str, **arguments: Any) -> Any:
    """The answer of a tool, which Gradio writes as a Python literal."""
    answer = await session.call_tool(tool, arguments)
    assert not answer.isError, answer.content[0].text
    text = answer.content[0].text
    return ast.literal_eval(text) if text.startswith("{") else text


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    running = App(tmp_path_factory.mktemp("agents"), SYSTEM="spaces")
    running.start()
    yield running
    running.kill()


@pytest.mark.slow
def test_an_agent_trains_the_demo_and_exports_the_adapter(space):
    async def journey(session):
        tools = (await session.list_tools()).tools
        assert {tool.name for tool in tools} == set(ENDPOINTS)
        assert all(tool.description for tool in tools)
        assert (await told(session, "check", data="demo"))["num_problems"] == 0
        started = await told(session, "train", data="demo", recipe={"max_steps": 2})
        mine = {"run": started["run"], "owner": started["owner"]}
        while (now := await told(session, "status", **mine))["status"] in ("queued", "running"):
            await asyncio.sleep(0.5)
        assert (now["status"], len(now["losses"])) == ("finished", 2)
        compared = await told(
            session, "compare", **mine, prompts=["Hello."], sampling={"max_new_tokens": 4}
        )
        assert compared["fairness"]["fair"]
        return await told(session, "export", **mine)

    address = with_tools(space.url, journey)
    with zipfile.ZipFile(io.BytesIO(urllib.request.urlopen(address).read())) as archive:
        assert {"adapter/adapter_model.safetensors", "adapter/proof.json"} <= set(
            archive.namelist()
        )


@pytest.mark.slow
def test_an_agent_uploads_text_and_sees_error_messages(space):
    rows = "".join(f'{{"prompt": "What is {n}?", "completion": "It is {n}."}}\n' for n in range(20))

    async def bring(session):
        brought = await told(session, "upload_text", text=rows)
        found = await told(session, "check", data=brought["data"])
        refused = await session.call_tool("upload_text", {"text": rows, "name": "../rows.jsonl"})
        unknown = await session.call_tool("status", {"run": "0" * 24, "owner": "x" * 20})
        return found, refused, unknown

    found, refused, unknown = with_tools(space.url, bring)
    assert (found["rows"], found["num_problems"]) == (20, 0)
    assert refused.isError
    assert "[web.invalid_file_name]" in refused.content[0].text
    assert unknown.isError
    assert "You have no run" in unknown.content[0].text
