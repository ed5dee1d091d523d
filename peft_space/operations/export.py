"""Exports, describes and shrinks trained adapters."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from peft_space.operations.evaluation import load_cached, release_model
from peft_space.operations.registry import (
    AnyRun,
    AsZip,
    Json,
    Options,
    OutputDir,
    OutputFile,
    Progress,
    TrainedRun,
    operation,
    progress,
)
from peft_space.runs.run import Run

if TYPE_CHECKING:
    from peft_space.export.export import ExportSpec


class ExportOptions(Options):
    """What to export, and in which format."""

    target: Literal["adapter", "merged", "gguf", "ollama"] = Field("adapter", title="Target")
    """The adapter; a merged model, for engines without adapter support; GGUF files for llama.cpp;
    or these with a Modelfile for Ollama."""

    dtype: Literal["bfloat16", "float16", "float32", "gptq", "awq"] = Field(
        "bfloat16", title="Dtype"
    )
    """The format of a merged model's weights. gptq and awq have 4 bits, for vLLM and TGI; they
    need the packages of requirements-gptq.txt."""

    merge_into: Literal["full", "dequantized"] | None = Field(None, title="Merge into")
    """For a base that was quantized in training: its full precision, or the dequantized weights
    that the adapter was trained on (default)."""

    gguf_type: Literal["f32", "f16", "q8_0", "q5_k_m", "q4_k_m"] = Field("f16", title="GGUF type")
    """The format of weights in GGUF files. q5_k_m and q4_k_m need llama.cpp's library,
    llama-cpp-python."""

    separate_adapter: bool = Field(False, title="Separate adapter")
    """Write base model and adapter as two GGUF files instead of one merged model."""

    system: str = Field("", title="System message")
    """For Ollama: the system message of conversations that have none."""

    force: bool = Field(False, title="Keep despite a failed check")
    """Keep the export even if its answers differ from the adapter's."""

    def spec(self) -> "ExportSpec":
        """The export as the export package describes it."""
        from peft_space.export.export import make_export_spec

        gguf = {"numbers": self.gguf_type, "apart": self.separate_adapter, "system": self.system}
        return make_export_spec(self.target, self.dtype, self.merge_into, self.force, gguf)


def _exports_adapter(arguments: Json) -> bool:
    """Verifying an exported adapter takes a GPU; merging is work for the CPU."""
    options = arguments.get("options") or {}
    return (options if isinstance(options, dict) else options.model_dump()).get(
        "target", "adapter"
    ) == "adapter"


def _export_text(result: Json, arguments: Json) -> str:
    options = arguments["options"]
    target = options.target
    name = {"adapter": "adapter", "merged": "merged model"}.get(target, "GGUF export")
    serve = [f"Serve it in {engine}: {command}" for engine, command in result["commands"].items()]
    following = f"peft-space push {arguments['run']} --repo OWNER/NAME --target {target}"
    for flag, value, default in (
        ("--dtype", options.dtype, "bfloat16"),
        ("--gguf-type", options.gguf_type, "f16"),
    ):
        following += "" if value == default else f" {flag} {value}"
    lines = [f"The {name} is in {result['path']}.", result["words"], *serve]
    return "\n".join([*lines, f"Next: {following}"])


@operation(group="export", gpu=_exports_adapter, text=_export_text)
def export(
    run: TrainedRun,
    out: OutputDir,
    options: ExportOptions = ExportOptions(),  # noqa: B008 - it is frozen
    as_zip: AsZip = False,
    report: Progress = None,
) -> Json:
    """Export the adapter or a merged model, and verify that it answers as in the app.

    Returns:
        The `path`, the `proof` with its summary in `words`, and `commands` to serve it, by engine.

    Raises:
        UserError: the answers differ from the adapter's, and `force` is off.
    """
    from peft_space.export.export import serving_commands, zip_of

    target, opened, spec = options.target, Run(run), options.spec()
    release_model()  # the check loads two models, one after the other; a third would not fit
    exported = spec.deliver(opened, Path(out, target) if as_zip else Path(out), progress(report))
    path = zip_of(exported.path, opened, target) if as_zip else exported.path
    served = Path("path/of/the/unpacked", target) if as_zip else exported.path
    commands = serving_commands(
        opened, target, served, options.dtype, elsewhere=as_zip, gguf=spec.gguf
    )
    proof = exported.proof
    return {
        "path": str(path),
        "proof": asdict(proof) | {"passed": proof.passed},
        "words": proof.words(),
        "commands": commands,
    }


