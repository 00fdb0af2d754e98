"""What a study writes: sections of text, tables and charts, as a page, as JSON and as plots of their own."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

import girsanov.report
from girsanov.disk import write_text
from girsanov.errors import GirsanovError
from girsanov.report.svg import HEIGHT, WIDTH, Line, chart, legend
from girsanov.settings import unknown

HERE = Path(__file__).parent
STYLE = (Path(girsanov.report.__file__).parent / "style.css").read_text(encoding="utf-8")
TONES = ("line-a", "line-b", "line-c", "line-d", "line-e")


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        columns: heads.
        rows: cells; numbers are shown to four digits.
        note: a sentence below.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str | float]]
    note: str = ""

    @property
    def cells(self) -> list[list[str]]:
        """The rows as text."""
        return [[cell if isinstance(cell, str) else f"{cell:.4f}" for cell in row] for row in self.rows]


@dataclass(frozen=True)
class Plot:
    """A chart with its title.

    Attributes:
        name: of its file.
        title, x_label: of the chart.
        lines: what it shows.
    """

    name: str
    title: str
    x_label: str
    lines: Sequence[Line]

    @property
    def svg(self) -> Markup:
        """The chart, for a page with the style sheet."""
        return Markup(chart(self.lines, self.title, self.x_label))  # noqa: S704 (made here, text is escaped)

    @property
    def legend(self) -> Markup:
        """Names of the lines."""
        return Markup(legend(self.lines))  # noqa: S704

    @property
    def picture(self) -> str:
        """The chart as a file of its own: with its style, title and legend."""
        body = str(self.svg).removesuffix("</svg>")
        head, _, rest = body.partition(">")
        named = [line for line in self.lines if line.name]
        height = 250 + 11 * math.ceil(len(named) / 2)
        size = f'viewBox="0 -28 380 {height}" width="570" height="{1.5 * height:g}"'
        head = head.replace(f'viewBox="0 0 {WIDTH} {HEIGHT}"', size)
        names = "".join(
            f'<g transform="translate({52 + 165 * (i % 2)} {216 + 11 * (i // 2)})">'
            f'<rect class="{line.style}" width="14" height="2"/>'
            f'<text class="tick" x="18" y="4">{Markup.escape(line.name)}</text></g>'
            for i, line in enumerate(named)
        )
        title = f'<text x="8" y="-12" class="title">{Markup.escape(self.title)}</text>'
        extra = (
            "svg{background:#fbfaf7;font-family:system-ui,sans-serif} .title{font-size:13px;fill:#211f1c} "
            ".chart rect{fill:var(--tone)}"
        )
        light = STYLE.replace(STYLE[STYLE.index("@media") : STYLE.index("* {")], "")
        return f'{head} xmlns="http://www.w3.org/2000/svg"><style>{light}{extra}</style>{title}{rest}{names}</svg>\n'


@dataclass(frozen=True)
class Section:
    """One part of a study.

    Attributes:
        key: its name in the JSON and on the command line.
        title, text: what it is about and what it shows; the text is paragraphs.
        tables, plots: what was seen.
        data: every number, as JSON can hold it.
    """

    key: str
    title: str
    text: Sequence[str]
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    data: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """What the JSON holds: every number, and the tables as they are shown."""
        tables = [{"columns": list(t.columns), "rows": t.cells, "note": t.note} for t in self.tables]
        return {"title": self.title, **self.data, "tables": tables}


def study_of(
    parts: Mapping[str, Callable[[bool], Sequence[Section]]], wanted: Sequence[str] | None, fast: bool
) -> list[Section]:
    """The sections of the wanted parts (all by default), in their order.

    Raises GirsanovError on an unknown part, before any is run.
    """
    names = wanted or tuple(parts)
    for name in names:
        if name not in parts:
            raise GirsanovError(f"{name!r} {unknown(name, parts, 'part of this study')}")
    return [section for name in names for section in parts[name](fast)]


def write_study(out: Path, title: str, lead: str, sections: Sequence[Section], command: str) -> Path:
    """Writes ``report.html``, ``study.json`` and ``plots/*.svg`` into a folder; the path of the page."""
    pages = Environment(
        loader=FileSystemLoader(HERE), autoescape=select_autoescape(), undefined=StrictUndefined, trim_blocks=True
    )
    page = pages.get_template("study.html").render(
        style=Markup(STYLE),  # noqa: S704 (our own file)
        title=title,
        lead=lead,
        sections=sections,
        command=command,
    )
    (out / "plots").mkdir(parents=True, exist_ok=True)
    write_text(out / "report.html", page)
    numbers = {"command": command, "sections": {s.key: s.record() for s in sections}}
    write_text(out / "study.json", json.dumps(numbers, indent=1) + "\n")
    for section in sections:
        for plot in section.plots:
            write_text(out / "plots" / f"{plot.name}.svg", plot.picture)
    return out / "report.html"
