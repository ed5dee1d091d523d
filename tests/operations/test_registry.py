"""An operation or option that is declared once appears on the command line, in the API and docs."""

import inspect
import json
import re
from pathlib import Path
from typing import Annotated, Literal

import generate_docs
import gradio as gr
import pytest
from gradio.mcp import GradioMCPServer
from pydantic import Field

from peft_space import operations
from peft_space.errors import UserError
from peft_space.operations import OPERATIONS, REGISTRY
from peft_space.operations.registry import (
    GROUPS,
    SURFACES,
    AnyRun,
    Json,
    Options,
    Progress,
    fields_of,
    make_options,
    operation,
    operations_on,
)
from peft_space.web import api
from peft_space.web.context import PageContext

PACKAGE = Path(operations.__file__).parents[1]
EVERYWHERE = {
    *("check", "recommend", "estimate", "dry_run", "rank_sweep", "layers", "show_rows", "parts"),
    *(
        "train",
        "import_adapter",
        "merge_adapters",
        "list",
        "status",
        "pause",
        "stop",
        "resume",
        "rename",
        "delete",
    ),
    *(
        "compare",
        "evaluate",
        "export",
        "serving",
        "spectrum",
        "reduce_rank",
        "model_card",
        "script",
    ),
    *("push", "backup", "restore", "vote_results"),
}
PROGRAMS_AND_PAGE = {"vote_pairs", "vote"} | {
    *("job_hardware", "submit_job", "follow_job", "cancel_job"),
}
ONLY_COMMANDS = {"job", "deploy_space", "smoke_test"}
INTERNAL = {"warm", "prefetch", "browse", "machine"}


def test_every_operation_is_on_every_surface_where_it_makes_sense():
    expected = (
        dict.fromkeys(EVERYWHERE, SURFACES)
        | dict.fromkeys(PROGRAMS_AND_PAGE, ("api", "page"))
        | dict.fromkeys(ONLY_COMMANDS, ("cli",))
        | dict.fromkeys(INTERNAL, ())
    )
    assert {name: one.surfaces for name, one in REGISTRY.items()} == expected


@pytest.mark.parametrize("declared", REGISTRY.values(), ids=lambda one: one.name)
def test_an_operation_documents_itself_and_says_where_it_is_missing(declared):
    assert re.fullmatch(r"[A-Z].*\.", declared.help)
    assert len(declared.help) <= 100
    assert declared.group in GROUPS
    assert set(declared.why_not) == set(SURFACES) - set(declared.surfaces)
    assert all(reason.endswith(".") for reason in declared.why_not.values())
    hidden = ("report", "zip", "owners")
    for one in declared.parameters:
        assert one.help or one.kind.role in hidden, one.name


@pytest.mark.parametrize(
    "declared", [one for one in REGISTRY.values() if not one.in_process], ids=lambda one: one.name
)
def test_what_a_worker_runs_takes_and_returns_json(declared):
    assert OPERATIONS[declared.function.__name__] is declared
    returned = inspect.signature(declared.function).return_annotation
    assert returned == Json


def test_the_page_calls_what_the_registry_says_that_it_offers():
    sources = [path.read_text() for path in (PACKAGE / "web").rglob("*.py")]
    called = {name for name in OPERATIONS if any(f'"{name}"' in source for source in sources)}
    worker_only = {one.function.__name__ for one in operations_on("page") if not one.in_process}
    assert worker_only <= called | {"make_run"}


class Volume(Options):
    """How loud."""

    level: int = Field(5, ge=1, le=11, title="Level")
    """The level of the sound."""

    tone: Literal["low", "high"] = Field("low", title="Tone")
    """The height of the sound."""


@pytest.fixture
def sing():
    """An operation that is declared for one test."""

    @operation(group="runs", in_process=True, text=lambda result, _: f"{result['song']}!")
    def sing_song(
        title: str,
        volume: Volume = Volume(),  # noqa: B008 - it is frozen
        verses: Annotated[int, Field(ge=1, le=9)] = 2,
        report: Progress = None,
    ) -> Json:
        """Sing a song about the run.

        Args:
            title: the title of the song
            verses: how many verses
        """
        return {"song": title * verses, "level": volume.level, "tone": volume.tone}

    yield sing_song
    del REGISTRY["sing_song"]


