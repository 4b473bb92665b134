"""Cells of a CSV file that a spreadsheet would take for formulas (OWASP, "CSV Injection"), made harmless and back."""

FORMULA_MARKS = tuple("=+-@\t\r\n＝＋－＠")
"""What a cell begins with that spreadsheets may calculate, or skip before they do; the wide ones are East Asian."""
QUOTE = "'"


def harmless(cell: str) -> str:
    """A cell that spreadsheets show as it is: with an apostrophe before what may be a formula.

    And before an apostrophe, so that ``original`` can tell ours from one that was there.
    """
    return f"{QUOTE}{cell}" if cell.startswith((*FORMULA_MARKS, QUOTE)) else cell


def original(cell: str) -> str:
    """What ``harmless`` was given. Other cells stay as they are, also those that begin with a lone apostrophe."""
    return cell[1:] if cell.startswith(QUOTE) and cell[1:].startswith((*FORMULA_MARKS, QUOTE)) else cell
