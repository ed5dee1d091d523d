"""Exports a run: writes the adapter, a merged model or GGUF files, verifies them, and zips them.

The page imports this module, so torch and gguf are imported inside functions.
"""

import dataclasses
import json
import re
import shlex
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from peft_space.data.dataset import load_run_data
from peft_space.errors import UserError
from peft_space.export.gguf import NUMBERS, Numbers
from peft_space.export.merge import Dtype, MergeInto, load_published_base, merge, merge_into
from peft_space.export.model_card import ModelFormat, write_export_card
from peft_space.export.quantize import (
    BY_LLAMA_CPP,
    COMPRESSED,
    Compressed,
    check_gptqmodel,
    compress,
    group_size_for,
    python_with_llama_cpp,
    quantize_gguf,
)
from peft_space.export.serving_support import AdapterTraits, commands, traits_of_adapter
from peft_space.export.verify import (
    COARSE,
    Precision,
    Verification,
    reject_mismatch,
    render_rows,
    verify_adapter,
    verify_merged,
    write_verification,
)
from peft_space.formatting import code_block
from peft_space.models.architecture import CLASSIFYING, linear_layers
from peft_space.models.config_values import text_config
from peft_space.models.loading import base_of, continues_texts, tokenizer_of
from peft_space.models.quantization import quantization_of
from peft_space.models.resolve import BaseModelRef, save_tokenizer
from peft_space.models.special_tokens import answer_tokens, save_generation_config
from peft_space.recipe import Task
from peft_space.runs.events import OnProgress, no_progress
from peft_space.runs.run import Run
from peft_space.storage import atomic_io
from peft_space.storage.atomic_io import atomic_directory

if TYPE_CHECKING:
    from transformers import GenerationConfig

Target = Literal["adapter", "merged", "gguf", "ollama"]
MergedFormat = Dtype | Compressed
"""Of a merged model's weights."""
_GGUF_DTYPES: dict[Numbers, Precision] = {"f32": "float32", "f16": "float16"}
"""Of the formats that have another name in GGUF."""


@dataclass(frozen=True)
class Exported:
    """An export and the result of its verification."""

    path: Path
    proof: Verification


@dataclass(frozen=True)
class Gguf:
    """How to write GGUF files."""

    numbers: Numbers = "f16"
    apart: bool = False
    """Write base model and adapter as two files instead of one merged model."""
    ollama: bool = False
    """Add a Modelfile."""
    system: str = ""
    """The system message of the Modelfile, for conversations that have none."""

    @property
    def files(self) -> list[str]:
        """Names of the files, the model first."""
        names = ("base", "adapter") if self.apart else ("model",)
        return [f"{name}-{self.numbers}.gguf" for name in names]


@dataclass(frozen=True)
class ExportSpec:
    """What to export. Made by `make_export_spec`."""

    target: Target
    dtype: MergedFormat
    into: MergeInto | None
    insist: bool
    gguf: Gguf | None

    def deliver(self, run: Run, out: Path, on_progress: OnProgress) -> Exported:
        """Export a run as `export_run` does."""
        return export_run(
            run, out, self.target, self.dtype, self.into, self.insist, self.gguf, on_progress
        )

    def in_words(self) -> str:
        """Return a phrase for commit messages."""
        phrases = {"adapter": "adapter", "merged": f"merged model in {self.dtype}"}
        return phrases.get(self.target, "GGUF export")


def make_export_spec(
    target: str = "adapter",
    dtype: str = "bfloat16",
    merge_into: str | None = None,
    insist: bool = False,
    gguf: dict[str, Any] | None = None,
) -> ExportSpec:
    """Check and combine the choices of a user.

    Args:
        target: a `Target`.
        dtype: a `MergedFormat`.
        merge_into: a `MergeInto`; None for the weights that the adapter was trained on.
        insist: keep an export that fails verification.
        gguf: fields of `Gguf`, for the targets `gguf` and `ollama`.

    Raises:
        UserError: a choice does not exist.
    """
    _check_choice("target", target, get_args(Target))
    _check_choice("dtype", dtype, (*get_args(Dtype), *COMPRESSED))
    options = None
    if target in ("gguf", "ollama"):
        options = Gguf(**(gguf or {}), ollama=target == "ollama")
        _check_choice("numbers", options.numbers, NUMBERS)
    if merge_into is not None:
        _check_choice("merge_into", merge_into, get_args(MergeInto))
    return ExportSpec(target, dtype, merge_into, insist, options)  # type: ignore[arg-type]


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        message = f"{name} cannot be {value!r}. Choose one of {', '.join(allowed)}."
        raise UserError("export.invalid_choice", message)


