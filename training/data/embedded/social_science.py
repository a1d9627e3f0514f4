"""Generated questions of social science that need their pictures: see `skills.py` for `ask` and `show`."""

from mmcot.training.data.embedded import pictures
from mmcot.training.data.embedded.texts import BASIC_COLORS, Asked, some_colors

# where each region of a map is: its side of the picture and its centre
_REGIONS = {
    "north": ("top", (0.5, 0.2)),
    "south": ("bottom", (0.5, 0.8)),
    "west": ("left", (0.2, 0.5)),
    "east": ("right", (0.8, 0.5)),
}


def ask_map(rng):
    direction = rng.choice(list(_REGIONS))
    return Asked(
        f"Which region is in the {direction}?",
        [f"{color} region" for color in some_colors(rng)],
        caption="A map with regions and an arrow that points to the north.",
        detail=direction,
    )


def show_map(rng, asked, choices, answer):
    side, place = _REGIONS[asked.detail]
    colors = [choice.split()[0] for choice in choices]
    right = colors.pop(answer)
    free = [(0.5, 0.5), *(spot for _, spot in _REGIONS.values() if spot != place)]
    places = {right: place, **dict(zip(colors, rng.sample(free, len(colors)), strict=True))}
    solution = (
        f"In the picture, the region at the {side} is {right}. So, the {choices[answer]} is in the {asked.detail}."
    )
    return [pictures.draw_map(rng, places)], solution


def ask_bars(rng):
    count = rng.randint(2, 5)
    goods = rng.sample(["apples", "bread", "cloth", "fish", "lamps", "milk", "paper", "salt"], count)
    legend = sorted(zip(rng.sample(BASIC_COLORS, count), goods, strict=True))
    which = rng.choice(["most", "least"])
    return Asked(
        f"Which good did the shop sell the {which} of?",
        goods,
        context="The chart shows what a shop sold. "
        + " ".join(f"The {color} bar is {good}." for color, good in legend),
        caption="A bar chart.",
        detail=which,
    )


def show_bars(rng, asked, choices, answer):
    sentences = asked.context.split(". ")[1:]
    color_of = {sentence.rstrip(".").split()[-1]: sentence.split()[1] for sentence in sentences}
    right = color_of[choices[answer]]
    others = [color for color in color_of.values() if color != right]
    heights = rng.sample([0.2 + 0.12 * i for i in range(6)], len(choices))
    heights.sort(reverse=asked.detail == "most")
    tall = dict(zip([right, *rng.sample(others, len(others))], heights, strict=True))
    image = pictures.draw_bars(rng, {color: tall[color] for color in rng.sample(list(tall), len(tall))})
    extreme = {"most": "tallest", "least": "shortest"}[asked.detail]
    solution = (
        f"In the picture, the {extreme} bar is {right}. The {right} bar is {choices[answer]}. "
        f"So, the shop sold the {asked.detail} {choices[answer]}."
    )
    return [image], solution


_STRIPES = ("left", "middle", "right")


def ask_flag(rng):
    which = rng.choice(_STRIPES)
    return Asked(
        f"What is the color of the {which} stripe of this flag?",
        some_colors(rng, most=4),
        caption="A flag with three stripes.",
        detail=which,
    )


def show_flag(rng, asked, choices, answer):
    right = choices[answer]
    stripes = [rng.choice(choices) for _ in _STRIPES]
    stripes[_STRIPES.index(asked.detail)] = right
    solution = f"In the picture, the {asked.detail} stripe is {right}. So, the answer is {right}."
    return [pictures.draw_flag(rng, stripes)], solution
