"""The base package: the version, the entry points of the commands, and the generated stubs in ``polyhead.v1``."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__: str

if not TYPE_CHECKING:  # it would make every misspelt name valid

    def __getattr__(name: str) -> str:
        """Reads the version of the installed distribution when it is asked for."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import metadata

        return metadata.version("polyhead")
