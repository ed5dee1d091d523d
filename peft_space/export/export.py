"""An export from end to end: written aside, proven, and only then under its name. The run stays as it is."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from peft_space.errors import UserError
from peft_space.export.adapter import copy_adapter
from peft_space.export.folder import atomic_directory
from peft_space.export.gguf.export_gguf import Gguf, export_gguf
from peft_space.export.gguf.export_gguf import commands as commands_of_gguf
from peft_space.export.merge import Dtype, MergeInto, merge, merge_into
from peft_space.export.serving_support import AdapterTraits, commands, traits_of_adapter
from peft_space.export.verify import (
    Verification,
    reject_mismatch,
    verify_adapter,
    verify_merged,
    write_verification,
)
from peft_space.formatting import code_block
from peft_space.models.loading import base_of
from peft_space.models.quantization import quantization_of
from peft_space.runs.events import OnProgress, no_progress
from peft_space.runs.run import Run
from peft_space.storage import atomic_io

Target = Literal["adapter", "merged", "gguf", "ollama"]


@dataclass(frozen=True)
class Exported:
    """What was written, and its proof."""

    path: Path
    proof: Verification


@dataclass(frozen=True)
class ExportSpec:
    """What is to be written, as `deliver` takes it."""

    target: Target
    dtype: Dtype
    into: MergeInto | None
    insist: bool
    gguf: Gguf | None

    def deliver(self, run: Run, out: Path, on_progress: OnProgress) -> "Exported":
        return export_run(
            run, out, self.target, self.dtype, self.into, self.insist, self.gguf, on_progress
        )

    def in_words(self) -> str:
        return {"adapter": "adapter", "merged": f"merged model in {self.dtype}"}.get(
            self.target, "GGUF export"
        )


def make_export_spec(
    target: str = "adapter",
    dtype: str = "bfloat16",
    merge_into: str | None = None,
    insist: bool = False,
    gguf: dict[str, Any] | None = None,
) -> ExportSpec:
    """What a user asks for. Raises UserError where it is nothing that can be written."""

    def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
        if value not in allowed:
            raise UserError(
                "todo", f"{name} cannot be {value!r}. Choose from {', '.join(allowed)}."
            )

    one_of("target", target, get_args(Target))
    files = (
        Gguf(**(gguf or {}), ollama=target == "ollama") if target in ("gguf", "ollama") else None
    )
    if files:
        one_of("numbers", files.numbers, ("f32", "f16", "q8_0"))
    one_of("dtype", dtype, get_args(Dtype))
    if merge_into is not None:
        one_of("merge_into", merge_into, get_args(MergeInto))
    return ExportSpec(target, dtype, merge_into, insist, files)  # type: ignore[arg-type]


def export_run(
    run: Run,
    out: str | Path,
    target: Target = "adapter",
    dtype: Dtype = "bfloat16",
    into: MergeInto | None = None,
    insist: bool = False,
    gguf: Gguf | None = None,
    on_progress: OnProgress = no_progress,
) -> Exported:
    """Write the adapter, or the adapter merged into its base, as transformers or as llama.cpp reads it, into the new folder `out`, and prove it.

    Args:
        dtype: of a merged model.
        into: what to merge into, where the base was quantized in training; left open, what it was trained on.
        gguf: how GGUF files are written, where these are the target.
        insist: keep it also where the proof does not pass. It then says so in its README.

    Raises UserError where there is no adapter, the disk has no room, or the proof does not pass.
    """
    with atomic_directory(out) as folder:
        if target == "adapter":
            on_progress(0.0, "Copying the adapter")
            copy_adapter(run, folder)
            proof = verify_adapter(run, folder, on_progress)
            remedy = "Its files are damaged, or the base was changed: score the run again, or train anew."
        elif gguf is not None:
            proof = export_gguf(run, folder, gguf, into, on_progress)
            remedy = _remedy(
                run,
                "float32" if gguf.numbers == "f32" else "float16",
                "full" if gguf.apart else merge_into(run, into),
            )
        else:
            chosen = merge_into(run, into)
            merge(run, folder, dtype, chosen, on_progress)
            proof = verify_merged(run, folder, dtype, chosen, on_progress)
            remedy = _remedy(run, dtype, chosen)
        if not insist:
            reject_mismatch(proof, remedy)
        on_progress(0.95, "Writing the proof")
        write_verification(folder, proof)
        if gguf is None:  # the card of GGUF files has them
            _append_commands(
                folder,
                serving_commands(run, target, Path("path/of/this/folder"), dtype, elsewhere=True),
            )
    return Exported(Path(out).expanduser().absolute(), proof)


def _remedy(run: Run, dtype: Dtype, into: MergeInto) -> str:
    if into == "full" and traits_of(run).quantization != "none":
        return "Merge into dequantized, the numbers that it was trained on, or serve base and adapter apart."
    if dtype == "float32":
        return "Serve base and adapter apart, and please report it."
    return "Choose float32, or serve base and adapter apart."


def traits_of(run: Run) -> AdapterTraits:
    """What of the run's adapter decides who can serve it."""
    base, goal = base_of(run)
    return traits_of_adapter(
        run.adapter, goal.task, base.config.model_type, quantization_of(run.recipe, base.config)
    )


def serving_commands(
    run: Run,
    target: Target,
    folder: Path,
    dtype: Dtype,
    elsewhere: bool = False,
    gguf: Gguf | None = None,
) -> dict[str, str]:
    """Command lines that serve what lies in `folder`, by engine.

    Args:
        elsewhere: on another machine, where the base is known by its name alone.
    """
    if gguf is not None:
        return commands_of_gguf(gguf, folder)
    base, _ = base_of(run)
    name = re.sub(r"[^\w.-]+", "-", run.name).strip("-.")[:60] or "adapter"
    where, revision = (
        base.name if elsewhere else base.location,
        base.revision if base.on_hub else None,
    )
    return dict(commands(target, name, folder, traits_of(run), where, revision, dtype))  # type: ignore[arg-type]


def _append_commands(folder: Path, found: dict[str, str]) -> None:
    if not found:
        return
    card = folder / "README.md"
    lines = "\n\n".join(f"{engine}:\n\n{code_block(command)}" for engine, command in found.items())
    atomic_io.write_text(card, card.read_text(encoding="utf-8") + f"\n## Serve it\n\n{lines}\n")
