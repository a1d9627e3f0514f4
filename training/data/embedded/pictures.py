"""Drawing for the embedded data: each function draws one 64×64 RGB picture with PIL.

Coordinates are fractions of the picture's width, from its upper left corner. Pictures are drawn at twice their size
and halved, which smooths the edges.
"""

import math
from collections.abc import Sequence
from random import Random

from PIL import Image, ImageDraw

from mmcot.training.common import UserError

SIZE = 64
_SCALE = 2 * SIZE

COLORS = {
    "red": (214, 40, 40),
    "blue": (38, 84, 208),
    "green": (34, 150, 64),
    "yellow": (246, 212, 32),
    "purple": (142, 54, 178),
    "orange": (246, 136, 20),
    "black": (28, 28, 28),
    "pink": (250, 150, 190),
}
_INK = (60, 60, 60)


class Canvas:
    """A picture under way; its background is a random light tint, so that no two pictures are alike."""

    def __init__(self, rng: Random):
        self.image = Image.new("RGB", (_SCALE, _SCALE), tuple(rng.randint(226, 250) for _ in range(3)))
        self.pen = ImageDraw.Draw(self.image)

    def box(self, left, top, right, bottom, fill) -> None:
        self.pen.rectangle([_px(left), _px(top), _px(right) - 1, _px(bottom) - 1], fill=fill)

    def disc(self, x, y, radius, fill) -> None:
        self.pen.ellipse([_px(x - radius), _px(y - radius), _px(x + radius), _px(y + radius)], fill=fill)

    def polygon(self, points: Sequence[tuple[float, float]], fill) -> None:
        self.pen.polygon([(_px(x), _px(y)) for x, y in points], fill=fill)

    def line(self, points: Sequence[tuple[float, float]], fill=_INK, width=0.03) -> None:
        self.pen.line([(_px(x), _px(y)) for x, y in points], fill=fill, width=_px(width))

    def arc(self, box: Sequence[float], start, end, fill=_INK, width=0.05) -> None:
        self.pen.arc([_px(value) for value in box], start, end, fill=fill, width=_px(width))

    def done(self) -> Image.Image:
        return self.image.reduce(2)


def _px(fraction: float) -> int:
    return round(fraction * _SCALE)


def draw_magnets(rng: Random, poles: str) -> Image.Image:
    """Two bar magnets side by side; `poles` names the four ends from left to right, such as "NSNS" (N red, S blue)."""
    canvas = Canvas(rng)
    top, gap = rng.uniform(0.2, 0.5), rng.uniform(0.05, 0.1)
    start = rng.uniform(0.02, 0.06)
    for i, pole in enumerate(poles):
        left = start + 0.2 * i + (gap if i > 1 else 0)
        color = COLORS["red"] if pole == "N" else COLORS["blue"]
        canvas.box(left, top, left + 0.2, top + 0.26, color)
    return canvas.done()


def draw_layers(rng: Random, colors: Sequence[str]) -> Image.Image:
    """Layers of rock over the whole width, `colors` from top to bottom, under a strip of sky."""
    canvas = Canvas(rng)
    top = rng.uniform(0.06, 0.16)
    weights = [rng.uniform(1.0, 1.6) for _ in colors]
    for color, weight in zip(colors, weights, strict=True):
        height = (1 - top) * weight / sum(weights)
        canvas.box(0, top, 1, 1, COLORS[color])
        # the remaining layers are painted over this one
        top, weights = top + height, weights[1:]
    return canvas.done()


def draw_flag(rng: Random, colors: Sequence[str]) -> Image.Image:
    """A flag with a vertical stripe of each colour, from left to right."""
    canvas = Canvas(rng)
    left, top = rng.uniform(0.06, 0.12), rng.uniform(0.15, 0.3)
    width, bottom = 0.92 - left, top + rng.uniform(0.42, 0.55)
    for i, color in enumerate(colors):
        canvas.box(left + width * i / len(colors), top, left + width * (i + 1) / len(colors), bottom, COLORS[color])
    canvas.box(left - 0.04, top - 0.04, left, 1, _INK)
    return canvas.done()


