"""Other ways to make a model reason: prompting methods, their demonstrations, teachers and distillation."""

# name of a method: its module
METHODS = {
    "direct": "direct",
    "few-shot-cot": "few_shot_cot",
    "zero-shot-cot": "zero_shot_cot",
    "auto-cot": "auto_cot",
    "complexity": "complexity",
    "promptpg": "promptpg",
    "least-to-most": "least_to_most",
}
