"""An empty mapping that can be shared.

An empty dict takes 64 bytes, and one that was emptied a good 200. Tables that most objects never use begin as
`NOTHING` and are replaced, not changed, when an entry comes or goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

NOTHING: Final[Mapping[Any, Any]] = MappingProxyType({})
