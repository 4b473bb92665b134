"""The cursor of a page of users."""

import base64
import re
from dataclasses import dataclass

from usersvc.application.read_models import Order


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a page starts: after a position, in an order. Opaque to clients."""

    order: Order
    after: int

    def encode(self) -> str:
        """As text, for links."""
        return base64.urlsafe_b64encode(f"{self.order}.{self.after}".encode()).rstrip(b"=").decode()

    @classmethod
    def decode(cls, text: str) -> "Cursor":
        """Decode what ``encode`` returned.

        Raises:
            ValueError: it did not return this text.
        """
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True).decode("ascii")
        # 18 digits keep it within the 64 bits of a database's integer.
        match = re.fullmatch(r"(asc|desc)\.([1-9][0-9]{0,17})", raw)
        if match is None or (cursor := cls(Order(match[1]), int(match[2]))).encode() != text:
            raise ValueError("not a cursor")
        return cursor
