"""Why nodes get no kernel."""

from __future__ import annotations


class CannotLower(Exception):
    """This node has no meaning in kernel IR; the message is the reason shown to the user."""


class CannotFuse(Exception):
    """These nodes cannot be one kernel; the message is the reason shown to the user."""