@operation(group="export")
def serving(run: TrainedRun) -> Json:
    """Show how PEFT, vLLM and TGI can serve the adapter of a run.

    Returns:
        `ways`, one for each engine, and the `quantization` of the base model in training.
    """
    from peft_space.export.export import traits_of
    from peft_space.export.serving_support import engine_support

    traits = traits_of(Run(run))
    ways = [asdict(engine) for engine in engine_support(traits)]
    return {"ways": ways, "quantization": traits.quantization}


@operation(group="export")
def spectrum(run: TrainedRun) -> Json:
    """Show how much of its rank an adapter uses.

    Returns:
        `rank`, `used`, the mean singular values as shares of the largest (`curve`), and the rank
        that each of the `layers` uses.
    """
    from peft_space.export.rank_reduction import KEPT_ENERGY, read_spectrum

    read = read_spectrum(Run(run))
    used = dict(zip(read.layers, read.rank_for(KEPT_ENERGY).tolist(), strict=True))
    curve = read.mean_curve().tolist()
    return {"rank": read.rank, "used": read.used_rank, "curve": curve, "layers": used}


@operation(
    group="export",
    gpu=True,
    text=lambda result, _: (
        f"An adapter of rank {result['rank']} is in {result['path']}: held-out loss "
        f"{result['loss_before']:.4f} before, {result['loss_after']:.4f} after."
    ),
)
def reduce_rank(
    run: TrainedRun,
    out: OutputDir,
    rank: int | None = None,
    as_zip: AsZip = False,
    report: Progress = None,
) -> Json:
    """Write a copy of the adapter with a smaller rank, and measure what it loses.

    Args:
        rank: the new rank; without it, the rank that the adapter uses

    Returns:
        `path`, `rank`, and the held-out loss before and after.
    """
    from peft_space.evaluation.evaluate import held_out_loss
    from peft_space.export.export import zip_of
    from peft_space.export.rank_reduction import reduce_rank as write_smaller
    from peft_space.models.loading import load_adapted

    opened, on_progress = Run(run), progress(report)
    folder = Path(out, "adapter").absolute() if as_zip else Path(out).absolute()
    on_progress(0.0, "Decomposing the adapter")
    smaller = write_smaller(opened, folder, rank)
    on_progress(0.3, "Scoring the adapter as it was")
    before = held_out_loss(opened, load_cached(run))
    on_progress(0.6, "Scoring the smaller adapter")
    after = held_out_loss(opened, load_adapted(opened, folder))
    path = zip_of(folder, opened, f"rank-{smaller}") if as_zip else folder
    return {"path": str(path), "rank": smaller, "loss_before": before, "loss_after": after}


@operation(group="export", text=lambda result, _: result["card"])
def model_card(run: TrainedRun) -> Json:
    """Write the model card that would be pushed now.

    Returns:
        The `card`, and `pictures`, the SVG of each by its name in the card.
    """
    from peft_space.export.export import copy_adapter

    with tempfile.TemporaryDirectory() as scratch:
        copy_adapter(Run(run), Path(scratch))
        card = Path(scratch, "README.md").read_text(encoding="utf-8")
        drawings = Path(scratch).glob("*.svg")
        pictures = {path.name: path.read_text(encoding="utf-8") for path in drawings}
        return {"card": card, "pictures": pictures}


@operation(
    group="export",
    text=lambda result, _: (
        f"{result['path']} trains the run on any machine: uv run {result['path']}"
    ),
)
def script(run: AnyRun, out: OutputFile = "train.py") -> Json:
    """Write a run as one script that trains it on any machine or cluster."""
    from peft_space.export.standalone_script import write_script

    return {"path": str(write_script(Run(run), out))}
