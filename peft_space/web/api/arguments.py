"""What callers give: its types, the files that they sent, the runs that are theirs."""

import functools
import inspect
import os
from collections.abc import Callable
from typing import Annotated, Any

import gradio as gr
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic checks no other before Python 3.12

from peft_space.compat.gradio import served_folder
from peft_space.data.dataset import DEMO_DATA
from peft_space.data.readers.hub import is_address
from peft_space.errors import UserError
from peft_space.operations import Json
from peft_space.runs.store import open_run
from peft_space.web.auth import owners_of, request_token, token_of

Upload = gr.FileData | str
Uploads = gr.FileData | str | list[gr.FileData | str]
AS_IT_IS: Json = {}
NOT_UPLOADED = 'This is no uploaded file. Give handle_file("rows.jsonl") of gradio_client, or the word "demo" for the sample data.'


@with_config(ConfigDict(extra="forbid"))
class Sampling(TypedDict, total=False):
    """How both columns draw their tokens. The same choices and limits as on the page."""

    max_new_tokens: Annotated[int, Field(ge=1, le=4096)]
    temperature: Annotated[float, Field(ge=0, le=5)]
    top_p: Annotated[float, Field(gt=0, le=1)]
    seed: Annotated[int, Field(ge=0)]


@with_config(ConfigDict(extra="ignore"))
class Turn(TypedDict):
    """A turn of a conversation, as an answer of /compare has it."""

    prompt: str
    base: str
    adapter: str


class Files:
    """The files that Gradio received from callers, by the paths that it gave them."""

    def __init__(self, uploads: set[str]):
        """`uploads`: Gradio's own set of them; it grows."""
        self._uploads = uploads

    def keep(self, text: str, name: str) -> str:
        """The path of a new file with this text, which counts as one that was uploaded."""
        path = os.path.join(served_folder(), name)
        with open(path, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        self._uploads.add(path)
        return path

    def paths(self, data: Any) -> str | list[str]:
        """What the caller's data are to a worker."""
        return [self._path(one) for one in data] if isinstance(data, list) else self._path(data)

    def one(self, data: Upload | None) -> str | None:
        """The same for data that may be missing."""
        return self._path(data) if data else None

    def _path(self, data: Upload) -> str:
        # a path that the caller wrote opens nothing, whatever it comes in
        if data == DEMO_DATA or is_address(data):
            return str(data)
        path = data if isinstance(data, str) else data.path
        if path not in self._uploads:
            raise UserError("todo", NOT_UPLOADED)
        return path


def open_trained_run(run: str, owner: str) -> str:
    """The folder of a run that has an adapter; where it has none this says so without starting a worker."""
    opened = open_run(owners_of(owner), run)
    _ = opened.adapter
    return str(opened.directory)


def checked(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """The endpoint, which tells in words when an argument is not of the type that it declares, and takes the `oauth_token` of gradio_client."""
    signature = inspect.signature(endpoint)
    declared = dict(signature.parameters)
    told_token = _SIGNED_IN.name in declared
    declared[_SIGNED_IN.name] = (
        _SIGNED_IN  # Gradio gives it, not the caller, and to no endpoint that does not ask for it
    )
    kinds = {
        name: TypeAdapter(parameter.annotation)
        for name, parameter in declared.items()
        if name != _SIGNED_IN.name
    }

    @functools.wraps(endpoint)
    def checked(*given: Any) -> Any:
        arguments = dict(zip(declared, given, strict=True))
        for name, kind in kinds.items():
            try:
                arguments[name] = kind.validate_python(arguments[name])
            except ValidationError as error:
                raise UserError("todo", _fault(name, error)) from None
        signed_in = arguments[_SIGNED_IN.name] if told_token else arguments.pop(_SIGNED_IN.name)
        before = request_token.set(token_of(None, signed_in))
        try:
            return endpoint(**arguments)
        finally:
            request_token.reset(before)

    checked.__signature__ = signature.replace(parameters=list(declared.values()))  # type: ignore[attr-defined]
    checked.__annotations__ = endpoint.__annotations__ | {_SIGNED_IN.name: _SIGNED_IN.annotation}
    return checked


_SIGNED_IN = inspect.Parameter(
    "signed_in",
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    default=None,
    annotation=gr.OAuthToken | None,
)


def _fault(name: str, error: ValidationError) -> str:
    # the value is not repeated: it may be a token
    [fault, *_] = error.errors()
    inside = [
        str(part) for part in fault["loc"] if part not in ("FileData", "str")
    ]  # those name a branch, not a place
    return f"{' '.join([name, *inside])}: {fault['msg'][0].lower()}{fault['msg'][1:]}. docs/api.md says what each endpoint takes."
