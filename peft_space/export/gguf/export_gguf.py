"""What llama.cpp and Ollama take of a run: GGUF files of the merged model, or of base and adapter apart, their proof, and a Modelfile."""

import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_space.data.dataset import load_run_data
from peft_space.errors import UserError
from peft_space.export.gguf.architectures import architecture_of
from peft_space.export.gguf.reader import read_back
from peft_space.export.gguf.writer import Numbers, write_gguf, write_gguf_adapter
from peft_space.export.merge import MergeInto, load_published_base, merge, merge_into
from peft_space.export.model_card import Merged, write_card
from peft_space.export.ollama import modelfile
from peft_space.export.verify import Verification, verify_merged
from peft_space.models.loading import base_of
from peft_space.models.quantization import quantization_of
from peft_space.models.resolve import BaseModelRef, load_tokenizer
from peft_space.runs.events import OnProgress, no_progress
from peft_space.runs.plan import read_plan
from peft_space.runs.run import Run
from peft_space.storage import atomic_io


@dataclass(frozen=True)
class Gguf:
    """How GGUF files are to be written."""

    numbers: Numbers = "f16"
    apart: bool = False
    """Base and adapter in files of their own, instead of one of the merged model."""
    ollama: bool = False
    """With a Modelfile."""
    system: str = ""
    """A system message that the Modelfile gives conversations without one."""

    @property
    def files(self) -> list[str]:
        """Their names: the model's first."""
        return (
            [f"base-{self.numbers}.gguf", f"adapter-{self.numbers}.gguf"]
            if self.apart
            else [f"model-{self.numbers}.gguf"]
        )


_DTYPES = {"f32": "float32", "f16": "float16", "q8_0": "q8_0"}


def export_gguf(
    run: Run,
    folder: Path,
    wanted: Gguf,
    into: MergeInto | None = None,
    on_progress: OnProgress = no_progress,
) -> Verification:
    """Write the files into the existing `folder`, with a README, and prove them.

    Raises UserError, before anything large is written, where llama.cpp cannot run such a model, or Ollama's template cannot be written.
    """
    base, goal = base_of(run)
    if goal.task not in ("causal-lm", "dpo", "kto"):
        raise UserError(
            "todo",
            f"llama.cpp is for models that answer in text; this run learnt {goal.task}. Export the adapter, or the merged model.",
        )
    if (
        wanted.apart
        and quantization_of(run.recipe.model_copy(update={"quantization": "none"}), base.config)
        != "none"
    ):
        raise UserError(
            "todo",
            "The base comes quantized, so there is none to write beside the adapter. Export the merged model.",
        )
    architecture_of(base.config)
    tokenizer = load_tokenizer(base, run.recipe.chat_template, goal.task)
    if wanted.ollama:
        atomic_io.write_text(
            folder / "Modelfile",
            modelfile(tokenizer, _generation(base), *wanted.files, system=wanted.system),
        )
    chosen = "full" if wanted.apart else merge_into(run, into)
    files = [folder / name for name in wanted.files]
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}-", dir=folder.parent) as scratch:
        whole = Path(scratch)
        if wanted.apart:
            on_progress(0.0, "Loading the base")
            load_published_base(run, base, goal).save_pretrained(whole, max_shard_size="2GB")
            tokenizer.save_pretrained(whole)
            write_gguf_adapter(run.adapter, base.config, files[1], wanted.numbers, run.name)
        else:
            merge(run, whole, "float32", chosen, lambda share, what: on_progress(0.4 * share, what))
        name = base.name.rpartition("/")[2] if wanted.apart else run.name
        write_gguf(
            whole,
            files[0],
            wanted.numbers,
            name,
            lambda share, what: on_progress(0.3 + 0.15 * share, what),
        )
        on_progress(0.45, "Reading the files again")
        read_back(whole, *files)
        proof = verify_merged(
            run, whole, _DTYPES[wanted.numbers], chosen, on_progress, of_gguf=True
        )  # type: ignore[arg-type]
    plan = read_plan(run)
    assert plan is not None, "an adapter is only saved by a training, which writes its plan first"
    usage = "\n\n".join(
        f"{engine}:\n\n```\n{command}\n```"
        for engine, command in commands(wanted, Path(".")).items()
    )
    write_card(
        run,
        folder,
        load_run_data(run),
        plan,
        Merged(f"GGUF ({wanted.numbers})", chosen, usage, wanted.apart),
    )
    return proof


def commands(wanted: Gguf, folder: Path) -> dict[str, str]:
    """Command lines that run what lies in `folder`, by engine."""
    lora = ["--lora", str(folder / wanted.files[1])] if wanted.apart else []
    found = {
        "llama.cpp": shlex.join(
            ["llama-server", "--jinja", "-m", str(folder / wanted.files[0]), *lora]
        )
    }
    if wanted.ollama:
        found["Ollama"] = (
            shlex.join(["ollama", "create", "my-model", "-f", str(folder / "Modelfile")])
            + " && ollama run my-model"
        )
    return found


def _generation(base: BaseModelRef) -> Any:
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(
            base.location, revision=base.revision if base.on_hub else None
        )
    except OSError:  # many a base comes without
        return None
