"""Training text that every machine has: the Python standard library's own sources."""

from __future__ import annotations

import re
import sysconfig
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

BYTES = 256
HELD_OUT_SHARE = 10  # one file in ten
TEXT_LIMIT = 3_000_000  # characters; keeps preparation under two seconds
_CHUNK = re.compile(r"\n *|[ ]?[A-Za-z_]+|[ ]?[0-9]+|[ ]+|[ ]?[^A-Za-z_0-9\s]+|\s")


class NoTextError(RuntimeError):
    """The running Python has no readable standard library sources."""


@dataclass(frozen=True)
class Vocabulary:
    """The 256 bytes, then the most frequent chunks of the text (words, operators, indents).

    A chunk outside the vocabulary is spelled in bytes, so any text can be encoded and read back.
    """

    chunks: tuple[bytes, ...]

    @classmethod
    def count(cls, text: str, size: int) -> Vocabulary:
        """The vocabulary of `size` tokens for `text`; ties are broken alphabetically."""
        counts = Counter(chunk for chunk in _CHUNK.findall(text) if len(chunk) > 1)
        ranked = sorted(counts, key=lambda chunk: (-counts[chunk], chunk))
        return cls(tuple(chunk.encode() for chunk in ranked[: size - BYTES]))

    @cached_property
    def ids(self) -> dict[bytes, int]:
        return {chunk: BYTES + index for index, chunk in enumerate(self.chunks)}

    def encode(self, text: str) -> list[int]:
        tokens: list[int] = []
        for chunk in _CHUNK.findall(text):
            data = chunk.encode()
            known = self.ids.get(data)
            if known is None:
                tokens.extend(data)
            else:
                tokens.append(known)
        return tokens

    def decode(self, tokens: Iterable[int]) -> str:
        pieces = (bytes([t]) if t < BYTES else self.chunks[t - BYTES] for t in tokens)
        return b"".join(pieces).decode(errors="replace")


@dataclass(frozen=True)
class Corpus:
    """Tokens to train on and tokens of other files, held out."""

    vocabulary: Vocabulary
    train: Tensor
    held_out: Tensor

    def batch(self, step: int, seed: int, batch: int, context: int) -> tuple[Tensor, Tensor]:
        """Tokens and targets `[batch, context]` of a step, the same for every call."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        last = len(self.train) - context - 1
        starts = torch.randint(last, (batch,), generator=generator).tolist()
        return _windows(self.train, starts, context)

    def held_out_batches(self, count: int, batch: int, context: int) -> list[tuple[Tensor, Tensor]]:
        """`count` batches of windows spread evenly over the held-out text."""
        last = len(self.held_out) - context - 1
        starts = [index * last // (count * batch) for index in range(count * batch)]
        return [
            _windows(self.held_out, starts[first : first + batch], context)
            for first in range(0, count * batch, batch)
        ]


def load_corpus(vocabulary_size: int, text_limit: int = TEXT_LIMIT) -> Corpus:
    """Read the sources, split them by file, count the vocabulary on the training part."""
    train, held_out = _read_sources(text_limit)
    vocabulary = Vocabulary.count(train, vocabulary_size)
    return Corpus(
        vocabulary,
        torch.tensor(vocabulary.encode(train)),
        torch.tensor(vocabulary.encode(held_out)),
    )


def _read_sources(text_limit: int) -> tuple[str, str]:
    """Text to train on and held-out text; which is which depends on the file's name alone."""
    folder = Path(sysconfig.get_path("stdlib"))
    parts: tuple[list[str], list[str]] = ([], [])
    taken = 0
    for path in sorted(folder.glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="replace")
        held_out = zlib.crc32(path.name.encode()) % HELD_OUT_SHARE == 0
        parts[held_out].append(text)
        taken += len(text)
        if taken >= text_limit and all(parts):
            break
    if not all(parts):
        raise NoTextError(f"no Python sources to train on in {folder}; use a full Python install")
    return "\n".join(parts[0]), "\n".join(parts[1])


def _windows(text: Tensor, starts: Sequence[int], context: int) -> tuple[Tensor, Tensor]:
    tokens = torch.stack([text[start : start + context] for start in starts])
    targets = torch.stack([text[start + 1 : start + 1 + context] for start in starts])
    return tokens, targets
