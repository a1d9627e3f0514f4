"""The one kind of error that a user of the models can mend."""


class ModelError(ValueError):
    """One line that says which file, option or input is wrong and what to do.

    A command line tells it by `user_error`: `isinstance` fails between the copies of this file that transformers loads
    from different folders.
    """

    user_error = True


__all__ = ["ModelError"]
