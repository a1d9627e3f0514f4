"""Generated questions of natural science that need their pictures: see `skills.py` for `ask` and `show`."""

from mmcot.training.data.embedded import pictures
from mmcot.training.data.embedded.texts import BASIC_COLORS, Asked, some_colors


def ask_magnets(rng):
    return Asked(
        "Will these magnets attract or repel each other?",
        ["attract", "repel"],
        context="Two magnets are placed as shown.",
        caption="Two bar magnets lie side by side.",
    )


def show_magnets(rng, asked, choices, answer):
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


def ask_layers(rng):
    which = rng.choice(["oldest", "youngest"])
    return Asked(
        f"What is the color of the {which} rock layer?",
        some_colors(rng, most=4),
        caption="Rock layers lie one on top of the other.",
        detail=which,
    )


def show_layers(rng, asked, choices, answer):
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


def ask_balance(rng):
    which = rng.choice(["heavier", "lighter"])
    first, second = rng.sample(BASIC_COLORS, 2)
    return Asked(
        f"Which block is {which}?",
        [f"{first} block", f"{second} block"],
        caption="Two blocks stand on a pair of scales.",
        detail=which,
    )


def show_balance(rng, asked, choices, answer):
    right, other = (choices[i].split()[0] for i in (answer, 1 - answer))
    heavy = asked.detail == "heavier"
    left_block, right_block = rng.sample([right, other], 2)
    image = pictures.draw_balance(rng, left_block, right_block, lower=right if heavy else other)
    solution = (
        f"In the picture, the side with the {right} block is {'lower' if heavy else 'higher'}. "
        f"So, the {right} block is {asked.detail}."
    )
    return [image], solution


def ask_concentration(rng):
    color = rng.choice(["green", "purple", "orange", "pink"])
    return Asked(
        f"Which solution has a higher concentration of {color} particles?",
        ["Solution A", "Solution B", "neither; their concentrations are the same"],
        context="The picture shows two solutions, A on the left and B on the right. Both have the same volume.",
        caption="Two beakers hold particles in a liquid.",
        detail=color,
    )


def show_concentration(rng, asked, choices, answer):
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


def ask_flower(rng):
    return Asked(
        "Which trait does this flower have?",
        [f"{color} petals" for color in some_colors(rng, most=4)],
        context="The picture shows a petunia.",
        caption="A flower with six petals.",
    )


def show_flower(rng, asked, choices, answer):
    color = choices[answer].split()[0]
    solution = f"In the picture, the petals are {color}. So, this flower has {color} petals."
    return [pictures.draw_flower(rng, color)], solution


def ask_cloth(rng):
    pattern = rng.choice(["striped", "dotted"])
    names = ["first", "second", "third"][: rng.randint(2, 3)]
    return Asked(f"Which sample of cloth is {pattern}?", [f"the {name} sample" for name in names], detail=pattern)


def show_cloth(rng, asked, choices, answer):
    others = ["plain", "dotted" if asked.detail == "striped" else "striped"]
    patterns = [asked.detail if i == answer else rng.choice(others) for i in range(len(choices))]
    seen = " ".join(f"The picture of {name} is {pattern}." for name, pattern in zip(choices, patterns, strict=True))
    solution = f"{seen} So, {choices[answer]} is {asked.detail}."
    return [pictures.draw_sample(rng, pattern) for pattern in patterns], solution
