"""What the system says of the processor."""

from __future__ import annotations

import platform
from functools import lru_cache


def processor_vendor() -> str:
    """The vendor that the first processor names, or "" when the system does not say."""
    return _first("vendor_id")


def processor_name() -> str:
    """The model of the first processor, else the machine's type, e.g. "x86_64"."""
    return _first("model name") or platform.machine()


@lru_cache(maxsize=2)
def _first(field: str) -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf8") as info:
            for line in info:
                name, _, value = line.partition(":")
                if name.strip() == field:
                    return value.strip()
    except OSError:
        pass
    return ""
