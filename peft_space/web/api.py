"""The API for programs and agents: every operation of the registry as an endpoint.

A run opens only for the secret or account of its owner. Files open only if Gradio received them.
"""

import functools
import inspect
import os
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import gradio as gr
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict, is_typeddict

from peft_space import settings
from peft_space.compat.gradio import (
    current_blocks,
    explain_rejected_files,
    served_folder,
    uploaded_files,
)
from peft_space.data.dataset import DEMO_DATA
from peft_space.data.readers.hub import is_address
from peft_space.errors import UserError
from peft_space.hub.jobs import start_watching
from peft_space.operations.registry import (
    Json,
    Operation,
    Parameter,
    describe_fault,
    fields_of,
    make_options,
    operations_on,
)
from peft_space.operations.runs import slices_of
from peft_space.recipe import Recipe
from peft_space.runs import quotas
from peft_space.runs.run import Run
from peft_space.runs.store import open_run
from peft_space.runtime import zerogpu
from peft_space.runtime.supervisor import start_training
from peft_space.runtime.worker_pool import Workers
from peft_space.web.auth import new_owner, owners_of, request_token, token_of
from peft_space.web.components import show_errors
from peft_space.web.context import PageContext

Upload = gr.FileData | str
Uploads = gr.FileData | str | list[gr.FileData | str]
_NOT_UPLOADED = (
    'This file was not uploaded. Pass handle_file("rows.jsonl") of gradio_client, '
    'or "demo" for the sample data.'
)
_TEXT_NAME = re.compile(r"[\w -]{1,80}\.(jsonl|json|csv|tsv|txt|conll)")
_ADAPTER_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_CONCURRENCY = 2
"""Calls of an endpoint at a time, so that one evaluation does not delay another caller's. There
are no more worker processes."""
_OWNER = "the secret that /train returned"
_MAX_PROMPTS, _MAX_ADAPTERS = 100, 8


def build(page: PageContext) -> None:
    """Add the endpoints. To be called inside `gr.Blocks`."""
    blocks = current_blocks()
    explain_rejected_files(blocks, _NOT_UPLOADED)
    files = Files(uploaded_files(blocks))
    callers = {one.name: _caller(one, page.workers, files) for one in operations_on("api")}
    for name, endpoint in (callers | {"upload_text": _upload_text(files)}).items():
        handler = show_errors(_checked(endpoint))
        gr.api(handler, api_name=name, concurrency_limit=_CONCURRENCY)


# Files and runs


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
        """The path or paths of the caller's data, or their address on the Hub."""
        return [self._path(one) for one in data] if isinstance(data, list) else self._path(data)

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
        if path not in self._uploads:
            raise UserError("web.file_not_uploaded", _NOT_UPLOADED)
        return path


def open_trained_run(run: str, owner: str) -> str:
    """The folder of an owner's run.

    Raises:
        UserError: there is no such run, or it has no adapter.
    """
    opened = open_run(owners_of(owner), run)
    _ = opened.adapter
    return str(opened.directory)


# Endpoints


@dataclass
class _Call:
    """One call: its files, whose it is, and what its arguments opened."""

    files: Files
    owner: str
    signed_in: gr.OAuthToken | None
    run: Run | None = None
    token: str | None = None


_SIGNED_IN = Parameter("signed_in", None, None, "", gr.OAuthToken | None)
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
    "token": _TEXT,
    "job_token": _TEXT,
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


def _caller(operation: Operation, workers: Workers, files: Files) -> Callable[..., Any]:
    """The function of an endpoint; its signature and docstring describe it to Gradio."""

    def endpoint(owner: str = "", signed_in: gr.OAuthToken | None = None, **values: Any) -> Any:
        creates = any(one.kind.role == "new_run" for one in operation.parameters)
        call = _Call(files, new_owner(owner) if creates else owner, signed_in)
        # settings first: whether they are valid does not depend on the run
        ordered = sorted(operation.parameters_on("api"), key=lambda one: one.kind.model is None)
        arguments = {one.name: _resolve(one, values.get(one.name), call) for one in ordered}
        if any(one.kind.role == "zip" for one in operation.parameters):
            arguments["as_zip"] = True
        if operation.in_process:
            result = operation(**arguments)
        else:
            result = workers.call(operation.function.__name__, **arguments)
        return _finish(operation, result, call, arguments, workers)

    writes_file = any(one.kind.role == "output" for one in operation.parameters)
    returned = typing.get_type_hints(operation.function)["return"]
    shown = [*endpoint_parameters(operation), _SIGNED_IN]
    about = [f"    {one.name}: {_describe(one)}" for one in shown[:-1]]
    summary = (inspect.getdoc(operation.function) or "").split("\n\nArgs:")[0]
    summary = summary.split("\n\nReturns:")[0].split("\n\nRaises:")[0]
    endpoint.__name__ = operation.name  # Gradio names the tools of agents by it
    endpoint.__doc__ = "\n".join([summary, "", "Args:", *about] if about else [summary])
    endpoint.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [_signature_parameter(one) for one in shown],
        return_annotation=gr.FileData if writes_file else returned,
    )
    return endpoint


