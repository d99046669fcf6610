"""Draws error against seconds as SVG, both logarithmic, in light or dark colours.

Matplotlib could draw it. But torchmetrics imports Matplotlib if it is installed, and each start takes longer.
"""

import math
from html import escape
from itertools import combinations, pairwise, product
from statistics import mean, median
from typing import NamedTuple

WIDTH, HEIGHT = 700, 440
LEFT, TOP, RIGHT, BOTTOM = 64, 44, 674, 388  # the edges of the plot
SIZE = 13  # of the text, in pixels
THEMES = {  # on GitHub's backgrounds
    "light": {"paper": "#ffffff", "text": "#1f2328", "grey": "#6e7781", "grid": "#e6e9ed", "ours": "#0969da"},
    "dark": {"paper": "#0d1117", "text": "#f0f6fc", "grey": "#9198a1", "grid": "#262c34", "ours": "#58a6ff"},
}
STYLE = """
text {{ font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: {text} }}
text.tick {{ fill: {grey} }} text.label.ours {{ fill: {ours}; font-weight: 600 }}
.paper {{ fill: {paper} }} .grid {{ stroke: {grid} }} .joined {{ stroke: {grey}; stroke-dasharray: 2 3 }}
.frontier {{ stroke: {ours}; stroke-width: 2.5 }} .spread {{ stroke: {grey} }} .spread.ours {{ stroke: {ours} }}
circle {{ fill: {grey}; stroke: {grey}; stroke-width: 2 }} circle.ours {{ fill: {ours}; stroke: {ours} }}
circle.published {{ fill: {paper} }}
"""
KINDS = {"ours": "this project", "memory": "others, in memory", "published": "others, as published"}


class Point(NamedTuple):
    """A recipe. Two points of one name, `memory` and `published`, share a label, and a line joins them."""

    name: str
    kind: str  # of `KINDS`
    seconds: list[float]  # of each seed
    errors: list[float]  # of each seed, in percent, more than 0

    def middle(self) -> tuple[float, float]:
        """Return the median of the seconds and the mean of the errors."""
        return median(self.seconds), mean(self.errors)


class Box(NamedTuple):
    """A rectangle in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def shared(self, other: "Box") -> float:
        """Return the area that two boxes share."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0) * max(height, 0)


class Axis:
    """Turns values into pixels. A logarithmic scale runs from `start` to `end`, with a margin around the values."""

    def __init__(self, values: list[float], start: float, end: float) -> None:
        self.low, self.high = min(values) / 1.5, max(values) * 1.5
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)))
        values = [digit * 10.0**decade for decade, digit in product(decades, (1, 2, 5))]
        return [value for value in values if self.low <= value <= self.high]


def frontier(points: list[Point]) -> list[Point]:
    """Return this project's recipes that are more accurate than its quicker ones, the quickest first."""
    best: list[Point] = []
    for point in sorted((point for point in points if point.kind == "ours"), key=Point.middle):
        if not best or point.middle()[1] < best[-1].middle()[1]:
            best.append(point)
    return best


def text_box(text: str, x: float, y: float, anchor: str) -> Box:
    """Return the space of a text. `x` is its start, middle or end, and `y` is its baseline."""
    width = 0.62 * SIZE * len(text)  # enough for bold text in wide fonts
    left = x - width * {"start": 0, "middle": 0.5, "end": 1}[anchor]
    return Box(left, y - 0.85 * SIZE, left + width, y + 0.3 * SIZE)


def place(text: str, x: float, y: float, taken: list[Box]) -> tuple[float, float, str]:
    """Return x, baseline and anchor of a label near a point. Of the places, it takes the one that covers least."""
    sides = [(1, 0), (-1, 0), (0.7, -0.9), (0.7, 0.9), (-0.7, -0.9), (-0.7, 0.9), (0, -1.3), (0, 1.3)]
    anchors = {1: "start", 0: "middle", -1: "end"}
    places = [
        (x + far * right, y + far * down + 0.3 * SIZE, anchors[(right > 0) - (right < 0)])
        for far, (right, down) in product((12, 24, 40, 60), sides)
    ]
    plot = Box(LEFT, TOP, RIGHT, BOTTOM)

    def covered(place: tuple[float, float, str]) -> float:
        box = text_box(text, *place)
        outside = box.shared(box) - box.shared(plot)
        return 10 * outside + sum(box.shared(other) for other in taken)

    return min(places, key=covered)


