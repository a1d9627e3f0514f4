"""Errors that a user of the models can mend. Imported first, as it checks transformers' version."""

import transformers


class ModelError(ValueError):
    """One line that says which file, option or input is wrong, and what to do.

    A command line tells it by `user_error`: `isinstance` fails between the copies of this file that transformers loads
    from different folders.
    """

    user_error = True


class ModelFileError(ModelError, OSError):
    """A repository or one of its files is missing or can't be read."""


class VersionError(ModelError, ImportError):
    """transformers is too old."""


if tuple(int(part) for part in transformers.__version__.split(".")[:2]) < (5, 15):
    found = transformers.__version__
    raise VersionError(f"mmcot needs transformers >= 5.15, this is {found}: pip install -U transformers")

__all__ = ["ModelError", "ModelFileError", "VersionError"]
