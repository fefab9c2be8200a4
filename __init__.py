"""lamplighter explains what single neurons of a language model do, by experiment."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Subject", "UnitId"]

if TYPE_CHECKING:
    from .tools.subject import Subject
    from .tools.units import UnitId

_HOMES = {"Subject": ".tools.subject", "UnitId": ".tools.units"}


def __getattr__(name: str) -> Any:
    """Loads a public name on first use, so that `import lamplighter` costs neither torch nor transformers."""
    if name not in _HOMES:
        raise AttributeError(f"module 'lamplighter' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)
