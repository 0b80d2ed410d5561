"""Numbers for people: Markdown tables on stdout, progress on stderr."""

import sys
from collections.abc import Sequence
from statistics import median

Cell = str | float


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """Print a table; numbers are aligned to the right."""
    cells = [[_text(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(head), *cells]) for i in range(len(head))]
    print(f"\n### {title}\n")
    print(_line([name.ljust(width) for name, width in zip(head, widths, strict=True)]))
    print(
        _line(
            ["-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
        )
    )
    for row in cells:
        print(
            _line(
                [
                    row[0].ljust(widths[0]),
                    *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
                ]
            )
        )
    sys.stdout.flush()


def note(text: str) -> None:
    """Print a sentence under a table."""
    print(f"\n{text}", flush=True)


def progress(text: str) -> None:
    """Tell the person at the terminal what is going on."""
    print(f"… {text}", file=sys.stderr, flush=True)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value that `percent` of `values` do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def ratio(values: Sequence[float], limits: Sequence[float]) -> str:
    """Return the ratio of the medians."""
    return f"{median(values) / median(limits):.2f}"


def _text(cell: Cell) -> str:
    if isinstance(cell, str):
        return cell
    return f"{cell:,.0f}" if cell >= 100 else f"{cell:.1f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
