"""What a service says where it does not do what it was asked: a status, and the three parts of every error of gracl."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_PARTS = re.compile(r"expected (.*?); came (.*); (.*)", re.DOTALL)


@dataclass
class Refusal(Exception):
    """A request that is not answered: 4xx for what its sender can mend, 503 for later."""

    status: int
    what: str
    came: str
    do: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> bytes:
        """As JSON."""
        return json.dumps({"error": {"expected": self.what, "came": self.came, "do": self.do}}).encode()


def refusal_of(error: Exception, status: int, do: str | None = None) -> Refusal:
    """The refusal of an error of gracl, with another advice where that of a door would mislead."""
    parts = _PARTS.fullmatch(str(error))
    if parts is None:
        return Refusal(status, "a request that can be answered", str(error), do or "see the documentation")
    return Refusal(status, parts[1], parts[2], do or parts[3])