def line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def words(kind: str, text: str, x: float, y: float, anchor: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def mark(kind: str, x: float, y: float) -> str:
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'


def axes(across: Axis, up: Axis) -> list[str]:
    """Return the grid, the numbers at its lines, the names of the axes, and what the marks mean."""
    parts = [
        words("axis", "wrong test images", 12, 24, "start"),
        words("axis", "seconds of training, start of the program included", RIGHT, HEIGHT - 12, "end"),
    ]
    for value in across.ticks():
        parts.append(line("grid", across(value), TOP, across(value), BOTTOM))
        parts.append(words("tick", f"{value:g} s", across(value), BOTTOM + 18, "middle"))
    for value in up.ticks():
        parts.append(line("grid", LEFT, up(value), RIGHT, up(value)))
        parts.append(words("tick", f"{value:g} %", LEFT - 8, up(value) + 0.35 * SIZE, "end"))
    for x, (kind, meaning) in zip((216, 336, 506), KINDS.items(), strict=True):
        parts += [mark(kind, x, 20), words("axis", meaning, x + 12, 24, "start")]
    return parts


def draw(points: list[Point], theme: str) -> str:
    """Return the SVG. A line joins the frontier of this project, and a cross at each point spans its seeds."""
    across = Axis([value for point in points for value in point.seconds], LEFT, RIGHT)
    up = Axis([value for point in points for value in point.errors], BOTTOM, TOP)
    centres = [(across(seconds), up(error)) for seconds, error in map(Point.middle, points)]
    best = [points.index(point) for point in frontier(points)]
    pairs = [(i, j) for i, j in combinations(range(len(points)), 2) if points[i].name == points[j].name]
    parts, taken = axes(across, up), [Box(x - 7, y - 7, x + 7, y + 7) for x, y in centres]
    for kind, joined in [("joined", pair) for pair in pairs] + [("frontier", pair) for pair in pairwise(best)]:
        (x1, y1), (x2, y2) = (centres[i] for i in joined)
        parts.append(line(kind, x1, y1, x2, y2))
        steps = [(x1 + k / 40 * (x2 - x1), y1 + k / 40 * (y2 - y1)) for k in range(41)]
        taken += [Box(x - 2, y - 2, x + 2, y + 2) for x, y in steps]
    for point, (x, y) in zip(points, centres, strict=True):
        spans = [(across(min(point.seconds)), y, across(max(point.seconds)), y)]
        spans += [(x, up(min(point.errors)), x, up(max(point.errors)))]
        parts += [line(f"spread {point.kind}", *span) for span in spans]
        taken += [Box(x1 - 2, y2 - 2, x2 + 2, y1 + 2) for x1, y1, x2, y2 in spans]
    parts += [mark(point.kind, x, y) for point, (x, y) in zip(points, centres, strict=True)]
    for name, (point, centre) in {p.name: (p, c) for p, c in zip(points, centres, strict=True)}.items():
        x, y, anchor = place(name, *centre, taken)
        taken.append(text_box(name, x, y, anchor))
        parts.append(words(f"label {point.kind}", name, x, y, anchor))
    told = "; ".join(f"{p.name} ({KINDS[p.kind]}): {p.middle()[1]:.2f} % in {p.middle()[0]:.0f} s" for p in points)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
            'role="img" aria-labelledby="title description">',
            '<title id="title">Error on the test images against the time to train</title>',
            f'<desc id="description">Both axes are logarithmic. {escape(told)}.</desc>',
            f"<style>{STYLE.format(**THEMES[theme])}</style>",
            f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}"/>',
            *parts,
            "</svg>\n",
        ]
    )
