"""The skills of the embedded data: what is asked, what is drawn, and the solution that cites it.

A skill has two functions. `ask` draws the text: question, options, context. `show` gets the options in their final
order and which one shall be right, draws pictures in which it is, and writes the solution from what was drawn. A skill
without pictures has only `ask`, which gives the right option first and the solution with it.

Solutions end in a sentence that names the right option's text, so that the answer follows from the rationale alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from PIL import Image

from mmcot.training.data.embedded import pictures
from mmcot.training.data.embedded.texts import (
    BASIC_COLORS,
    Asked,
    ask_capital,
    ask_cost,
    ask_figure,
    ask_heat,
    ask_tense,
    ask_word,
    some_colors,
)


@dataclass(frozen=True)
class Skill:
    """One kind of question, with ScienceQA's labels for it."""

    title: str
    subject: str
    topic: str
    category: str
    grades: Sequence[int]
    lecture: str
    ask: Callable[[Random], Asked]
    show: Callable[[Random, Asked, list[str], int], tuple[list[Image.Image], str]] | None = None


# natural science


def _ask_magnets(rng):
    return Asked(
        "Will these magnets attract or repel each other?",
        ["attract", "repel"],
        context="Two magnets are placed as shown.",
        caption="Two bar magnets lie side by side.",
    )


def _show_magnets(rng, asked, choices, answer):
    same = choices[answer] == "repel"
    left = rng.choice("NS")
    right = left if same else {"N": "S", "S": "N"}[left]
    outer = {"N": "S", "S": "N"}
    name = {"N": "north", "S": "south"}
    solution = (
        f"In the picture, the {name[left]} pole of one magnet faces the {name[right]} pole of the other. "
        f"So, these magnets {choices[answer]} each other."
    )
    return [pictures.draw_magnets(rng, outer[left] + left + right + outer[right])], solution


def _ask_layers(rng):
    which = rng.choice(["oldest", "youngest"])
    return Asked(
        f"What is the color of the {which} rock layer?",
        some_colors(rng, most=4),
        caption="Rock layers lie one on top of the other.",
        detail=which,
    )


def _show_layers(rng, asked, choices, answer):
    right = choices[answer]
    others = [color for color in choices if color != right]
    rng.shuffle(others)
    oldest = asked.detail == "oldest"
    order = [*others, right] if oldest else [right, *others]
    solution = (
        f"In the picture, the {right} layer is at the {'bottom' if oldest else 'top'}. "
        f"So, the {asked.detail} layer is {right}."
    )
    return [pictures.draw_layers(rng, order)], solution


def _ask_balance(rng):
    which = rng.choice(["heavier", "lighter"])
    first, second = rng.sample(BASIC_COLORS, 2)
    return Asked(
        f"Which block is {which}?",
        [f"{first} block", f"{second} block"],
        caption="Two blocks stand on a pair of scales.",
        detail=which,
    )


def _show_balance(rng, asked, choices, answer):
    right, other = (choices[i].split()[0] for i in (answer, 1 - answer))
    heavy = asked.detail == "heavier"
    left_block, right_block = rng.sample([right, other], 2)
    image = pictures.draw_balance(rng, left_block, right_block, lower=right if heavy else other)
    solution = (
        f"In the picture, the side with the {right} block is {'lower' if heavy else 'higher'}. "
        f"So, the {right} block is {asked.detail}."
    )
    return [image], solution


def _ask_concentration(rng):
    color = rng.choice(["green", "purple", "orange", "pink"])
    return Asked(
        f"Which solution has a higher concentration of {color} particles?",
        ["Solution A", "Solution B", "neither; their concentrations are the same"],
        context="The picture shows two solutions, A on the left and B on the right. Both have the same volume.",
        caption="Two beakers hold particles in a liquid.",
        detail=color,
    )


def _show_concentration(rng, asked, choices, answer):
    low, high = sorted(rng.sample(range(1, 9), 2))
    left, right = {"Solution A": (high, low), "Solution B": (low, high)}.get(choices[answer], (low, low))
    if left == right:
        end = f"So, the answer is {choices[answer]}."
    else:
        end = f"So, {choices[answer]} has a higher concentration."
    solution = (
        f"In the picture, Solution A has {left} {asked.detail} particle{'s' * (left > 1)} and "
        f"Solution B has {right}. {end}"
    )
    return [pictures.draw_solutions(rng, (left, right), asked.detail)], solution


def _ask_flower(rng):
    return Asked(
        "Which trait does this flower have?",
        [f"{color} petals" for color in some_colors(rng, most=4)],
        context="The picture shows a petunia.",
        caption="A flower with six petals.",
    )


