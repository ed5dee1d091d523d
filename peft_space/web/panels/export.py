"""The export on the Publish tab: target, adapter or merged model, verification and download."""

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import gradio as gr

from peft_space.compat.gradio import served_folder
from peft_space.formatting import escape
from peft_space.web.components import Operation, cancel_button, cpu_notice, show_errors
from peft_space.web.context import HIDDEN, Inputs, PageContext, Updates, Values, has_adapter
from peft_space.web.render import publish as render_publish

TARGETS = [
    ("Python (PEFT), or not sure yet", "PEFT"),
    ("vLLM", "vLLM"),
    ("TGI", "TGI"),
    ("llama.cpp", "llama.cpp"),
    ("Ollama", "Ollama"),
    ("Other (needs a full model)", "whole"),
]
"""Where the adapter can be deployed."""
FORMATS = [
    ("Adapter only", "adapter"),
    ("Merged model", "merged"),
    ("GGUF, for llama.cpp", "gguf"),
    ("Ollama (GGUF + Modelfile)", "ollama"),
]
_FORMATS_OF = {
    "PEFT": ("adapter", "merged"),
    "vLLM": ("adapter", "merged"),
    "TGI": ("adapter", "merged"),
    "llama.cpp": ("gguf",),
    "Ollama": ("ollama",),
    "whole": ("merged",),
}
"""The formats that each target can load."""
_GGUF_FORMAT = {"llama.cpp": "gguf", "Ollama": "ollama"}
PRECISIONS = [
    ("16 bits", "f16"),
    ("8 bits, half as large", "q8_0"),
    ("5 bits (Q5_K_M)", "q5_k_m"),
    ("4 bits (Q4_K_M)", "q4_k_m"),
    ("32 bits, exact", "f32"),
]
DTYPES = [
    ("bfloat16, as most models are published", "bfloat16"),
    ("float16", "float16"),
    ("float32, exact and twice as large", "float32"),
    ("4 bits (AWQ), for vLLM", "awq"),
    ("4 bits (GPTQ), for vLLM", "gptq"),
]
MERGE_BASES = [
    ("the quantized base (matches training)", "dequantized"),
    ("the full-precision base", "full"),
]
_ABOUT_MERGE_BASES = (
    "The adapter was trained on quantized weights. Merging into those keeps its answers; merging "
    "into full precision changes them slightly. The verification says by how much."
)
_INTRODUCTION = (
    "The adapter is a small file that works with its base model. "
    "Merge it only if your server can't load adapters."
)


