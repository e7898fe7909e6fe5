"""What was decided for each tensor that backward could keep, as rows to show and to store."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch.fx import Node

from ...capture.offload import RELOAD_WAIT
from ...ir.origins import origin_of
from .choices import price_of
from .joint import is_symbol, must_recompute
from .place import Options, Part
from .transfers import Transfer


@dataclass(frozen=True)
class Decision:
    """For one tensor of forward.

    Attributes:
        tensor: its name in the joint graph.
        op: what makes it.
        nbytes: of its storage.
        decision: whether it waits in memory for backward, in a narrower form ("compress") or in
            the host's memory ("offload"), or backward makes it again.
        segment: the part of the model that makes it.
        seconds: what making it again takes by the cost model, given what it is made of.
        why: "chosen", or the reason that left no choice.
        origin: the user's line.
        form: of what is compressed: "bf16", "fp8" or "int8".
        ahead: of what is on the host, how many nodes of backward run between the start of the copy
            to the device and its first reader; the least where it is copied more than once.
        exposed: seconds that the device waits for its copies, both ways, by the cost model.
    """

    tensor: str
    op: str
    nbytes: int
    decision: Literal["keep", "recompute", "compress", "offload"]
    segment: int
    seconds: float
    why: str
    origin: str | None
    form: str = ""
    ahead: int = 0
    exposed: float = 0.0

    @property
    def price(self) -> float:
        """Seconds a byte that keeping it spares."""
        return self.seconds / self.nbytes if self.nbytes else 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def decisions(
    options: Options,
    saved: Collection[Node],
    recomputed: Collection[Node],
    parts: Iterable[Part],
    transfers: Iterable[Transfer] = (),
) -> list[Decision]:
    """One row for each storage of forward that is kept for backward or computed again, in order."""
    ahead: dict[Node, int] = {}
    exposed: dict[Node, float] = {}
    for copy in transfers:
        exposed[copy.tensor] = exposed.get(copy.tensor, 0.0) + copy.exposed
        if copy.wait.target is RELOAD_WAIT:
            ahead[copy.tensor] = min(copy.distance, ahead.get(copy.tensor, copy.distance))
    joint, segments = options.joint, options.segments
    stored = options.forms.stored
    formed = {
        node: form
        for part in parts
        for node, form in options.form_of(part).items()
        if any(
            kept in saved for kept in stored[form][node].kept
        )  # else backward needs no such form
    }
    found = []
    for node in joint.forward:
        if node in joint.extra or joint.is_view(node) or is_symbol(node) or not joint.nbytes(node):
            continue
        if isinstance(node.meta.get("val"), tuple | list):
            continue
        form = formed.get(node, "")
        kept = node in saved or bool(form)
        if not kept and node not in recomputed:
            continue
        decision: Literal["keep", "recompute", "compress", "offload"]
        decision = "keep" if node in saved else "recompute"
        if form:
            decision = "offload" if form == "host" else "compress"
        found.append(
            Decision(
                node.name,
                str(node.target),
                joint.nbytes(node),
                decision,
                segments.home[node],
                price_of(joint, node),
                _why(options, node),
                origin_of(node),
                "" if form == "host" else form,
                ahead.get(node, 0),
                exposed.get(node, 0.0),
            )
        )
    return found


def _why(options: Options, node: Node) -> str:
    reason = options.joint.why_kept(node)
    if reason is not None:
        return reason
    if must_recompute(node):
        return "marked to be computed again"
    if node in options.segments.cheap:
        return "made of inputs by few kernels"
    if node in options.segments.crossing:
        return "handed from one layer to the next"
    return "chosen"