def _signature_parameter(parameter: Parameter) -> inspect.Parameter:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    default, hint = parameter.default, parameter.hint
    return inspect.Parameter(parameter.name, kind, default=default, annotation=hint)


def _describe(parameter: Parameter) -> str:
    about = parameter.help or parameter.name
    return f"{about.rstrip('.')}: {parameter.describe_type()}" if parameter.kind.model else about


def _resolve(parameter: Parameter, value: Any, call: _Call) -> Any:
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
        case "token" | "job_token":
            signed_in = call.signed_in if parameter.kind.role == "token" else None
            call.token = token_of(value, signed_in)
            return call.token
        case "json" | "text":
            return value or None
    return value


def _options(parameter: Parameter, value: Any) -> Json:
    assert parameter.kind.model is not None
    options = make_options(parameter.kind.model, value, parameter.name)
    return options.model_dump(exclude_unset=parameter.kind.model is not Recipe)


def _finish(
    operation: Operation, result: Any, call: _Call, arguments: Json, workers: Workers
) -> Any:
    """The answer to a result: files to download, ids in place of folders, and what follows."""
    roles = {one.kind.role: one.name for one in operation.parameters}
    if "output" in roles:
        return gr.FileData(path=result["path"], orig_name=os.path.basename(result["path"]))
    if "new_run" in roles:
        run = Run(arguments[roles["new_run"]])
        if operation.trains and not arguments["no_train"] and not settings.on_zerogpu():
            start_training(run)
        return {"run": run.directory.name, "owner": call.owner, "status": run.status()}
    if isinstance(result, list):
        return [line | {"run": Path(line["run"]).name} for line in result]
    if call.run and "run" in result:
        result = result | {"run": call.run.directory.name}
    if operation.trains and call.run:
        return result | _resume(call.run, arguments, workers)
    if operation.watches_job and call.run:
        if call.run.status() == "on_job":
            start_watching(call.run, call.token)
        return {"run": call.run.directory.name, "status": call.run.status()} | result
    return {"more": False} | result if operation.resumable else result


def _resume(run: Run, arguments: Json, workers: Workers) -> Json:
    """Start a training that ended early, or on ZeroGPU train it for one slice."""
    if (status := run.status()) in ("queued", "running", "finished"):
        raise UserError(
            "web.nothing_to_resume",
            f"The run {run.name!r} is {status}: there is nothing to resume. "
            "Call /status to see its progress.",
        )
    quotas.check_open_runs(run.directory.parent.name)
    halve_max_length, ignore_mismatch = arguments["halve_max_length"], arguments["ignore_mismatch"]
    if not settings.on_zerogpu():
        start_training(run, halve_max_length, ignore_mismatch)
        return {"status": run.status(), "more": False}
    zerogpu.start(run, halve_max_length)
    limit = arguments["slice_seconds"] or settings.slice_seconds()
    more = zerogpu.run_slice(run, workers, limit, ignore_mismatch)
    return {"status": run.status(), "more": more, **slices_of(run)}


def _upload_text(files: Files) -> Callable[..., Any]:
    def upload_text(text: str, name: str = "rows.jsonl") -> Json:
        """Upload data as text, if no file can be uploaded.

        The answer has `data`, which other endpoints accept as `data` or `held_out`.

        Args:
            text: the content of the file
            name: its name; the ending (.jsonl, .json, .csv, .tsv, .txt, .conll) gives the format
        """
        if not _TEXT_NAME.fullmatch(name):
            raise UserError(
                "web.invalid_file_name",
                f"{name!r} cannot be the name of a text. Use letters and digits, and end it in "
                ".jsonl, .json, .csv, .tsv, .txt or .conll.",
            )
        limit = settings.max_file_megabytes()
        if len(text.encode()) > limit * 1e6:
            message = f"The text is larger than {limit:g} MB. Upload less of it."
            raise UserError("web.text_too_large", message)
        return {"data": files.keep(text, name)}

    return upload_text


def _checked(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """The endpoint with its arguments validated, for the account of the client's `oauth_token`."""
    signature = inspect.signature(endpoint)
    declared = dict(signature.parameters)
    takes_token = _SIGNED_IN.name in declared
    declared[_SIGNED_IN.name] = _signature_parameter(_SIGNED_IN)  # Gradio passes it if declared
    types = {
        name: TypeAdapter(dict if is_typeddict(one.annotation) else one.annotation)
        for name, one in declared.items()
        if name != _SIGNED_IN.name
    }

    @functools.wraps(endpoint)
    def checked(*values: Any) -> Any:
        arguments = dict(zip(declared, values, strict=True))
        for name, adapter in types.items():
            try:
                arguments[name] = adapter.validate_python(arguments[name])
            except ValidationError as error:
                message = f"{describe_fault(name, error)} docs/api.md lists the arguments."
                raise UserError("web.invalid_argument", message) from None
        signed_in = arguments[_SIGNED_IN.name]
        if not takes_token:
            del arguments[_SIGNED_IN.name]
        previous = request_token.set(token_of(None, signed_in))
        try:
            return endpoint(**arguments)
        finally:
            request_token.reset(previous)

    parameters = list(declared.values())
    checked.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    checked.__annotations__ = {name: one.annotation for name, one in declared.items()}
    checked.__annotations__["return"] = signature.return_annotation
    return checked
