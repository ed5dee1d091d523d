"""Arguments of the API's endpoints: how they are shown, and what they open.

A run opens only for the secret or account of its owner. Files open only if Gradio received them.
"""

import functools
import os
import re
from dataclasses import dataclass, replace
from typing import Annotated, Any

import gradio as gr
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from peft_space.compat.gradio import served_folder
from peft_space.data.dataset import DEMO_DATA
from peft_space.data.readers.hub import is_address
from peft_space.data.table import split_part
from peft_space.errors import UserError
from peft_space.operations.registry import Json, Operation, Parameter, fields_of, make_options
from peft_space.recipe import Recipe
from peft_space.runs import quotas
from peft_space.runs.run import Run
from peft_space.runs.store import open_run
from peft_space.web.auth import owners_of, token_of

Upload = gr.FileData | str
Uploads = gr.FileData | str | list[gr.FileData | str]
NOT_UPLOADED = (
    'This file was not uploaded. Pass handle_file("rows.jsonl") of gradio_client, '
    'or "demo" for the sample data.'
)
_ADAPTER_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_OWNER = "the secret that /train returned"
_MAX_PROMPTS, _MAX_ADAPTERS = 100, 8


class Files:
    """The files that Gradio received from callers."""

    def __init__(self, uploads: set[str]):
        """Wrap Gradio's own set of paths, which grows."""
        self._uploads = uploads

    def keep(self, text: str, name: str) -> str:
        """Write a text to a new file, which then counts as uploaded, and return its path."""
        path = os.path.join(served_folder(), name)
        with open(path, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        self._uploads.add(path)
        return path

    def paths(self, data: Any) -> str | list[str]:
        """The path or paths of the caller's data, or their address on the Hub.

        A text that begins with # names the part of the file before it.
        """
        if not isinstance(data, list):
            return self._path(data)
        paths: list[str] = []
        for one in data:
            if paths and isinstance(one, str) and one.startswith("#"):
                paths[-1] = self._path(paths[-1] + one)
            else:
                paths.append(self._path(one))
        return paths

    def adapter(self, adapter: Upload) -> str:
        """The path of an uploaded adapter, or its name on the Hub."""
        is_name = isinstance(adapter, str) and _ADAPTER_NAME.fullmatch(adapter)
        if is_name and not os.path.exists(str(adapter)):
            return str(adapter)
        return self._path(adapter)

    def _path(self, data: Upload) -> str:
        # a path that the caller made up opens nothing
        if data == DEMO_DATA or is_address(data):
            return str(data)
        path = data if isinstance(data, str) else data.path
        if path not in self._uploads and str(split_part(path)[0]) not in self._uploads:
            raise UserError("web.file_not_uploaded", NOT_UPLOADED)
        return path


def open_trained_run(run: str, owner: str) -> str:
    """The folder of an owner's run.

    Raises:
        UserError: there is no such run, or it has no adapter.
    """
    opened = open_run(owners_of(owner), run)
    _ = opened.adapter
    return str(opened.directory)


@dataclass
class Call:
    """One call: its files, whose it is, and what its arguments opened."""

    files: Files
    owner: str
    signed_in: gr.OAuthToken | None
    run: Run | None = None
    token: str | None = None


SIGNED_IN = Parameter("signed_in", None, None, "", gr.OAuthToken | None)
"""Passed by Gradio, not by the caller."""
_TEXT: Json = {"hint": str, "default": ""}
_OBJECT: Json = {"hint": dict[str, Any], "default": {}}
_AS_SHOWN: dict[str, Json] = {
    "run": {"help": "the id that /train returned"},
    "trained_run": {"help": "the id that /train returned"},
    "data": {"hint": Uploads},
    "held_out": {"hint": Upload | None},
    "adapter": {"hint": Upload},
    "options": _OBJECT,
    "json": _OBJECT,
    "adapters": {"hint": Annotated[list[str], Field(max_length=_MAX_ADAPTERS)], "default": []},
    "pictures": {"hint": Annotated[list[Uploads], Field(max_length=_MAX_PROMPTS)], "default": []},
    "token": _TEXT,
    "text": _TEXT,
}
"""How the API shows parameters, by role; the others are shown as they are declared."""


def endpoint_parameters(operation: Operation) -> list[Parameter]:
    """The arguments of an endpoint, in the order in which callers may leave their names out."""
    shown = []
    for one in operation.parameters_on("api"):
        if one.kind.role in ("new_run", "output", "owners"):
            continue
        changes = dict(_AS_SHOWN.get(one.kind.role, {}))
        if one.kind.role == "prompts":
            least = int(one.required)
            limits = Field(min_length=least, max_length=_MAX_PROMPTS)
            changes = {"hint": Annotated[list[str], limits], "default": one.default or []}
            if one.required:
                del changes["default"]
        if one.kind.model:
            changes["hint"] = _schema(one.kind.model)
        shown.append(replace(one, **changes))
    roles = {one.kind.role for one in operation.parameters}
    required = [one for one in shown if one.required]
    optional = [one for one in shown if not one.required]
    owner = Parameter("owner", str, "", _OWNER, str)
    if roles & {"run", "trained_run"}:
        return [*required, owner, *optional]
    return [*required, *optional, *([owner] if roles & {"new_run", "owners"} else [])]


@functools.cache
def _schema(model: type[BaseModel]) -> Any:
    """The settings as a type that Gradio describes to clients and agents, field by field."""
    fields = {
        one.name: one.type if one.default is not None else one.type | None
        for one in fields_of(model)
    }
    return TypedDict(model.__name__, fields, total=False)  # type: ignore[operator]


def resolve(parameter: Parameter, value: Any, call: Call) -> Any:
    """The value for the operation. A caller's name of a run or file opens only theirs."""
    match parameter.kind.role:
        case "run" | "trained_run":
            call.run = open_run(owners_of(call.owner), value)
            if parameter.kind.role == "trained_run":
                _ = call.run.adapter
            return str(call.run.directory)
        case "new_run":
            folder = quotas.new_run(owners_of(call.owner)[0])
            return str(folder)
        case "owners":
            return owners_of(call.owner)
        case "data":
            return call.files.paths(value)
        case "pictures":
            return [call.files.paths(one) for one in value] or None
        case "held_out":
            return call.files.paths(value) if value else None
        case "adapter":
            return call.files.adapter(value)
        case "adapters":
            return [
                name if name.startswith("checkpoint-") else open_trained_run(name, call.owner)
                for name in value
            ]
        case "options":
            return _options(parameter, value)
        case "output":
            return (
                os.path.join(served_folder(), parameter.default)
                if not parameter.required
                else served_folder()
            )
        case "repo":
            return value.strip()
        case "token":
            call.token = token_of(value, call.signed_in)
            return call.token
        case "json" | "text":
            return value or None
    return value


def _options(parameter: Parameter, value: Any) -> Json:
    assert parameter.kind.model is not None
    options = make_options(parameter.kind.model, value, parameter.name)
    return options.model_dump(exclude_unset=parameter.kind.model is not Recipe)