def draw_balance(rng: Random, left: str, right: str, lower: str) -> Image.Image:
    """A pair of scales with a coloured block on either side; `lower` is the colour on the side that went down."""
    canvas = Canvas(rng)
    tilt = rng.uniform(0.1, 0.16) * (1 if lower == right else -1)
    pivot = rng.uniform(0.4, 0.46)
    canvas.polygon([(0.5, pivot), (0.4, 0.95), (0.6, 0.95)], _INK)
    canvas.line([(0.12, pivot - tilt), (0.88, pivot + tilt)], width=0.05)
    for x, y, color in ((0.2, pivot - tilt, left), (0.8, pivot + tilt, right)):
        canvas.box(x - 0.12, y - 0.24, x + 0.12, y, COLORS[color])
    return canvas.done()


def draw_solutions(rng: Random, counts: Sequence[int], color: str) -> Image.Image:
    """Two beakers of equal volume, side by side, with `counts` particles in each (at most 8)."""
    canvas = Canvas(rng)
    for left, count in zip((0.04, 0.54), counts, strict=True):
        canvas.box(left, 0.12, left + 0.42, 0.94, _INK)
        canvas.box(left + 0.03, 0.12, left + 0.39, 0.91, (255, 255, 255))
        cells = rng.sample([(column, row) for column in range(2) for row in range(4)], count)
        for column, row in cells:
            x = left + 0.12 + 0.18 * column + rng.uniform(-0.02, 0.02)
            canvas.disc(x, 0.22 + 0.19 * row + rng.uniform(-0.02, 0.02), 0.06, COLORS[color])
    return canvas.done()


def draw_map(rng: Random, regions: dict[str, tuple[float, float]]) -> Image.Image:
    """A map with north at the top: a region around (x, y) for each colour, an arrow to the north in the lower left."""
    canvas = Canvas(rng)
    canvas.line([(0.07, 0.97), (0.07, 0.84)], width=0.02)
    canvas.polygon([(0.07, 0.78), (0.03, 0.86), (0.11, 0.86)], _INK)
    for color, (x, y) in regions.items():
        x, y = x + rng.uniform(-0.03, 0.03), y + rng.uniform(-0.03, 0.03)
        corners = [(math.tau * (i + rng.uniform(-0.3, 0.3)) / 9, rng.uniform(0.12, 0.17)) for i in range(9)]
        canvas.polygon([(x + r * math.cos(a), y + r * math.sin(a)) for a, r in corners], COLORS[color])
    return canvas.done()


def draw_bars(rng: Random, heights: dict[str, float]) -> Image.Image:
    """A bar chart: one bar for each colour, from left to right, `heights` in fractions of the picture."""
    canvas = Canvas(rng)
    step = 0.92 / len(heights)
    width = min(step * 0.75, 0.22)
    for i, (color, height) in enumerate(heights.items()):
        left = 0.04 + step * (i + 0.5) - width / 2
        canvas.box(left, 0.94 - height, left + width, 0.94, COLORS[color])
    canvas.line([(0.02, 0.95), (0.98, 0.95)])
    return canvas.done()


def draw_flower(rng: Random, color: str) -> Image.Image:
    """A flower with six petals of one colour."""
    canvas = Canvas(rng)
    x, y = rng.uniform(0.4, 0.6), rng.uniform(0.34, 0.44)
    canvas.line([(x, y), (x + rng.uniform(-0.05, 0.05), 1.0)], fill=(90, 130, 90), width=0.04)
    turn, spread = rng.uniform(0, 1), rng.uniform(0.16, 0.19)
    for i in range(6):
        angle = math.tau * (i + turn) / 6
        canvas.disc(x + spread * math.cos(angle), y + spread * math.sin(angle), 0.12, COLORS[color])
    canvas.disc(x, y, 0.09, (255, 250, 225))
    return canvas.done()