def test_a_new_operation_is_a_command(sing, run_command):
    status, out, _ = run_command("sing-song", "la", "--verses", "3", "--level", "7")
    assert (status, out) == (0, "lalala!\n")
    status, out, _ = run_command("sing-song", "la", "--tone", "high", "--json")
    assert json.loads(out) == {"song": "lala", "level": 5, "tone": "high"}
    status, _, err = run_command("sing-song", "la", "--level", "12")
    assert status == 2
    assert "volume level" in err
    assert "[operations.invalid_argument]" in err


def test_a_new_operation_is_an_endpoint_and_a_tool(sing):
    with gr.Blocks() as blocks:
        api.build(PageContext())
    endpoint = blocks.get_api_info()["named_endpoints"]["/sing_song"]
    assert endpoint["description"].startswith("Sing a song about the run.")
    shown = {one["parameter_name"]: one for one in endpoint["parameters"]}
    assert set(shown) == {"title", "volume", "verses"}
    assert shown["volume"]["type"]["properties"]["level"] == {"type": "integer"}
    server = GradioMCPServer(blocks)
    [handler] = [one for one in blocks.fns.values() if one.api_name == "sing_song"]
    description, about = server.get_fn_description(handler, "sing_song")
    assert description.startswith("Sing a song about the run.")
    schema, _ = server.get_input_schema("sing_song", about)
    assert set(schema["properties"]) == {"title", "volume", "verses"}
    described = schema["properties"]["volume"]["description"]
    assert "level (integer, ≥ 1, ≤ 11, default 5): The level of the sound" in described
    answer = handler.fn("do", {"level": 3}, 1, None)
    assert answer == {"song": "do", "level": 3, "tone": "low"}
    for wrong in ({"loudness": 3}, {"level": 99}):
        with pytest.raises(gr.Error):
            handler.fn("do", wrong, 1, None)


def test_a_new_operation_is_in_the_generated_docs(sing):
    assert "`peft-space sing-song TITLE`" in generate_docs.commands()
    assert "**/sing_song** — Sing a song about the run." in generate_docs.endpoints()
    assert "| `level` | integer, ≥ 1, ≤ 11 | `5` | The level" in generate_docs.endpoints()


def test_a_new_option_needs_one_field(run_command, own_run, monkeypatch):
    from peft_space.operations.export import ExportOptions

    class Extended(ExportOptions):
        """What to export, and in which format."""

        shiny: bool = Field(False, title="Shiny")
        """Whether the export shines."""

    seen = []

    @operation(group="export", name="export", in_process=True)
    def export(run: AnyRun, options: Extended = Extended()) -> Json:  # noqa: B008
        """Export the adapter."""
        seen.append(options)
        return {"path": run}

    try:
        assert run_command("export", own_run.directory, "--shiny")[0] == 0
        assert seen[-1].shiny
        with gr.Blocks() as blocks:
            api.build(PageContext())
        parameters = blocks.get_api_info()["named_endpoints"]["/export"]["parameters"]
        [options] = [one for one in parameters if one["parameter_name"] == "options"]
        assert "shiny" in options["type"]["properties"]
        assert "| `shiny` | true or false | `False` |" in generate_docs.endpoints()
    finally:
        REGISTRY["export"] = OPERATIONS["export"]


def test_settings_are_checked_the_same_from_a_dict_and_as_an_instance():
    assert make_options(Volume, {"level": 3}) == make_options(Volume, Volume(level=3))
    for wrong in ({"level": 0}, {"level": "loud"}, {"noise": 1}):
        with pytest.raises(UserError) as error:
            make_options(Volume, wrong, "volume")
        assert error.value.code == "operations.invalid_argument"
        assert next(iter(wrong)) in str(error.value)


def test_the_limits_of_sampling_are_those_of_the_evaluation():
    from peft_space.evaluation.compare import Sampling

    for field in fields_of(operations.evaluation.Sampling):
        for limit in ("minimum", "maximum"):
            Sampling(**{field.name: field.limits[limit]})
    assert {one.name for one in fields_of(operations.evaluation.Sampling)} == set(
        Sampling.__dataclass_fields__
    )
