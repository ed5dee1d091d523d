"""The API for programs and agents: every operation of the registry as an endpoint.

A run opens only for the secret or account of its owner. Files open only if Gradio received them.
"""

import functools
import inspect
import os
import re
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from pydantic import TypeAdapter, ValidationError
from typing_extensions import is_typeddict

from peft_space import settings
from peft_space.compat.gradio import (
    current_blocks,
    explain_rejected_files,
    uploaded_files,
)
from peft_space.errors import UserError
from peft_space.hub.jobs import start_watching
from peft_space.operations.registry import (
    Json,
    Operation,
    Parameter,
    describe_fault,
    operations_on,
)
from peft_space.operations.runs import slices_of
from peft_space.runs import quotas
from peft_space.runs.run import Run
from peft_space.runtime import zerogpu
from peft_space.runtime.supervisor import start_training
from peft_space.runtime.worker_pool import Workers
from peft_space.web.api_arguments import (
    NOT_UPLOADED,
    SIGNED_IN,
    Call,
    Files,
    endpoint_parameters,
    resolve,
)
from peft_space.web.auth import new_owner, request_token, token_of
from peft_space.web.components import show_errors
from peft_space.web.context import PageContext

_TEXT_NAME = re.compile(r"[\w -]{1,80}\.(jsonl|json|csv|tsv|txt|conll)")
_CONCURRENCY = 2
"""Calls of an endpoint at a time, so that one evaluation does not delay another caller's. There
are no more worker processes."""


def build(page: PageContext) -> None:
    """Add the endpoints. To be called inside `gr.Blocks`."""
    blocks = current_blocks()
    explain_rejected_files(blocks, NOT_UPLOADED)
    files = Files(uploaded_files(blocks))
    callers = {one.name: _caller(one, page.workers, files) for one in operations_on("api")}
    for name, endpoint in (callers | {"upload_text": _upload_text(files)}).items():
        handler = show_errors(_checked(endpoint))
        gr.api(handler, api_name=name, concurrency_limit=_CONCURRENCY)


def _caller(operation: Operation, workers: Workers, files: Files) -> Callable[..., Any]:
    """The function of an endpoint; its signature and docstring describe it to Gradio."""

    def endpoint(owner: str = "", signed_in: gr.OAuthToken | None = None, **values: Any) -> Any:
        creates = any(one.kind.role == "new_run" for one in operation.parameters)
        call = Call(files, new_owner(owner) if creates else owner, signed_in)
        # settings first: whether they are valid does not depend on the run
        ordered = sorted(operation.parameters_on("api"), key=lambda one: one.kind.model is None)
        arguments = {one.name: resolve(one, values.get(one.name), call) for one in ordered}
        if any(one.kind.role == "zip" for one in operation.parameters):
            arguments["as_zip"] = True
        if operation.in_process:
            result = operation(**arguments)
        else:
            result = workers.call(operation.function.__name__, **arguments)
        return _finish(operation, result, call, arguments, workers)

    writes_file = any(one.kind.role == "output" for one in operation.parameters)
    returned = typing.get_type_hints(operation.function)["return"]
    shown = [*endpoint_parameters(operation), SIGNED_IN]
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


def _finish(
    operation: Operation, result: Any, call: Call, arguments: Json, workers: Workers
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
    takes_token = SIGNED_IN.name in declared
    declared[SIGNED_IN.name] = _signature_parameter(SIGNED_IN)  # Gradio passes it if declared
    types = {
        name: TypeAdapter(dict if is_typeddict(one.annotation) else one.annotation)
        for name, one in declared.items()
        if name != SIGNED_IN.name
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
        signed_in = arguments[SIGNED_IN.name]
        if not takes_token:
            del arguments[SIGNED_IN.name]
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