def draw_shapes(rng: Random, places: dict[str, tuple[float, float]]) -> Image.Image:
    """A "circle", a "square" or a "triangle" at (x, y) each, about a fifth of the picture wide."""
    canvas = Canvas(rng)
    for shape, (x, y) in places.items():
        color = COLORS[rng.choice(list(COLORS)[:6])]
        if shape == "circle":
            canvas.disc(x, y, 0.13, color)
        elif shape == "square":
            canvas.box(x - 0.12, y - 0.12, x + 0.12, y + 0.12, color)
        else:
            canvas.polygon([(x, y - 0.14), (x - 0.15, y + 0.13), (x + 0.15, y + 0.13)], color)
    return canvas.done()


def draw_sample(rng: Random, pattern: str) -> Image.Image:
    """A piece of cloth that is "striped", "dotted" or "plain"."""
    canvas = Canvas(rng)
    back, front = rng.sample(list(COLORS)[:6], 2)
    canvas.box(0.1, 0.1, 0.9, 0.9, COLORS[back])
    if pattern == "striped":
        for i in range(4):
            canvas.box(0.1, 0.18 + 0.2 * i, 0.9, 0.26 + 0.2 * i, COLORS[front])
    elif pattern == "dotted":
        for i in range(9):
            canvas.disc(0.24 + 0.26 * (i % 3), 0.24 + 0.26 * (i // 3), 0.07, COLORS[front])
    return canvas.done()


def draw_thing(rng: Random, name: str) -> Image.Image:
    """One simple thing: star, sun, moon, tree, house, ring, box or key."""
    canvas = Canvas(rng)
    color = COLORS[rng.choice(["red", "blue", "green", "purple", "orange", "black"])]
    x, y = rng.uniform(0.45, 0.55), rng.uniform(0.45, 0.55)
    if name == "star":
        radii = (0.38, 0.16)
        turns = [(radii[i % 2], math.tau * i / 10 - math.pi / 2) for i in range(10)]
        canvas.polygon([(x + r * math.cos(a), y + r * math.sin(a)) for r, a in turns], color)
    elif name == "sun":
        for i in range(8):
            angle = math.tau * i / 8
            end = (x + 0.42 * math.cos(angle), y + 0.42 * math.sin(angle))
            canvas.line([(x, y), end], fill=COLORS["orange"], width=0.05)
        canvas.disc(x, y, 0.22, COLORS["yellow"])
    elif name == "moon":
        background = canvas.image.getpixel((0, 0))
        canvas.disc(x, y, 0.34, color)
        canvas.disc(x + 0.16, y - 0.06, 0.3, background)
    elif name == "tree":
        canvas.box(x - 0.06, y + 0.1, x + 0.06, y + 0.42, (120, 80, 40))
        canvas.polygon([(x, y - 0.42), (x - 0.3, y + 0.18), (x + 0.3, y + 0.18)], COLORS["green"])
    elif name == "house":
        canvas.box(x - 0.26, y - 0.04, x + 0.26, y + 0.36, color)
        canvas.polygon([(x, y - 0.4), (x - 0.36, y - 0.04), (x + 0.36, y - 0.04)], (120, 80, 40))
        canvas.box(x - 0.07, y + 0.14, x + 0.07, y + 0.36, (255, 250, 225))
    elif name == "ring":
        canvas.disc(x, y, 0.32, color)
        canvas.disc(x, y, 0.23, canvas.image.getpixel((0, 0)))
    elif name == "box":
        canvas.box(x - 0.3, y - 0.24, x + 0.3, y + 0.3, color)
        canvas.box(x - 0.3, y - 0.02, x + 0.3, y + 0.06, (255, 250, 225))
    elif name == "key":
        canvas.disc(x - 0.22, y, 0.17, color)
        canvas.disc(x - 0.22, y, 0.08, canvas.image.getpixel((0, 0)))
        canvas.box(x - 0.06, y - 0.04, x + 0.4, y + 0.05, color)
        canvas.box(x + 0.24, y, x + 0.3, y + 0.16, color)
        canvas.box(x + 0.34, y, x + 0.4, y + 0.16, color)
    else:
        raise UserError(f"no drawing for {name!r}")
    return canvas.done()
