"""What changed between two states of a graph, line by line, by the names of nodes.

A node is itself under its name wherever its line stands, so one line that is new does not make its
neighbours look changed. Lines that stand in both, in the same order, are the longest increasing
sequence of places; the rest was removed, added, or both: moved.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence

Edit = int | str | list[str]
"""A step from the lines before to those after: n > 0 keeps n lines, n < 0 removes -n of them, a
text adds a line, and a list of one text puts it in place of one line."""

_NAME = re.compile(r"\s*%(\S+)")


def keys_of(lines: Sequence[str]) -> list[str]:
    """What each line is known by: the name of its node, else its text, and the body it is in."""
    seen: dict[str, int] = {}
    inside = [""]
    found = []
    for line in lines:
        match = _NAME.match(line)
        text = line.strip()
        if match is None and text == "}" and len(inside) > 1:
            inside.pop()
        key = f"{inside[-1]}\n%{match[1]}" if match else f"{inside[-1]}\n{text}"
        if match is None and text.endswith("{"):
            inside.append(key)
        count = seen[key] = seen.get(key, 0) + 1
        found.append(key if count == 1 else f"{key}\n{count}")
    return found


def edits(before: Sequence[str], after: Sequence[str]) -> list[Edit]:
    """The steps that make the lines `after` of those `before`."""
    kept = _kept(keys_of(before), keys_of(after))
    found: list[Edit] = []
    left = right = 0
    for a, b in [*kept, (len(before), len(after))]:
        if a > left:
            found.append(left - a)
        found += after[right:b]
        if a == len(before):
            break
        if before[a] == after[b]:
            if found and isinstance(found[-1], int) and found[-1] > 0:
                found[-1] += 1
            else:
                found.append(1)
        else:
            found.append([after[b]])
        left, right = a + 1, b + 1
    return found


def _kept(before: Sequence[str], after: Sequence[str]) -> list[tuple[int, int]]:
    """Places before and after of the lines that are in both in the same order; as many as can."""
    places = {key: place for place, key in enumerate(before)}
    pairs = [(places[key], place) for place, key in enumerate(after) if key in places]
    ends: list[int] = []  # the least place before that a sequence of each length ends with
    at: list[int] = []
    previous: list[int] = []
    for number, (place, _) in enumerate(pairs):
        length = bisect_left(ends, place)
        previous.append(at[length - 1] if length else -1)
        if length == len(ends):
            ends.append(place)
            at.append(number)
        else:
            ends[length] = place
            at[length] = number
    found = []
    number = at[-1] if at else -1
    while number >= 0:
        found.append(pairs[number])
        number = previous[number]
    return found[::-1]
