"""Errors that a user can fix. `main` prints each in a line or two, without a traceback.

UserError
├── SettingError        an argument is outside its range
├── ConfigurationError  a YAML file can't be used
├── NetworkError        a network does not turn images into logits
├── ArchiveError        an MNIST archive is missing or damaged, and can't be downloaded
├── CheckpointError     a checkpoint is missing, damaged, or can't be used here
├── PhotoError          a photo can't be found or read, or shows no digit
└── OutputError         a file can't be written
"""

LONGEST = 200  # letters of a text in a message


def printable(text: str) -> str:
    """Return a text without letters that would change a terminal, such as colour codes. Line breaks stay."""
    return "".join(letter if letter.isprintable() or letter == "\n" else repr(letter)[1:-1] for letter in text)


def in_a_line(text: object, longest: int = LONGEST) -> str:
    """Return the first line of a text that comes from a file or a library, so that a message can quote it."""
    lines = str(text).split("\n")
    line = next((line.strip() for line in lines if line.strip()), "")
    shown = printable(line[: longest + 1])
    return shown if len(shown) <= longest else f"{shown[: longest - 4]} ..."


class UserError(Exception):
    """An error that the user can fix.

    Args:
        message: What was found, what was expected, and what to do.
        argument: The name of the argument that was wrong. The command line knows its flag.
    """

    argument: str | None = None

    def __init__(self, message: str, argument: str | None = None) -> None:
        super().__init__(printable(message))
        self.argument = argument or self.argument


def first_cause(error: BaseException) -> BaseException:
    """Return the error that was raised first, before libraries turned it into others."""
    return first_cause(error.__cause__) if error.__cause__ else error


class SettingError(UserError, ValueError):
    """An argument is outside its range.

    Args:
        argument: The name of the argument.
        value: The value that was given.
        expected: Which values it accepts.
    """

    def __init__(self, argument: str, value: object, expected: str) -> None:
        super().__init__(f"{argument} is {in_a_line(value)}; expected {expected}", argument)


class ConfigurationError(UserError):
    """A YAML file can't be used."""

    argument = "config"


class NetworkError(UserError):
    """A network does not turn images into logits."""

    argument = "network"


class ArchiveError(UserError):
    """An MNIST archive is missing or damaged, and can't be downloaded."""

    argument = "root"


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or can't be used here."""

    argument = "checkpoint"


class PhotoError(UserError):
    """A photo can't be found or read, or shows no digit."""


class OutputError(UserError):
    """A file can't be written."""