class ExportPanel:
    """The panel's components and handlers."""

    def __init__(self, page: PageContext):
        self.page = page
        gr.Markdown(_INTRODUCTION)
        self.target = gr.Radio(
            TARGETS, value="PEFT", label="Where will you run it?", elem_id="deploy-target"
        )
        self.advice = gr.Markdown(elem_id="deploy-advice")
        self.format = gr.Radio(
            FORMATS[:2], value="adapter", label="Format", elem_id="export-target"
        )
        self._place_formats()
        cpu_notice(
            "Merged models and GGUF files are made and verified",
            "It needs memory for the whole base model at 4 bytes a parameter. "
            "An adapter alone is verified on a GPU.",
        )
        self.force = gr.Checkbox(
            False, label="Export anyway", visible=False, elem_id="export-force"
        )
        with gr.Row():
            self.export = gr.Button(
                "Export and verify (.zip)", variant="primary", size="md", scale=0, min_width=220,
                interactive=False, elem_id="export",
            )  # fmt: skip
            self.cancel = cancel_button("cancel-export")
        self.progress = gr.Markdown(elem_id="export-progress")
        self.file = gr.File(label="Download", visible=False, interactive=False, elem_id="zip")
        self.operation = Operation(page, self.progress, [self.export], self.cancel)
        self._stopping: set[str] = set()
        """Runs whose export should end. Gradio's `cancels` would swallow the next click."""

    def _place_formats(self) -> None:
        with gr.Row(visible=False) as self.merge_row:
            self.dtype = gr.Dropdown(
                DTYPES, value="bfloat16", label="Merged weights", elem_id="export-dtype"
            )
            self.merge_into = gr.Radio(
                MERGE_BASES,
                value="dequantized",
                label="Merge into",
                info=_ABOUT_MERGE_BASES,
                visible=False,
                elem_id="merge-into",
            )
        with gr.Row(visible=False) as self.gguf_row:
            self.precision = gr.Dropdown(
                PRECISIONS, value="f16", label="Precision", elem_id="export-precision"
            )
            self.separate = gr.Checkbox(
                False, label="Separate base and adapter files", elem_id="export-separate"
            )

    @property
    def inputs(self) -> Inputs:
        """Inputs of `options`, besides the selection."""
        precision = {self.precision, self.separate}
        shown = {self.target, self.format, self.dtype, self.merge_into, self.force}
        return shown | precision

    def options(self, values: Values) -> dict[str, Any]:
        """Return the options of the operation `export` that the widgets show."""
        target = values[self.format]
        options = {
            "target": target,
            "dtype": values[self.dtype],
            "force": bool(values[self.force]),
            "gguf_type": values[self.precision],
            "separate_adapter": values[self.separate],
        }
        if target != "adapter" and self._serving(values)["quantization"] != "none":
            options["merge_into"] = values[self.merge_into]
        return options

    def _serving(self, values: Values) -> dict[str, Any]:
        run = self.page.selected_run(values)
        return self.page.workers.call("serving", run=str(run.directory))

    def make(self, values: Values) -> Iterator[Updates]:
        """Export the selected run, verify it and offer it for download."""
        run = str(self.page.selected_run(values).directory)
        yield self.operation.begin() | {self.file: gr.update(visible=False)}
        arguments: dict[str, Any] = {"options": self.options(values)}
        folder, done = served_folder(), False

        def show(result: dict[str, Any]) -> Updates:
            nonlocal done
            done = True
            return {
                self.progress: render_publish.exported_markdown(result, values[self.target]),
                self.file: gr.update(value=result["path"], visible=True),
                self.force: gr.update(value=False, visible=False),
            }

        arguments |= {"run": run, "out": folder, "as_zip": True}
        try:
            with contextlib.closing(self.operation.stream("export", show, **arguments)) as updates:
                for update in updates:  # every second at least
                    if run in self._stopping:
                        break
                    yield update
        finally:
            self._stopping.discard(run)
            if not done:
                shutil.rmtree(folder, ignore_errors=True)
        if not done:
            yield {self.progress: "Canceled. Nothing was kept.", **self.operation.ready}

    def stop(self, values: Values) -> str:
        """Ask the export of the selected run to end."""
        self._stopping.add(str(self.page.selected_run(values).directory))
        return "Canceling…"

    def advise(self, values: Values) -> Updates:
        """Select the format that suits the target, and say why."""
        if not values[self.page.run] or not has_adapter(values[self.page.run_state]):
            skipped = dict.fromkeys((self.format, self.merge_into, self.progress), gr.skip())
            return {self.advice: "", **skipped}
        serving = self._serving(values)
        target, reason = format_for(values[self.target], serving)
        is_quantized = serving["quantization"] != "none"
        offered = _FORMATS_OF[values[self.target]]
        return {
            self.advice: escape(reason),
            self.format: gr.update(
                choices=[(title, name) for title, name in FORMATS if name in offered],
                value=target,
                visible=len(offered) > 1,
            ),
            self.merge_into: gr.update(visible=is_quantized),
            self.progress: "",
        }


def build(page: PageContext) -> ExportPanel:
    """Place and wire the panel. Its choice can also be pushed to the Hub."""
    panel = ExportPanel(page)
    inputs: Inputs = {*page.selection, *panel.inputs}
    exporting = panel.operation.on_click(
        panel.export, panel.make, inputs, [panel.file, panel.force]
    )

    def offer_force(target: str) -> Any:
        return gr.update(visible=target != "adapter")

    exporting.failure(offer_force, panel.format, panel.force, **HIDDEN)
    panel.cancel.click(show_errors(panel.stop), page.selection, panel.progress, **HIDDEN)
    advice_inputs: Inputs = {*page.selection, page.run_state, panel.target}
    advice_outputs = [panel.advice, panel.format, panel.merge_into, panel.progress]
    panel.target.change(lambda: gr.update(visible=False), None, panel.file, **HIDDEN)
    panel.target.change(show_errors(panel.advise), advice_inputs, advice_outputs, **HIDDEN)
    rows = [panel.merge_row, panel.gguf_row]
    panel.format.change(_show_rows, panel.format, rows, **HIDDEN)
    page.enable_with_adapter(panel.export)
    page.reset_with_run(
        {
            panel.file: gr.update(value=None, visible=False),
            panel.progress: "",
            panel.advice: "",
            panel.force: gr.update(value=False, visible=False),
            panel.target: "PEFT",
            panel.format: gr.update(choices=FORMATS[:2], value="adapter", visible=True),
        }
    )
    return panel


def _show_rows(target: str) -> list[Any]:
    return [gr.update(visible=target == "merged"), gr.update(visible=target in ("gguf", "ollama"))]


def format_for(target: str, serving: dict[str, Any]) -> tuple[str, str]:
    """Return the format to export for a target, and the reason.

    Args:
        target: a value of `TARGETS`.
        serving: the result of the operation `serving`.
    """
    if target == "whole":
        return "merged", "Merge it and check the verification before deploying."
    if target in _GGUF_FORMAT:
        reason = "The app writes a GGUF file, loads it back, and checks that the answers match."
        return _GGUF_FORMAT[target], f"{target} reads GGUF files. {reason}"
    engine = next(engine for engine in serving["ways"] if engine["engine"] == target)
    return ("merged" if engine["how"] == "merged" else "adapter"), engine["why"]
