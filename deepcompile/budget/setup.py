"""From the options of a compile to what splits its joint graphs."""

from __future__ import annotations

from functools import partial

import torch

from ..errors import OptionError
from ..options import Options
from ..passes.checkpoints.forms import allowed_forms
from ..runtime.device import uses_triton
from ..runtime.measured_rates import rates_for
from .ledger import Ledger, joint_smallest
from .plan_file import load_plans
from .shares import Share
from .split import BudgetedSplit, Decided, MakeProgram, budget_bytes

_CUDA_GRANULE = 512


def budgeted_split(
    options: Options,
    device: torch.device,
    make_program: MakeProgram,
    decided: Decided,
    ledger: Ledger,
    share: Share | None,
) -> BudgetedSplit | None:
    """What splits joint graphs so that the step fits `memory_budget`; None without one.

    Args:
        options: of the compile.
        device: that it is for.
        make_program: see `BudgetedSplit`; so is `decided`.
        ledger: of the graphs that share the budget.
        share: of the graph that Dynamo compiles now; None: what the others leave.

    Raises:
        OptionError: for a plan file that cannot be read.
    """
    if options.memory_budget is None:
        if options.memory_plan is not None:
            raise OptionError("memory_plan has no effect without memory_budget: give both")
        return None
    frame = ledger.frame()
    offload = options.offload == "on" or (options.offload == "auto" and device.type == "cuda")
    return BudgetedSplit(
        budget_bytes(options.memory_budget, device),
        rates_for(options, device),
        make_program,
        decided,
        optimizer_bytes=options.optimizer_bytes,
        granule=_CUDA_GRANULE if uses_triton(device, options.codegen) else 1,
        # Other kernels have sums in the same order; on a GPU, bits rest on Triton's choices too.
        bit_exact=options.deterministic and uses_triton(device, options.codegen),
        share=share or ledger.share(frame),
        joint_smallest=partial(joint_smallest, ledger, frame),
        forms=allowed_forms(options.compress, offload),
        plans=load_plans(options.memory_plan) if options.memory_plan else None,
    )
