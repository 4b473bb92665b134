"""Protection against CSV injection (OWASP): escapes cells that a spreadsheet would run as formulas."""

import re

QUOTE = "'"
SEPARATOR = ";"
"""The field separator of spreadsheets in many countries. The text after it begins an unquoted cell there."""

_FORMULA = re.compile(
    # Spreadsheets skip white space and control characters before a formula, and remove quotation marks.
    r"[\s\x00-\x1f\x7f-\x9f\ufeff\"＂]*"
    # The full-width and small forms are East Asian.
    r"[=+\-@＝＋－＠﹦﹢﹣﹫]"
    # OWASP also lists tabs and line breaks. The apostrophe is escaped to be unambiguous for `unescape`.
    r"|[\t\r\n']"
)


def escape(cell: str) -> str:
    """Put an apostrophe before each part of a cell that may be a formula, or that begins with an apostrophe."""
    return SEPARATOR.join(f"{QUOTE}{part}" if _FORMULA.match(part) else part for part in cell.split(SEPARATOR))


def unescape(cell: str) -> str:
    """Undo ``escape``. Other cells are unchanged, also those with a single apostrophe at the beginning."""
    return SEPARATOR.join(
        part[1:] if part.startswith(QUOTE) and _FORMULA.match(part, 1) else part for part in cell.split(SEPARATOR)
    )