def _show_flower(rng, asked, choices, answer):
    color = choices[answer].split()[0]
    solution = f"In the picture, the petals are {color}. So, this flower has {color} petals."
    return [pictures.draw_flower(rng, color)], solution


def _ask_cloth(rng):
    pattern = rng.choice(["striped", "dotted"])
    names = ["first", "second", "third"][: rng.randint(2, 3)]
    return Asked(f"Which sample of cloth is {pattern}?", [f"the {name} sample" for name in names], detail=pattern)


def _show_cloth(rng, asked, choices, answer):
    others = ["plain", "dotted" if asked.detail == "striped" else "striped"]
    patterns = [asked.detail if i == answer else rng.choice(others) for i in range(len(choices))]
    seen = " ".join(f"The picture of {name} is {pattern}." for name, pattern in zip(choices, patterns, strict=True))
    solution = f"{seen} So, {choices[answer]} is {asked.detail}."
    return [pictures.draw_sample(rng, pattern) for pattern in patterns], solution


# social science

# where each region of a map is: its side of the picture and its centre
_REGIONS = {
    "north": ("top", (0.5, 0.2)),
    "south": ("bottom", (0.5, 0.8)),
    "west": ("left", (0.2, 0.5)),
    "east": ("right", (0.8, 0.5)),
}


def _ask_map(rng):
    direction = rng.choice(list(_REGIONS))
    return Asked(
        f"Which region is in the {direction}?",
        [f"{color} region" for color in some_colors(rng)],
        caption="A map with regions and an arrow that points to the north.",
        detail=direction,
    )


def _show_map(rng, asked, choices, answer):
    side, place = _REGIONS[asked.detail]
    colors = [choice.split()[0] for choice in choices]
    right = colors.pop(answer)
    free = [(0.5, 0.5), *(spot for _, spot in _REGIONS.values() if spot != place)]
    places = {right: place, **dict(zip(colors, rng.sample(free, len(colors)), strict=True))}
    solution = (
        f"In the picture, the region at the {side} is {right}. So, the {choices[answer]} is in the {asked.detail}."
    )
    return [pictures.draw_map(rng, places)], solution


def _ask_bars(rng):
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


def _show_bars(rng, asked, choices, answer):
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


def _ask_flag(rng):
    which = rng.choice(_STRIPES)
    return Asked(
        f"What is the color of the {which} stripe of this flag?",
        some_colors(rng, most=4),
        caption="A flag with three stripes.",
        detail=which,
    )


def _show_flag(rng, asked, choices, answer):
    right = choices[answer]
    stripes = [rng.choice(choices) for _ in _STRIPES]
    stripes[_STRIPES.index(asked.detail)] = right
    solution = f"In the picture, the {asked.detail} stripe is {right}. So, the answer is {right}."
    return [pictures.draw_flag(rng, stripes)], solution


# language science


_RHYMES = {
    "star": ("car", "jar"), "sun": ("run", "bun"), "moon": ("spoon", "noon"), "tree": ("bee", "knee"),
    "house": ("mouse", "blouse"), "ring": ("king", "wing"), "box": ("fox", "socks"), "key": ("sea", "tea"),
}  # fmt: skip


def _ask_rhyme(rng):
    things = rng.sample(list(_RHYMES), rng.randint(3, 5))
    while {"tree", "key"} <= set(things):  # these two rhyme with each other
        things = rng.sample(list(_RHYMES), len(things))
    return Asked(
        "Which word rhymes with the name of the thing in the picture?",
        [rng.choice(_RHYMES[thing]) for thing in things],
        caption="A drawing of one thing.",
    )


def _show_rhyme(rng, asked, choices, answer):
    right = choices[answer]
    thing = next(name for name, words in _RHYMES.items() if right in words)
    solution = (
        f"The picture shows a {thing}. The words {thing} and {right} end with the same sound. So, {right} rhymes."
    )
    return [pictures.draw_thing(rng, thing)], solution


_RELATIONS = {"above": (0, -1), "below": (0, 1), "left of": (-1, 0), "right of": (1, 0)}


def _ask_preposition(rng):
    first, second = rng.sample(["circle", "square", "triangle"], 2)
    return Asked(
        f"Which words complete the sentence? The {first} is ___ the {second}.",
        rng.sample(list(_RELATIONS), rng.randint(2, 4)),
        context="Look at the picture.",
        caption="Two shapes.",
        detail=f"{first} {second}",
    )


def _show_preposition(rng, asked, choices, answer):
    first, second = asked.detail.split()
    dx, dy = _RELATIONS[choices[answer]]
    x, y = (rng.uniform(0.45, 0.55) for _ in range(2))
    apart = rng.uniform(0.2, 0.26)
    places = {first: (x + dx * apart, y + dy * apart), second: (x - dx * apart, y - dy * apart)}
    solution = (
        f"In the picture, the {first} is {choices[answer]} the {second}. So, the missing words are {choices[answer]}."
    )
    return [pictures.draw_shapes(rng, places)], solution


