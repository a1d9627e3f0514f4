"""A problem with an image, one without and one with two."""

from PIL import Image

PROBLEM = {
    "id": "7",
    "question": "Which is red?",
    "choices": ["apple", "sky"],
    "answer": 0,
    "hint": "Look at it.",
    "image": Image.new("RGB", (20, 10), "red"),
    "lecture": "Things have colours.\nRed is one.",
    "solution": "Apples are red.",
}
PLAIN = {**PROBLEM, "id": "8", "image": None, "choices": ["a", "b", "c"]}
TWO = {**PROBLEM, "id": "9", "images": [PROBLEM["image"]] * 2}
