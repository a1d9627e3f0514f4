"""Generated questions of language science that need their pictures: see `skills.py` for `ask` and `show`."""

from mmcot.training.data.embedded import pictures
from mmcot.training.data.embedded.texts import Asked

_RHYMES = {
    "star": ("car", "jar"), "sun": ("run", "bun"), "moon": ("spoon", "noon"), "tree": ("bee", "knee"),
    "house": ("mouse", "blouse"), "ring": ("king", "wing"), "box": ("fox", "socks"), "key": ("sea", "tea"),
}  # fmt: skip


def ask_rhyme(rng):
    things = rng.sample(list(_RHYMES), rng.randint(3, 5))
    while {"tree", "key"} <= set(things):  # these two rhyme with each other
        things = rng.sample(list(_RHYMES), len(things))
    return Asked(
        "Which word rhymes with the name of the thing in the picture?",
        [rng.choice(_RHYMES[thing]) for thing in things],
        caption="A drawing of one thing.",
    )


def show_rhyme(rng, asked, choices, answer):
    right = choices[answer]
    thing = next(name for name, words in _RHYMES.items() if right in words)
    solution = (
        f"The picture shows a {thing}. The words {thing} and {right} end with the same sound. So, {right} rhymes."
    )
    return [pictures.draw_thing(rng, thing)], solution


_RELATIONS = {"above": (0, -1), "below": (0, 1), "left of": (-1, 0), "right of": (1, 0)}


def ask_preposition(rng):
    first, second = rng.sample(["circle", "square", "triangle"], 2)
    return Asked(
        f"Which words complete the sentence? The {first} is ___ the {second}.",
        rng.sample(list(_RELATIONS), rng.randint(2, 4)),
        context="Look at the picture.",
        caption="Two shapes.",
        detail=f"{first} {second}",
    )


def show_preposition(rng, asked, choices, answer):
    first, second = asked.detail.split()
    dx, dy = _RELATIONS[choices[answer]]
    x, y = (rng.uniform(0.45, 0.55) for _ in range(2))
    apart = rng.uniform(0.2, 0.26)
    places = {first: (x + dx * apart, y + dy * apart), second: (x - dx * apart, y - dy * apart)}
    solution = (
        f"In the picture, the {first} is {choices[answer]} the {second}. So, the missing words are {choices[answer]}."
    )
    return [pictures.draw_shapes(rng, places)], solution
