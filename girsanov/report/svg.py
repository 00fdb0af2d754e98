"""Line charts as inline SVG: a few numbers in, a string out; colours come from the page's style sheet."""

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

WIDTH, HEIGHT = 380, 210
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 30


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        x, y: points; a y that is None or not finite breaks the line.
        error: half-widths of a band around it, or nothing.
        name: what the legend and the points' tooltips call it.
        style: a class of the style sheet.
        dots: whether points are marked.
    """

    x: Sequence[float]
    y: Sequence[float | None]
    error: Sequence[float] = field(default=())
    name: str = ""
    style: str = "line-a"
    dots: bool = False

    def points(self) -> list[tuple[float, float, float]]:
        """The finite points with their half-widths."""
        errors = self.error or [0.0] * len(self.x)
        rows = zip(self.x, self.y, errors, strict=True)
        return [(x, y, e) for x, y, e in rows if y is not None and math.isfinite(y)]


@dataclass(frozen=True)
class Scale:
    """Values to pixels, linear."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers that cover a range."""
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):  # one value, up to rounding
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def number(value: float, percent: bool = False) -> str:
    """A number as short as it can be read."""
    if percent:
        return f"{100 * value:.3g} %"
    if value != 0 and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.2g}"
    return f"{value:.4g}"


def rounded(value: float, error: float, percent: bool = False) -> tuple[str, str]:
    """A value and the half-width of its interval, to the error's two leading digits: ("1.729", "0.046")."""
    if not (error > 0 and math.isfinite(value) and math.isfinite(error)):
        return number(value, percent), ""
    scale = 100.0 if percent else 1.0
    places = max(0, 1 - math.floor(math.log10(error * scale)))
    unit = " %" if percent else ""
    if places > 6:
        return number(value, percent), number(error, percent)
    return f"{scale * value:.{places}f}{unit}", f"{scale * error:.{places}f}{unit}"


def chart(lines: Sequence[Line], label: str, x_label: str = "iteration", percent: bool = False) -> str:
    """A chart of lines over one axis; a description for screen readers comes from ``label``."""
    points = [p for line in lines for p in line.points()]
    if not points:
        return '<p class="empty">nothing was recorded</p>'
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    low, high = min(y - e for _, y, e in points), max(y + e for _, y, e in points)
    if percent:  # an interval may leave [0, 1], a share may not
        low, high = max(low, min(0.0, *ys)), min(high, max(1.0, *ys))
    y_ticks = ticks(low, high)
    x_ticks = [t for t in ticks(min(xs), max(xs), 5) if min(xs) <= t <= max(xs)] or [min(xs)]
    spread = max(xs) - min(xs) or 1.0
    across = Scale(min(xs), min(xs) + spread, LEFT, WIDTH - RIGHT)
    up = Scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    show: Callable[[float], str] = lambda v: number(v, percent)  # noqa: E731
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(label)}">']
    for t in y_ticks:
        y = up(t)
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 7}" y="{y + 3.5:.1f}" text-anchor="end">{show(t)}</text>')
    for t in x_ticks:
        parts.append(
            f'<text class="tick" x="{across(t):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{t:g}</text>'
        )
    parts.append(
        f'<text class="axis" x="{WIDTH - RIGHT}" y="{HEIGHT - 2}" text-anchor="end">{html.escape(x_label)}</text>'
    )
    parts += [shape for line in lines for shape in draw(line, across, up, show)]
    return "".join([*parts, "</svg>"])


def draw(line: Line, across: Scale, up: Scale, show: Callable[[float], str]) -> list[str]:
    """A line with its band and its points."""
    points = line.points()
    if not points:
        return []
    shapes = []
    if line.error:
        above = [f"{across(x):.1f},{up(min(y + e, up.high)):.1f}" for x, y, e in points]
        below = [f"{across(x):.1f},{up(max(y - e, up.low)):.1f}" for x, y, e in reversed(points)]
        shapes.append(f'<polygon class="band {line.style}" points="{" ".join(above + below)}"/>')
    path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y, _ in points)
    shapes.append(f'<polyline class="{line.style}" points="{path}"/>')
    if line.dots or len(points) == 1:
        for x, y, e in points:
            note = f"{line.name} {show(y)}" + (f" ± {show(e)}" if e else "") + f" at {x:g}"
            shapes.append(
                f'<circle class="{line.style}" cx="{across(x):.1f}" cy="{up(y):.1f}" r="2.6">'
                f"<title>{html.escape(note.strip())}</title></circle>"
            )
    return shapes


def legend(lines: Sequence[Line]) -> str:
    """Names of the lines with their colours."""
    items = [f'<span class="key {line.style}">{html.escape(line.name)}</span>' for line in lines if line.name]
    return f'<div class="legend">{"".join(items)}</div>' if len(items) > 1 else ""
