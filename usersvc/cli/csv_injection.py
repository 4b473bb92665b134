"""CSV injection (OWASP): cells of a CSV file that a spreadsheet would take for formulas, made harmless and back."""

import re

QUOTE = "'"
SEPARATOR = ";"
"""The field separator of spreadsheets in many countries. The cell behind it is not in quotation marks there."""

_FORMULA = re.compile(
    # Spreadsheets skip white space and control characters before a formula, and take off quotation marks.
    r"[\s\x00-\x1f\x7f-\x9f\ufeff\"＂]*"
    # The full-width and small forms are East Asian.
    r"[=+\-@＝＋－＠﹦﹢﹣﹫]"
    # White space alone is marked as well, as OWASP has it; and the mark, so that `original` can tell ours.
    r"|[\t\r\n']"
)


def harmless(cell: str) -> str:
    """A cell that spreadsheets show as it is: with an apostrophe before each part that may be a formula.

    Also before an apostrophe, so that ``original`` can tell ours from one that was there.
    """
    return SEPARATOR.join(f"{QUOTE}{part}" if _FORMULA.match(part) else part for part in cell.split(SEPARATOR))


def original(cell: str) -> str:
    """What ``harmless`` was given. Other cells stay as they are, also those that begin with a lone apostrophe."""
    return SEPARATOR.join(
        part[1:] if part.startswith(QUOTE) and _FORMULA.match(part, 1) else part for part in cell.split(SEPARATOR)
    )