def export_run(
    run: Run,
    out: str | Path,
    target: Target = "adapter",
    dtype: MergedFormat = "bfloat16",
    into: MergeInto | None = None,
    insist: bool = False,
    gguf: Gguf | None = None,
    on_progress: OnProgress = no_progress,
) -> Exported:
    """Write an export, verify it, and only then give it its name. The run stays as it is.

    Args:
        run: a run with an adapter.
        out: the folder to create.
        target: what to write.
        dtype: of a merged model.
        into: what to merge into; None for the weights that the adapter was trained on.
        insist: keep an export that fails verification. Its README reports the failure.
        gguf: how to write GGUF files, for the targets `gguf` and `ollama`.
        on_progress: called with the share that is done.

    Raises:
        UserError: there is no adapter, the disk has too little space, or verification failed.
    """
    with atomic_directory(out) as folder:
        if target == "adapter":
            on_progress(0.0, "Copying the adapter")
            copy_adapter(run, folder)
            _write_generation_config(run, folder)
            proof = verify_adapter(run, folder, on_progress)
            remedy = "Its files are damaged, or the base model has changed. Train the run again."
        elif gguf is not None:
            proof = export_gguf(run, folder, gguf, into, on_progress)
            weights = "full" if gguf.apart else merge_into(run, into)
            remedy = _remedy(run, gguf.numbers == "f32", weights)
            if gguf.numbers in COARSE:
                remedy = "Choose q8_0 or f16."
        elif dtype == "gptq" or dtype == "awq":
            proof = export_compressed(run, folder, dtype, merge_into(run, into), on_progress)
            remedy = "Choose bfloat16."
        else:
            weights = merge_into(run, into)
            merge(run, folder, dtype, weights, on_progress, whole=True)
            proof = verify_merged(run, folder, dtype, weights, on_progress)
            remedy = _remedy(run, dtype == "float32", weights)
        if not insist:
            reject_mismatch(proof, remedy)
        on_progress(0.95, "Writing the verification")
        write_verification(folder, proof)
        if gguf is None:  # the card of GGUF files includes the commands
            path = Path("path/of/this/folder")
            _append_commands(folder, serving_commands(run, target, path, dtype, elsewhere=True))
    return Exported(Path(out).expanduser().absolute(), proof)


def _remedy(run: Run, is_float32: bool, into: MergeInto) -> str:
    separately = "serve base model and adapter separately"
    if into == "full" and traits_of(run).quantization != "none":
        return f"Merge into dequantized, the weights it was trained on, or {separately}."
    if is_float32:
        return f"{separately.capitalize()}, and please report this."
    return f"Choose float32, or {separately}."


def traits_of(run: Run) -> AdapterTraits:
    """Return the traits of the run's adapter that decide which engine can serve it."""
    base, task_spec = base_of(run)
    quantization = quantization_of(run.recipe, base.config)
    return traits_of_adapter(run.adapter, task_spec.task, base.config, quantization)


def serving_commands(
    run: Run,
    target: Target,
    folder: Path,
    dtype: MergedFormat,
    elsewhere: bool = False,
    gguf: Gguf | None = None,
) -> dict[str, str]:
    """Return shell commands that serve an export, by engine.

    Args:
        run: the run that was exported.
        target: what was exported.
        folder: the exported files.
        dtype: of a merged model.
        elsewhere: the export is served on another machine, which knows the base model by its name.
        gguf: how GGUF files were written.
    """
    if gguf is not None:
        return gguf_commands(gguf, folder)
    base, _ = base_of(run)
    location = base.name if elsewhere else base.location
    revision = base.revision if base.on_hub else None
    level: Literal["adapter", "merged"] = "adapter" if target == "adapter" else "merged"
    name = _file_name(run) or "adapter"
    lines = commands(level, name, folder, traits_of(run), location, revision, dtype)
    return {str(engine): line for engine, line in lines.items()}