SKILLS: dict[str, Skill] = {
    "map": Skill(
        "Read a map: cardinal directions", "social science", "geography", "Maps", (2, 3, 4),
        "Maps have four main directions: north, south, east, and west. An arrow on a map often shows where north is. "
        "With north at the top, south is at the bottom, west is at the left, and east is at the right.",
        _ask_map, _show_map,
    ),
    "tense": Skill(
        "Is the sentence in the past, present, or future tense?", "language science", "verbs", "Verb tense", (2, 3, 5),
        "The tense of a verb tells when something happens. Many past-tense verbs end in -ed. "
        "Future-tense verbs use will before the main verb.",
        ask_tense,
    ),
    "magnets": Skill(
        "Predict if magnets will attract or repel", "natural science", "physics", "Magnets", (5, 6, 7),
        "A magnet has a north pole and a south pole. Poles that are the same repel, or push apart. "
        "Poles that are different attract, or pull together. On these magnets north poles are red, south poles blue.",
        _ask_magnets, _show_magnets,
    ),
    "cost": Skill(
        "Identify opportunity costs", "social science", "economics", "Basic economic principles", (9, 10, 12),
        "A choice means giving something up. The best thing that a person gives up is the opportunity cost.",
        ask_cost,
    ),
    "rhyme": Skill(
        "Find the word that rhymes with a picture", "language science", "phonological-awareness", "Rhyming", (1, 2),
        "Words that rhyme end with the same sound.",
        _ask_rhyme, _show_rhyme,
    ),
    "layers": Skill(
        "Compare ages of rock layers", "natural science", "earth-science", "Rocks and minerals", (6, 7, 8, 9),
        "Rock layers form one on top of the other. In layers that were not disturbed, the bottom layer is the oldest "
        "and the top layer is the youngest.",
        _ask_layers, _show_layers,
    ),
    "capital": Skill(
        "Identify capitals of the world", "social science", "geography", "Cities", (4, 5, 6),
        "The capital of a country is the city where its government meets.",
        ask_capital,
    ),
    "preposition": Skill(
        "Use prepositions to describe a picture", "language science", "literacy-in-science", "Phrases and clauses",
        (1, 2, 3),
        "A preposition such as above or below tells where something is.",
        _ask_preposition, _show_preposition,
    ),
    "heat": Skill(
        "Predict heat flow", "natural science", "physics", "Thermal energy", (8, 10, 11),
        "Heat flows between objects that touch each other, from the warmer object to the colder one.",
        ask_heat,
    ),
    "bars": Skill(
        "Interpret bar graphs", "social science", "economics", "Social studies skills", (3, 8, 11, 12),
        "A bar graph shows amounts as bars. The taller a bar, the larger the amount.",
        _ask_bars, _show_bars,
    ),
    "figure": Skill(
        "Classify the figure of speech", "language science", "figurative-language", "Literary devices", (8, 9, 11, 12),
        "Figures of speech are words or phrases that use language in a nonliteral or unusual way.",
        ask_figure,
    ),
    "flower": Skill(
        "Describe the traits of an organism", "natural science", "biology", "Genes to traits", (3, 4, 7),
        "A trait is something that can be observed in an organism, such as the color of its petals.",
        _ask_flower, _show_flower,
    ),
    "concentration": Skill(
        "Compare concentrations of solutions", "natural science", "chemistry", "Solutions", (6, 7, 8, 10),
        "A solution with more particles of a substance in the same volume has a higher concentration of it.",
        _ask_concentration, _show_concentration,
    ),
    "balance": Skill(
        "Compare the masses of objects", "natural science", "physics", "Force and motion", (1, 2, 3),
        "Scales compare two objects. The side with the heavier object goes down.",
        _ask_balance, _show_balance,
    ),
    "cloth": Skill(
        "Compare properties of materials", "natural science", "chemistry", "Materials", (2, 3, 4),
        "An object has properties that can be seen, such as its color or its pattern.",
        _ask_cloth, _show_cloth,
    ),
    "flag": Skill(
        "Describe a flag", "social science", "geography", "Countries and communities", (1, 4, 5),
        "A flag is a sign of a country or a group. Many flags have stripes of different colors.",
        _ask_flag, _show_flag,
    ),
    "word": Skill(
        "Find a word", "language science", "vocabulary", "Reading", (1, 2),
        "Words that are spelled the same are the same word.",
        ask_word,
    ),
}  # fmt: skip
