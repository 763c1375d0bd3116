"""Exit codes of the command line, and errors in one line."""

FINISHED, FAILED, BAD_INPUT, DRAINED = 0, 1, 2, 3


MAX_ERROR = 2000


class FailedError(Exception):
    """Ends a command with FAILED; its text says all there is to know, in one line."""


def one_line(error: BaseException) -> str:
    """What an error says in one line of printable characters; several mistakes are separated by semicolons."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = "; ".join(lines) or type(error).__name__
    printable = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return printable if len(printable) <= MAX_ERROR else f"{printable[:MAX_ERROR]}..."


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its type if it says nothing."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def unbroken(error: BaseException) -> str:
    """What an error says without line breaks, at most 500 characters of it; its type if it says nothing."""
    return " ".join(str(error).split())[:500] or type(error).__name__
