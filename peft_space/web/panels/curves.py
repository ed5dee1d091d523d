"""The curves of a training on the Train tab."""

from typing import Any

import gradio as gr

from peft_space.web import theme
from peft_space.web.components import show_errors
from peft_space.web.context import HIDDEN, PageContext, Updates, Values
from peft_space.web.render import progress as render_progress

_COLORS = {"training": theme.TRAINING, "test": theme.TEST, "overfitting": theme.DANGER}
_DETAILS = ("learning rate", "gradient norm", "tokens a second")


class Curves:
    """The plots and how they are drawn."""

    def __init__(self) -> None:
        with gr.Row(visible=False) as self.options:
            self.log = gr.Checkbox(
                False, label="Log scale", container=False, scale=0, min_width=120, elem_id="log-y"
            )
            self.smooth = gr.Checkbox(
                False, label="Smooth", container=False, scale=0, min_width=120, elem_id="smooth"
            )
        self.plot = gr.LinePlot(
            x="step",
            y="loss",
            color="rows",
            color_title=" ",
            color_map=_COLORS,
            colors_in_legend=["training", "test"],
            title="Loss",
            x_axis_format="d",
            height=300,
            visible=False,
            elem_id="loss",
        )
        self.more = gr.Accordion(
            "Learning rate, gradient norm and speed", open=False, visible=False
        )
        with self.more, gr.Row():
            self.details = [_detail_plot(figure) for figure in _DETAILS]
        self.samples = gr.HTML(elem_id="sample-answers")  # last: they appear during training

    @property
    def outputs(self) -> list[Any]:
        """Outputs of `show`."""
        return [self.options, self.plot, self.more, *self.details, self.samples]

    def show(self, history: list[Any], log: bool = False, smooth: bool = False) -> Updates:
        """Show the curves of a run; see `render.progress.losses`."""
        curves = render_progress.losses(history, log, smooth)
        details = render_progress.step_details(history)
        visible = gr.update(visible=not curves.empty)
        return {
            self.options: visible,
            self.more: visible,
            self.plot: gr.update(value=curves, visible=not curves.empty),
            **dict.fromkeys(self.details, details),
            self.samples: render_progress.samples_html(history),
        }


def _detail_plot(figure: str) -> gr.LinePlot:
    elem_id = f"plot-{figure.replace(' ', '-')}"
    return gr.LinePlot(
        x="step",
        y=figure,
        title=figure.capitalize(),
        x_axis_format="d",
        height=200,
        elem_id=elem_id,
    )


def build(page: PageContext) -> Curves:
    """Place and wire the curves."""
    curves = Curves()

    @show_errors
    def draw(values: Values) -> Any:
        log, history = values[curves.log], page.selected_run(values).history()
        table = render_progress.losses(history, log, values[curves.smooth])
        return gr.update(value=table, y_title="log10 of the loss" if log else "loss")

    inputs = {*page.selection, curves.log, curves.smooth}
    gr.on([curves.log.input, curves.smooth.input], draw, inputs, curves.plot, **HIDDEN)
    return curves
