"""The embedded data's questions that need no picture: everything they ask can be read.

Each function draws one question; the right option stands first, and the solution is written with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

BASIC_COLORS = ("red", "blue", "green", "yellow", "purple", "orange")


@dataclass
class Asked:
    """The text of one question. `choices` gets shuffled; without a picture the right one stands first."""

    question: str
    choices: Sequence[str]
    context: str = ""
    caption: str | None = None
    solution: str = ""
    detail: str = ""  # what `show` must know of the question


def some_colors(rng: Random, least: int = 2, most: int = 5) -> list[str]:
    return rng.sample(BASIC_COLORS, rng.randint(least, most))


# natural science


def ask_heat(rng):
    hot, cold = rng.sample(["spoon", "soup", "stone", "water", "pan", "egg", "brick", "sand"], 2)
    low = rng.randint(5, 40)
    high = low + rng.randint(5, 50)
    facts = [f"The {hot} has a temperature of {high}°C.", f"The {cold} has a temperature of {low}°C."]
    rng.shuffle(facts)
    right = f"from the {hot} to the {cold}"
    return Asked(
        "In which direction does heat flow?",
        [right, f"from the {cold} to the {hot}"],
        context=f"The {min(hot, cold)} and the {max(hot, cold)} touch each other. {' '.join(facts)}",
        solution=f"The {hot} is warmer than the {cold}. Heat flows from the warmer object. So, heat flows {right}.",
    )


# social science

_CAPITALS = {
    "Argentina": "Buenos Aires", "Austria": "Vienna", "Belgium": "Brussels", "Cuba": "Havana", "Denmark": "Copenhagen",
    "Egypt": "Cairo", "Finland": "Helsinki", "France": "Paris", "Germany": "Berlin", "Ghana": "Accra",
    "Greece": "Athens", "Hungary": "Budapest", "India": "New Delhi", "Iran": "Tehran", "Ireland": "Dublin",
    "Italy": "Rome", "Japan": "Tokyo", "Kenya": "Nairobi", "Norway": "Oslo", "Peru": "Lima", "Poland": "Warsaw",
    "Portugal": "Lisbon", "Russia": "Moscow", "Spain": "Madrid", "Sweden": "Stockholm",
}  # fmt: skip


def ask_capital(rng):
    country, *others = rng.sample(list(_CAPITALS), rng.randint(3, 5))
    return Asked(
        f"What is the capital of {country}?",
        [_CAPITALS[name] for name in (country, *others)],
        solution=f"Countries have one capital. The capital of {country} is {_CAPITALS[country]}.",
    )


def ask_cost(rng):
    name = rng.choice(["Ada", "Ben", "Cleo", "Dev", "Emma", "Finn", "Gina", "Hugo"])
    things = [
        "ride a horse",
        "see a film",
        "play chess",
        "visit a museum",
        "bake a cake",
        "paint a wall",
        "go swimming",
    ]
    picked, missed, *unrelated = rng.sample(things, rng.randint(3, 4))
    return Asked(
        f"What is {name}'s opportunity cost?",
        [f"to {missed}", *(f"to {thing}" for thing in (picked, *unrelated))],
        context=f"{name} can {min(picked, missed)} or {max(picked, missed)}. {name} decides to {picked}.",
        solution=f"{name} gives up the chance to {missed}. So, the opportunity cost is to {missed}.",
    )


# language science

_VERBS = {
    "paint": "painted", "water": "watered", "clean": "cleaned", "plant": "planted", "count": "counted",
    "watch": "watched", "open": "opened", "visit": "visited",
}  # fmt: skip


def ask_tense(rng):
    verb = rng.choice(list(_VERBS))
    who = rng.choice(["Mona", "Tariq", "Lucy", "Omar", "The girls", "My uncle"])
    what = rng.choice(["the garden", "the room", "a tree", "the boats", "a house", "the flowers"])
    tense = rng.choice(["past tense", "present tense", "future tense"])
    present = verb if who == "The girls" else verb + ("es" if verb.endswith("ch") else "s")
    form = {"past tense": _VERBS[verb], "present tense": present, "future tense": f"will {verb}"}[tense]
    return Asked(
        f"Which tense does the sentence use? {who} {form} {what}.",
        [tense, *(t for t in ("past tense", "present tense", "future tense") if t != tense)],
        solution=f"The verb is {form}. So, the sentence is in {tense}.",
    )


_FIGURES = {
    "simile": ("is as {0} as {1}", "compares two things with the word as"),
    "metaphor": ("is {1}", "says that one thing is another"),
    "hyperbole": ("is the {2} thing in a million worlds", "exaggerates"),
    "understatement": ("is not exactly the {2} thing ever", "says less than is meant"),
}
_LIKENESSES = [
    ("bright", "a lamp", "brightest"), ("cold", "a winter night", "coldest"), ("quiet", "a mouse", "quietest"),
    ("loud", "a storm", "loudest"), ("slow", "a snail", "slowest"), ("strong", "an oak", "strongest"),
]  # fmt: skip


def ask_figure(rng):
    who = rng.choice(["Her voice", "His brother", "The old house", "That song", "Our neighbor", "The road home"])
    figure, *others = rng.sample(list(_FIGURES), rng.randint(2, 4))
    words, reason = _FIGURES[figure]
    return Asked(
        f"Which figure of speech is used in this text? {who} {words.format(*rng.choice(_LIKENESSES))}.",
        [figure, *others],
        solution=f"The text {reason}. So, the text uses {figure}.",
    )


def ask_word(rng):
    words = some_colors(rng, most=3)
    return Asked(f"Which option says {words[0]}?", words, solution=f"So, {words[0]}.")
