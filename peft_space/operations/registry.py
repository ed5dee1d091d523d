"""Declares operations: `@operation` registers a function for the command line and the API."""

import functools
import inspect
import re
import time
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import PydanticUndefined

from peft_space.errors import UserError
from peft_space.recipe import Recipe, make_recipe
from peft_space.runs.events import OnProgress

Json = dict[str, Any]
Report = Callable[[Json], None]
"""Receives progress: `share` and `what`, or what an operation streams, such as growing answers."""

Surface = Literal["cli", "api", "page"]
"""Where an operation is offered. The API includes the tools of agents (MCP)."""
SURFACES: tuple[Surface, ...] = ("cli", "api", "page")
GROUPS = ("data", "planning", "runs", "evaluation", "export", "hub", "jobs", "spaces")
"""The groups of operations, in the order in which the documentation lists them."""

_SECONDS_BETWEEN = 0.5
"""Until unchanged progress is reported again."""


class Options(BaseModel):
    """Settings of an operation. A field declares its range, default, title and help once."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def make_options(model: type[BaseModel], values: Any, name: str = "options") -> Any:
    """Validate settings.

    Args:
        values: a dict of the fields that differ from their defaults, an instance, or None.
        name: what the message calls the settings.

    Raises:
        UserError: a field is unknown or its value is not allowed.
    """
    if isinstance(values, model):
        return values
    if model is Recipe:
        return make_recipe({} if values is None else values)
    try:
        return model.model_validate({} if values is None else values)
    except ValidationError as error:
        raise UserError("operations.invalid_argument", describe_fault(name, error)) from None


def describe_fault(name: str, error: ValidationError) -> str:
    """The first fault of an argument, in one sentence. The value is left out: it may be a token."""
    fault = error.errors()[0]
    # pydantic also names the branches of a union, which are not places in the value
    inside = [str(part) for part in fault["loc"] if part not in ("FileData", "str")]
    return f"{' '.join([name, *inside])}: {fault['msg'][0].lower()}{fault['msg'][1:]}."


# Parameters


@dataclass(frozen=True)
class Kind:
    """How surfaces obtain a parameter: `cli/main.py` and `web/api.py` have a resolver per role."""

    role: str
    help: str = ""
    metavar: str | None = None
    only: Surface | None = None
    model: type[BaseModel] | None = None


AnyRun = Annotated[str, Kind("run", "the run", "RUN_DIR")]
TrainedRun = Annotated[str, Kind("trained_run", "a run that has an adapter", "RUN_DIR")]
NewRun = Annotated[str, Kind("new_run", "the folder of the new run", "RUN_DIR")]
DataSource = Annotated[
    str | list[str],
    Kind(
        "data",
        "a data file, several files of one dataset, a dataset on the Hub as "
        "hf://datasets/OWNER/NAME@REVISION?config=C&split=S, or demo",
        "DATA",
    ),
]
HeldOut = Annotated[
    str | list[str] | None,
    Kind("held_out", "rows to score on; without it, a share of the data is held out", "DATA"),
]
ColumnMapping = Annotated[
    Json | None,
    Kind(
        "json",
        'how to read the columns and what to fix, as JSON: {"schema": "prompt_completion", '
        '"columns": {"prompt": "q", "completion": "a"}, "fixes": ["deduplicate"], '
        '"left_out": ["label"]}; '
        "without it the app detects the columns, and check prints the result",
        "JSON",
    ),
]
RecipeChoices = Annotated[
    Json | None,
    Kind("options", "the recipe's fields that differ from their defaults", model=Recipe),
]
Adapter = Annotated[
    str, Kind("adapter", "an adapter: a .zip file, or its name on the Hub", "ADAPTER")
]
Prompts = Annotated[list[str], Kind("prompts", "what to ask", "TEXT")]
Pictures = Annotated[
    list[str | list[str]] | None,
    Kind(
        "pictures",
        "pictures for the prompts: one each, one for all, or several for one prompt, which may say "
        "<image> in their places; after earlier turns they belong to the first question",
        "FILE",
    ),
]
OwnPrompts = Annotated[list[str] | None, Kind("prompts", "what to ask", "TEXT")]
OtherAdapters = Annotated[
    list[str] | None,
    Kind("adapters", "also answer with checkpoint-N, or with another run on the base model", "RUN"),
]
OutputDir = Annotated[str, Kind("output", "the new folder", "DIR")]
OutputFile = Annotated[str, Kind("output", "the new file", "FILE")]
AsZip = Annotated[bool, Kind("zip")]
Repo = Annotated[str, Kind("repo", "the repository, OWNER/NAME", "OWNER/NAME")]
HubToken = Annotated[
    str | None,
    Kind("token", "a Hub token, used once and not stored; without it, the client's oauth_token"),
]
TextFile = Annotated[str | None, Kind("text", "a text", "FILE")]
LocalFile = Annotated[str | None, Kind("local_file", "", "FILE", only="cli")]
Owners = Annotated[list[str], Kind("owners")]
Progress = Annotated[Report | None, Kind("report")]


@dataclass(frozen=True)
class Parameter:
    """One argument of an operation, or one field of its settings."""

    name: str
    type: Any
    """Without `Annotated` and without None."""
    default: Any
    help: str
    hint: Any = None
    """The whole annotation."""
    kind: Kind = field(default=Kind(""))
    limits: dict[str, Any] = field(default_factory=dict)

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty

    @property
    def words(self) -> tuple[Any, ...]:
        """The values allowed, where the type lists them."""
        parts = [part for part in _union(self.type) if typing.get_origin(part) is Literal]
        return tuple(word for part in parts for word in typing.get_args(part))

    @property
    def is_list(self) -> bool:
        return any(typing.get_origin(part) is list for part in _union(self.type))

    @property
    def item_words(self) -> tuple[Any, ...]:
        """The values that the items of a list may have, where its type lists them."""
        items = typing.get_args(self.type)[0] if typing.get_origin(self.type) is list else None
        return typing.get_args(items) if typing.get_origin(items) is Literal else ()

    def describe_type(self) -> str:
        """The type and range as text: `integer, 1 to 4096`."""
        if self.kind.model and len(self.kind.model.model_fields) > _MAX_LISTED:
            return f"object of any of {', '.join(self.kind.model.model_fields)}"
        if self.kind.model:
            return f"object of {'; '.join(one.describe() for one in fields_of(self.kind.model))}"
        if self.kind.role in _FILES:
            return _FILES[self.kind.role]
        words = " or ".join(f'"{word}"' for word in self.words)
        names = [] if words and not self.is_list else [_type_name(self.type)]
        bounds = [
            f"{sign} {self.limits[key]:.10g}" for key, sign in _SIGNS.items() if key in self.limits
        ]
        return ", ".join(filter(None, [words, *names, *bounds]))

    def describe(self) -> str:
        """The name, type, default and help in one line."""
        default = "" if self.default in (None, "") else f", default {self.default}"
        return f"{self.name} ({self.describe_type()}{default}): {self.help.rstrip('.')}"


_FILES = {
    "data": "file, files or text",
    "held_out": "file or text",
    "adapter": "file or text",
    "pictures": "list of files",
}
_SIGNS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_MAX_LISTED = 12
"""Settings with more fields are described by their names alone."""


@functools.cache
def fields_of(model: type[BaseModel]) -> list[Parameter]:
    """The fields of settings, in the order in which they are declared."""
    schema = model.model_json_schema()["properties"]
    parameters = []
    for name, declared in model.model_fields.items():
        kept = [part for part in _union(declared.annotation) if part is not type(None)]
        default = declared.get_default(call_default_factory=True)
        about = " ".join((declared.description or declared.title or "").split())
        parts = [schema[name], *schema[name].get("anyOf", [])]
        limits = {key: limit for part in parts for key, limit in part.items() if "imum" in key}
        parameters.append(
            Parameter(
                name,
                kept[0] if len(kept) == 1 else typing.Union[tuple(kept)],  # noqa: UP007
                inspect.Parameter.empty if default is PydanticUndefined else default,
                about,
                declared.annotation,
                limits=limits,
            )
        )
    return parameters


def _union(annotation: Any) -> tuple[Any, ...]:
    origin = typing.get_origin(annotation)
    is_union = origin is typing.Union or origin is types.UnionType
    return typing.get_args(annotation) if is_union else (annotation,)


def _type_name(annotation: Any) -> str:
    names = {str: "text", int: "integer", float: "number", bool: "true or false"}
    parts = [part for part in _union(annotation) if typing.get_origin(part) is not Literal]
    if any(typing.get_origin(part) is list for part in parts):
        [items] = [part for part in parts if typing.get_origin(part) is list]
        inner = typing.get_args(items)[0]
        return f"list of {names.get(inner, 'objects')}" if inner is not str else "list of texts"
    return names.get(parts[0], "object") if parts else ""


# Operations


@dataclass(frozen=True)
class Operation:
    """A registered function, and the facts about it that the surfaces need."""

    function: Callable[..., Any]
    name: str
    group: str
    command_name: str = ""
    """The name on the command line, where it differs from the name with hyphens."""
    gpu: bool | Callable[[Json], bool] = False
    """True if it computes on a GPU; a function decides by the arguments."""
    resumable: bool = False
    """True if it stores partial results in the run and continues from them when called again."""
    takes_turn: bool = False
    """True if it trains, and so waits until no other training uses the machine."""
    in_process: bool = False
    """True if it is so light that the page calls it in its own process."""
    trains: bool = False
    """True if the surface trains the run afterwards: in the foreground, background or slices."""
    streams: bool = False
    """True if it reports more than progress, which costs time and only a screen can show."""
    watches_job: bool = False
    """True if the surface afterwards brings back what the run's job does."""
    text: Callable[[Any, Json], str] | None = None
    """(result, arguments) -> what the command line prints."""
    surfaces: tuple[Surface, ...] = SURFACES
    why_not: dict[Surface, str] = field(default_factory=dict)

    def __call__(self, *args: Any, **arguments: Any) -> Any:
        return self.function(*args, **arguments)

    def needs_gpu(self, arguments: Json) -> bool:
        """Return True if a call with these arguments computes on a GPU."""
        return self.gpu(arguments) if callable(self.gpu) else self.gpu

    @property
    def command(self) -> str:
        """The name on the command line."""
        return self.command_name or self.name.replace("_", "-")

    @property
    def help(self) -> str:
        """The first sentence of the docstring."""
        return _paragraphs(self.function)[0]

    @property
    def reports(self) -> bool:
        """Return True if the operation reports progress."""
        return any(one.kind.role == "report" for one in self.parameters)

    @functools.cached_property
    def parameters(self) -> list[Parameter]:
        """The arguments, in their order."""
        documented = _documented(self.function)
        hints = typing.get_type_hints(self.function, include_extras=True)
        signature = inspect.signature(self.function)
        return [
            _parameter(name, hints[name], one.default, documented.get(name, ""))
            for name, one in signature.parameters.items()
        ]

    def parameters_on(self, surface: Surface) -> Iterator[Parameter]:
        """The arguments that a surface offers."""
        for one in self.parameters:
            if one.kind.only in (None, surface) and one.kind.role not in ("report", "zip"):
                yield one