def _append_commands(folder: Path, lines: dict[str, str]) -> None:
    if lines:
        card = folder / "README.md"
        text = card.read_text(encoding="utf-8")
        atomic_io.write_text(card, f"{text}\n## Serve it\n\n{_commands_markdown(lines)}\n")


def _commands_markdown(lines: dict[str, str]) -> str:
    return "\n\n".join(f"{engine}:\n\n{code_block(line)}" for engine, line in lines.items())


# The adapter


def copy_adapter(run: Run, folder: Path) -> None:
    """Copy the run's adapter and write a card with the latest figures.

    Args:
        run: a run with an adapter; an imported adapter gets the base model's tokenizer.
        folder: an existing folder.

    Raises:
        UserError: there is no adapter, or it does not name its base model.
    """
    config = json.loads((run.adapter / "adapter_config.json").read_text())
    if not config.get("base_model_name_or_path"):
        message = (
            "The adapter does not name its base model, so it cannot be loaded. Train it again."
        )
        raise UserError("export.adapter_without_base", message)
    shutil.copytree(run.adapter, folder, dirs_exist_ok=True)
    if not (folder / "tokenizer_config.json").is_file():
        base, task_spec = base_of(run)
        save_tokenizer(tokenizer_of(run, base, task_spec.task), base, folder)
    write_export_card(run, folder)


# Models in GPTQ and AWQ


CALIBRATION_ROWS = 128
"""Training rows that decide how weights are rounded, as in the papers (arXiv 2210.17323,
2306.00978)."""


def export_compressed(
    run: Run,
    folder: Path,
    method: Compressed,
    into: MergeInto,
    on_progress: OnProgress = no_progress,
) -> Verification:
    """Write a merged model whose blocks have 4 bits, and measure what that costs.

    Args:
        run: a run with an adapter.
        folder: an existing folder.
        method: how to choose the 4 bits. The run's training rows calibrate it.
        into: the weights to merge into.
        on_progress: called with the share that is done.

    Raises:
        UserError: gptqmodel is missing, or it cannot quantize such a model.
    """
    base, task_spec = base_of(run)
    is_part = text_config(base.config) is not base.config
    if is_part or task_spec.task in ("seq2seq-lm", *CLASSIFYING):
        raise UserError(
            "export.not_quantized",
            f"Only text models that write answers can be exported as {method.upper()}. "
            "Export this one in bfloat16.",
        )
    check_gptqmodel()
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}-", dir=folder.parent) as scratch:
        model, compressed = Path(scratch, "model"), Path(scratch, "compressed")
        model.mkdir()
        merge(run, model, "bfloat16", into, _part_of(on_progress, 0.0, 0.3))
        before = verify_merged(run, model, "bfloat16", into, _part_of(on_progress, 0.3, 0.2))
        on_progress(0.5, f"Quantizing as {method.upper()}")
        layers = linear_layers(base.config, task_spec.task).model.named_modules()
        widths = [getattr(layer, "in_features", 0) for _, layer in layers]
        compress(model, compressed, method, group_size_for(widths), _calibration(run))
        shutil.copytree(compressed, folder, dirs_exist_ok=True)
        for path in model.iterdir():  # the tokenizer and the template as they were trained
            if path.is_file() and path.name not in _OF_WEIGHTS and path.suffix not in _LEFT_OUT:
                shutil.copy2(path, folder)
    write_export_card(run, folder, ModelFormat(f"{method.upper()} (4 bits)", into))
    proof = verify_merged(run, folder, method, into, _part_of(on_progress, 0.7, 0.3))
    return _with_faults_before(before, proof)


_OF_WEIGHTS = ("config.json", "model.safetensors.index.json", "calibration.json")
_LEFT_OUT = (".safetensors", ".md")


