"""Other ways to make a model reason: prompting methods, their demonstrations, teachers and distillation."""
