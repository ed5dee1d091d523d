"""The loss curves of a run as a picture for its card: an SVG, which the Hub shows beside the text."""

from collections.abc import Callable

from peft_space.runs.events import Event
from peft_space.runs.status import evaluations_of, steps_of

WIDTH, HEIGHT, MARGIN = 720, 300, 48
_COLOURS = {"training": "#0f766e", "held out": "#d97706"}


def loss_svg(happened: list[Event]) -> str | None:
    """Training loss of each step and held-out loss of each evaluation; None where there are fewer than two finite steps."""
    curves = {
        "training": [
            (step.step, step.loss) for step in steps_of(happened) if abs(step.loss) < float("inf")
        ],
        "held out": [
            (one.step, one.loss) for one in evaluations_of(happened) if abs(one.loss) < float("inf")
        ],
    }
    if len(curves["training"]) < 2:
        return None
    last = max(step for points in curves.values() for step, _ in points)
    low = min(loss for points in curves.values() for _, loss in points)
    high = max(loss for points in curves.values() for _, loss in points)

    def place(step: int, loss: float) -> str:
        across = MARGIN + (WIDTH - 2 * MARGIN) * step / last
        up = HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (loss - low) / ((high - low) or 1)
        return f"{across:.1f},{up:.1f}"

    lines, legend = [], []
    for number, (name, points) in enumerate(curves.items()):
        if points:
            ends = f'fill="none" stroke="{_COLOURS[name]}" stroke-width="2"'
            lines.append(
                f'<polyline points="{" ".join(place(*point) for point in points)}" {ends}/>'
            )
            lines += [
                f'<circle cx="{at}" cy="{up}" r="3" fill="{_COLOURS[name]}"/>'
                for at, up in _dots(name, points, place)
            ]
            legend.append(
                f'<text x="{WIDTH - MARGIN - 90}" y="{24 + 16 * number}" fill="{_COLOURS[name]}">{name}</text>'
            )
    axes = (
        f'<path d="M{MARGIN},{MARGIN} V{HEIGHT - MARGIN} H{WIDTH - MARGIN}" fill="none" stroke="#94a3b8"/>'
        f'<text x="8" y="{MARGIN + 4}">{high:.3g}</text><text x="8" y="{HEIGHT - MARGIN + 4}">{low:.3g}</text>'
        f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - 28}" text-anchor="end">step {last}</text><text x="{MARGIN}" y="24">loss</text>'
    )
    style = 'font-family="sans-serif" font-size="13" fill="#334155"'
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    inner = "".join([axes, *lines, *legend])
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}><rect width="100%" height="100%" fill="#ffffff"/>{inner}</svg>\n'


def _dots(
    name: str, points: list[tuple[int, float]], place: Callable[[int, float], str]
) -> list[list[str]]:
    return [place(*point).split(",") for point in points] if name == "held out" else []
