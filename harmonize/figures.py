"""Text of figures as it is: what comes from a raw tree is no mathematics, and of no matter what length."""

from __future__ import annotations

from collections.abc import Iterator

from matplotlib.figure import Figure
from matplotlib.text import Text

LONGEST = 120
"""Characters of a line that are drawn."""

MOST_LINES = 4


def take_literally(figure: Figure) -> Figure:
    """Draw dollars, control characters and the like as they are, and no more of a text than a figure has room for.

    Tick labels are matplotlib's own, and stay as they are.

    Returns:
        The same figure.
    """
    ticks = {id(text) for text in _tick_texts(figure)}
    for text in figure.findobj(Text):
        if isinstance(text, Text) and id(text) not in ticks:
            text.set_parse_math(False)
            text.set_text(_drawable(text.get_text()))
    return figure


def _tick_texts(figure: Figure) -> Iterator[Text]:
    for axes in figure.get_axes():
        for axis in (axes.xaxis, axes.yaxis):
            yield axis.get_offset_text()
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                yield from (tick.label1, tick.label2)


def _drawable(text: str) -> str:
    """Lines of printable characters, cut where they are too long.

    Example:
        >>> _drawable("T1" + chr(7) + chr(10) + "w")
        'T1?\\nw'
    """
    lines = text.split("\n")[:MOST_LINES]
    cut = (line if len(line) <= LONGEST else line[:LONGEST] + "..." for line in lines)
    return "\n".join("".join(letter if letter.isprintable() else "?" for letter in line) for line in cut)
