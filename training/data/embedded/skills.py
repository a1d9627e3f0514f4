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

from mmcot.training.data.embedded import language_science, natural_science, social_science, texts
from mmcot.training.data.embedded.texts import Asked


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


SKILLS: dict[str, Skill] = {
    "map": Skill(
        "Read a map: cardinal directions", "social science", "geography", "Maps", (2, 3, 4),
        "Maps have four main directions: north, south, east, and west. An arrow on a map often shows where north is. "
        "With north at the top, south is at the bottom, west is at the left, and east is at the right.",
        social_science.ask_map, social_science.show_map,
    ),
    "tense": Skill(
        "Is the sentence in the past, present, or future tense?", "language science", "verbs", "Verb tense", (2, 3, 5),
        "The tense of a verb tells when something happens. Many past-tense verbs end in -ed. "
        "Future-tense verbs use will before the main verb.",
        texts.ask_tense,
    ),
    "magnets": Skill(
        "Predict if magnets will attract or repel", "natural science", "physics", "Magnets", (5, 6, 7),
        "A magnet has a north pole and a south pole. Poles that are the same repel, or push apart. "
        "Poles that are different attract, or pull together. On these magnets north poles are red, south poles blue.",
        natural_science.ask_magnets, natural_science.show_magnets,
    ),
    "cost": Skill(
        "Identify opportunity costs", "social science", "economics", "Basic economic principles", (9, 10, 12),
        "A choice means giving something up. The best thing that a person gives up is the opportunity cost.",
        texts.ask_cost,
    ),
    "rhyme": Skill(
        "Find the word that rhymes with a picture", "language science", "phonological-awareness", "Rhyming", (1, 2),
        "Words that rhyme end with the same sound.",
        language_science.ask_rhyme, language_science.show_rhyme,
    ),
    "layers": Skill(
        "Compare ages of rock layers", "natural science", "earth-science", "Rocks and minerals", (6, 7, 8, 9),
        "Rock layers form one on top of the other. In layers that were not disturbed, the bottom layer is the oldest "
        "and the top layer is the youngest.",
        natural_science.ask_layers, natural_science.show_layers,
    ),
    "capital": Skill(
        "Identify capitals of the world", "social science", "geography", "Cities", (4, 5, 6),
        "The capital of a country is the city where its government meets.",
        texts.ask_capital,
    ),
    "preposition": Skill(
        "Use prepositions to describe a picture", "language science", "literacy-in-science", "Phrases and clauses",
        (1, 2, 3),
        "A preposition such as above or below tells where something is.",
        language_science.ask_preposition, language_science.show_preposition,
    ),
    "heat": Skill(
        "Predict heat flow", "natural science", "physics", "Thermal energy", (8, 10, 11),
        "Heat flows between objects that touch each other, from the warmer object to the colder one.",
        texts.ask_heat,
    ),
    "bars": Skill(
        "Interpret bar graphs", "social science", "economics", "Social studies skills", (3, 8, 11, 12),
        "A bar graph shows amounts as bars. The taller a bar, the larger the amount.",
        social_science.ask_bars, social_science.show_bars,
    ),
    "figure": Skill(
        "Classify the figure of speech", "language science", "figurative-language", "Literary devices", (8, 9, 11, 12),
        "Figures of speech are words or phrases that use language in a nonliteral or unusual way.",
        texts.ask_figure,
    ),
    "flower": Skill(
        "Describe the traits of an organism", "natural science", "biology", "Genes to traits", (3, 4, 7),
        "A trait is something that can be observed in an organism, such as the color of its petals.",
        natural_science.ask_flower, natural_science.show_flower,
    ),
    "concentration": Skill(
        "Compare concentrations of solutions", "natural science", "chemistry", "Solutions", (6, 7, 8, 10),
        "A solution with more particles of a substance in the same volume has a higher concentration of it.",
        natural_science.ask_concentration, natural_science.show_concentration,
    ),
    "balance": Skill(
        "Compare the masses of objects", "natural science", "physics", "Force and motion", (1, 2, 3),
        "Scales compare two objects. The side with the heavier object goes down.",
        natural_science.ask_balance, natural_science.show_balance,
    ),
    "cloth": Skill(
        "Compare properties of materials", "natural science", "chemistry", "Materials", (2, 3, 4),
        "An object has properties that can be seen, such as its color or its pattern.",
        natural_science.ask_cloth, natural_science.show_cloth,
    ),
    "flag": Skill(
        "Describe a flag", "social science", "geography", "Countries and communities", (1, 4, 5),
        "A flag is a sign of a country or a group. Many flags have stripes of different colors.",
        social_science.ask_flag, social_science.show_flag,
    ),
    "word": Skill(
        "Find a word", "language science", "vocabulary", "Reading", (1, 2),
        "Words that are spelled the same are the same word.",
        texts.ask_word,
    ),
}  # fmt: skip