def _calibration(run: Run) -> list[list[int]]:
    """Token ids of evenly spaced training rows."""
    base, task_spec = base_of(run)
    rows, tokenizer = load_run_data(run).train, tokenizer_of(run, base, task_spec.task)
    every = max(1, len(rows) // CALIBRATION_ROWS)
    chosen = [rows[position] for position in range(0, len(rows), every)][:CALIBRATION_ROWS]
    rendered = render_rows(run, tokenizer, task_spec, chosen)
    return [example.input_ids for example in rendered if example.input_ids]


# GGUF files


def export_gguf(
    run: Run,
    folder: Path,
    options: Gguf,
    into: MergeInto | None = None,
    on_progress: OnProgress = no_progress,
) -> Verification:
    """Write GGUF files with a card, and compare the numbers in the files with the adapter.

    Args:
        run: a run with an adapter.
        folder: an existing folder.
        options: how to write the files.
        into: what to merge into; None for the weights that the adapter was trained on.
        on_progress: called with the share that is done.

    Raises:
        UserError: llama.cpp cannot run such a model, or Ollama cannot use its chat template.
            Nothing large has been written then.
    """
    from peft_space.export.gguf import writer
    from peft_space.export.gguf.architectures import architecture_of

    base, task_spec = base_of(run)
    _check_gguf_possible(run, base, task_spec.task, options)
    architecture_of(base.config)
    tokenizer = tokenizer_of(run, base, task_spec.task)
    if options.ollama:
        from peft_space.export.ollama import modelfile

        adapter, generation = next(iter(options.files[1:]), None), _generation_config(base)
        text = modelfile(tokenizer, generation, options.files[0], adapter, options.system)
        atomic_io.write_text(folder / "Modelfile", text)
    weights: MergeInto = "full" if options.apart else merge_into(run, into)
    files, numbers = [folder / name for name in options.files], options.numbers
    by_llama_cpp = numbers in BY_LLAMA_CPP  # from 16 bits, which are verified first
    written: Numbers = "f16" if by_llama_cpp else numbers
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}-", dir=folder.parent) as scratch:
        model, name = Path(scratch), run.name
        if options.apart:
            on_progress(0.0, "Loading the base model")
            name = base.name.rpartition("/")[2]
            published = load_published_base(run, base, task_spec)
            published.save_pretrained(model, max_shard_size="2GB")
            tokenizer.save_pretrained(model)
            writer.write_gguf_adapter(run.adapter, base.config, files[1], written, run.name)
        else:
            merge(run, model, "float32", weights, _part_of(on_progress, 0.0, 0.4))
        first = model / "unquantized.gguf" if by_llama_cpp else files[0]
        writer.write_gguf(
            model,
            first,
            written,
            name,
            _part_of(on_progress, 0.3, 0.15),
            begins_texts=continues_texts(run),
        )
        on_progress(0.45, "Reading the files back")
        writer.read_back(model, first, *files[1:])
        dtype = _GGUF_DTYPES.get(written, "q8_0")
        proof = verify_merged(run, model, dtype, weights, on_progress, of_gguf=True)
        if by_llama_cpp:
            proof = _quantize(run, model, first, options, files, weights, proof, on_progress)
    usage = _commands_markdown(gguf_commands(options, Path(".")))
    if text_config(base.config) is not base.config:
        usage += (
            "\n\nThe file contains the part of the model that writes text. Pictures need another "
        )
        usage += "file (mmproj), which is not written here; the adapter does not change it."
    model_format = ModelFormat(f"GGUF ({numbers})", weights, usage, options.apart)
    write_export_card(run, folder, model_format)
    return proof


def _quantize(
    run: Run,
    model: Path,
    unquantized: Path,
    options: Gguf,
    files: Sequence[Path],
    weights: MergeInto,
    proof: Verification,
    on_progress: OnProgress,
) -> Verification:
    """Write the model's file in 4 or 5 bits, and measure what that costs.

    Args:
        run: the run.
        model: the folder with the merged model; it is changed.
        unquantized: the model's file in 16 bits.
        options: how to write the files.
        files: the files to export; the first one is written.
        weights: what the adapter was merged into.
        proof: of the file in 16 bits. Its faults are those of the export too.
        on_progress: called with the share that is done.
    """
    from peft_space.export.gguf import writer

    on_progress(0.45, "Quantizing with llama.cpp")
    quantize_gguf(unquantized, files[0], options.numbers)
    unquantized.unlink()
    writer.read_back(model, *files)
    precision: Precision = options.numbers  # type: ignore[assignment]
    measured = verify_merged(run, model, precision, weights, on_progress, of_gguf=True)
    return _with_faults_before(proof, measured)