REGISTRY: dict[str, Operation] = {}
"""Operations by name, in the order in which they are declared."""


def operation(
    group: str, name: str = "", internal: str = "", **flags: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as an operation. Settings may then be passed to it as dicts.

    Args:
        group: heading under which the documentation lists it.
        name: where it differs from the function's name.
        internal: why no surface offers it, if none does.
        flags: the other fields of `Operation`.
    """

    if internal:
        flags |= {"surfaces": (), "why_not": dict.fromkeys(SURFACES, internal)}

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **arguments: Any) -> Any:
            bound = signature.bind(*args, **arguments)
            for model_name, model in models.items():
                values = bound.arguments.get(model_name)
                bound.arguments[model_name] = make_options(model, values, model_name)
            return function(*bound.args, **bound.kwargs)

        signature = inspect.signature(function)
        models = {
            one.name: one.annotation
            for one in signature.parameters.values()
            if inspect.isclass(one.annotation) and issubclass(one.annotation, BaseModel)
        }
        declared = Operation(call, name or function.__name__, group, **flags)
        missing = set(SURFACES) - set(declared.surfaces) - set(declared.why_not)
        assert not missing, f"{declared.name}: say why it is not on {missing}"
        REGISTRY[declared.name] = declared
        return call

    return register


def operations_on(surface: Surface) -> list[Operation]:
    """The operations that a surface offers, by group."""
    offered = [one for one in REGISTRY.values() if surface in one.surfaces]
    return sorted(offered, key=lambda one: GROUPS.index(one.group))


def _parameter(name: str, hint: Any, default: Any, about: str) -> Parameter:
    base, *extras = typing.get_args(hint) if hasattr(hint, "__metadata__") else (hint,)
    kind = next((extra for extra in extras if isinstance(extra, Kind)), Kind(""))
    if inspect.isclass(base) and issubclass(base, BaseModel):
        kind, default = Kind("options", base.__doc__ or "", model=base), None
    kept = [part for part in _union(base) if part is not type(None)]
    bare = kept[0] if len(kept) == 1 else typing.Union[tuple(kept)]  # noqa: UP007
    limits = {} if kind.role else TypeAdapter(hint).json_schema()
    limits = {key: limit for key, limit in limits.items() if "imum" in key}
    return Parameter(name, bare, default, about or kind.help, hint, kind, limits)


def _paragraphs(function: Callable[..., Any]) -> list[str]:
    text = inspect.getdoc(function) or ""
    return [" ".join(part.split()) for part in text.split("\n\n")]


def _documented(function: Callable[..., Any]) -> dict[str, str]:
    """The Args section of a docstring: name -> help."""
    text = inspect.getdoc(function) or ""
    section = re.search(r"^Args:\n((?: +.*\n?)+)", text, re.MULTILINE)
    arguments = re.findall(
        r"^    (\w+): ((?:.|\n(?!    \w))+)", section[1] if section else "", re.M
    )
    return {name: " ".join(about.split()).rstrip(".") for name, about in arguments}


# Progress


def progress(report: Report | None) -> OnProgress:
    """A progress callback that reports `share` and `what`, at most twice a second if unchanged."""
    last, at = None, 0.0

    def on_progress(share: float, what: str) -> None:
        nonlocal last, at
        message = {"share": share, "what": what}
        if report and (message != last or time.monotonic() > at + _SECONDS_BETWEEN):
            last, at = message, time.monotonic()
            report(message)

    return on_progress
