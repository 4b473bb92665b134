"""Cells of a CSV file that a spreadsheet would take for formulas (OWASP, "CSV Injection"), made harmless and back."""

FORMULA_MARKS = tuple("=+-@\t\r\n＝＋－＠")
"""What a cell begins with that spreadsheets may calculate, or skip before they do; the wide ones are East Asian."""
QUOTE = "'"
SEPARATOR = ";"
"""Where spreadsheets of many countries begin another cell, which is then in no quotation marks."""


def harmless(cell: str) -> str:
    """A cell that spreadsheets show as it is: with an apostrophe before what may be a formula.

    And before an apostrophe, so that ``original`` can tell ours from one that was there.
    """
    return SEPARATOR.join(map(_harmless, cell.split(SEPARATOR)))


def original(cell: str) -> str:
    """What ``harmless`` was given. Other cells stay as they are, also those that begin with a lone apostrophe."""
    return SEPARATOR.join(map(_original, cell.split(SEPARATOR)))


def _harmless(part: str) -> str:
    return f"{QUOTE}{part}" if part.startswith((*FORMULA_MARKS, QUOTE)) else part


def _original(part: str) -> str:
    return part[1:] if part.startswith(QUOTE) and part[1:].startswith((*FORMULA_MARKS, QUOTE)) else part