def _with_faults_before(before: Verification, measured: Verification) -> Verification:
    """The proof of a quantized model. The faults that it had before are its own too."""
    faults = [f"before quantization: {fault}" for fault in before.faults]
    return dataclasses.replace(measured, faults=[*faults, *measured.faults])


def _part_of(on_progress: OnProgress, start: float, length: float) -> OnProgress:
    return lambda share, what: on_progress(start + length * share, what)


def _check_gguf_possible(run: Run, base: BaseModelRef, task: Task, options: Gguf) -> None:
    if options.numbers in BY_LLAMA_CPP:
        python_with_llama_cpp()
    if task == "image-text-to-text":
        message = "llama.cpp needs a second file for pictures (mmproj), which is not written here, "
        message += "so a GGUF file could not be verified on them. Export the adapter or the merged "
        raise UserError("export.gguf_task", message + "model, which vLLM and transformers serve.")
    if task not in ("causal-lm", "dpo", "kto"):
        message = f"llama.cpp is for models that write text, and this run's task is {task}. Export "
        raise UserError("export.gguf_task", message + "the adapter or the merged model.")
    plain = run.recipe.model_copy(update={"quantization": "none"})
    if options.apart and quantization_of(plain, base.config) != "none":
        message = "The base model was published quantized, so it cannot be written as a separate "
        message += "GGUF file. Export the merged model."
        raise UserError("export.gguf_of_quantized_base", message)


def gguf_commands(options: Gguf, folder: Path) -> dict[str, str]:
    """Return shell commands that run the GGUF files in `folder`, by engine."""
    model, *adapter = [str(folder / name) for name in options.files]
    lora = ["--lora", *adapter] if adapter else []
    lines = {"llama.cpp": shlex.join(["llama-server", "--jinja", "-m", model, *lora])}
    if options.ollama:
        create = ["ollama", "create", "my-model", "-f", str(folder / "Modelfile")]
        lines["Ollama"] = shlex.join(create) + " && ollama run my-model"
    return lines


def _write_generation_config(run: Run, folder: Path) -> None:
    """Write the base's settings for answers, with the tokens that end the adapter's answers.

    Servers take these tokens from such a file, and that of a base may not have them.
    """
    from transformers import GenerationConfig

    base, task_spec = base_of(run)
    if task_spec.task != "causal-lm":
        return
    generation = _generation_config(base) or GenerationConfig()
    tokens = answer_tokens(tokenizer_of(run, base, task_spec.task), task_spec.task, generation)
    save_generation_config(generation, tokens, folder)


def _generation_config(base: BaseModelRef) -> "GenerationConfig | None":
    from transformers import GenerationConfig

    revision = (base.revision if base.on_hub else None) or "main"
    try:
        return GenerationConfig.from_pretrained(base.location, revision=revision)
    except OSError:  # many base models do not have one
        return None


# The .zip file


def zip_of(folder: Path, run: Run, target: str) -> Path:
    """Replace an export by one .zip file in the same parent folder, named after the run.

    Returns:
        The path of the .zip file.
    """
    path = _zip(folder, run, target, folder.parent)
    shutil.rmtree(folder)
    return path


def zip_adapter(run: Run, into: Path) -> Path:
    """Write the run's adapter as one .zip file into the folder `into` and return its path."""
    return _zip(run.adapter, run, "adapter", into)


def _zip(folder: Path, run: Run, target: str, into: Path) -> Path:
    """Without compression, because weights hardly compress. It is renamed once it is complete."""
    path = into / f"{_file_name(run) or run.directory.name}-{target}.zip"
    incomplete = path.with_suffix(".part")
    with zipfile.ZipFile(incomplete, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, Path(target, file.relative_to(folder)))
    return incomplete.rename(path)


def _file_name(run: Run) -> str:
    """The run's name as part of a file name or a command; it can be empty."""
    return re.sub(r"[^\w.-]+", "-", run.name).strip("-.")[:60]
