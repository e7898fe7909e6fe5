"""The script that shows a failure by itself: needs torch and deepcompile, and no other file."""

from __future__ import annotations

import base64
import zlib

import torch
from torch import Tensor

from deepcompile.child.signature import Signature
from deepcompile.minify.case import Case

_INLINE = 32
"""Tensors with more elements are stored as compressed bytes."""

_HEAD = '''"""{title}

{operations}, made by `deepcompile minify`. `python {name}` exits with 1 while the
failure is there, or ends as it did. {note}
"""

{imports}
import torch

import deepcompile  # noqa: F401 torch finds the backend "deepep" by its entry point


{fn}

def inputs():
    """What `fn` is called with."""
{inputs}


'''

_FORWARD = '''def run(function):
    """Outputs, and what is in the inputs afterwards."""
    torch.manual_seed(0)
    given = inputs()
    with torch.no_grad():
        outputs = [v for v in function(*given) if isinstance(v, torch.Tensor)]
    return [v.clone() for v in outputs] + given
'''

_BACKWARD = '''def run(function):
    """Outputs, what is in the inputs afterwards, and gradients."""
    torch.manual_seed(0)
    given = [v.clone() if not v.requires_grad else v for v in inputs()]
    outputs = [v for v in function(*given) if isinstance(v, torch.Tensor)]
    found = [v.detach().clone() for v in (*outputs, *given)]
    sources = [v for v in given if v.requires_grad]
    wanted = [v for v in outputs if v.requires_grad]
    generator = torch.Generator().manual_seed(0)
    weights = [torch.rand(v.shape, generator=generator).add_(0.5).to(v) for v in wanted]
    return [*found, *torch.autograd.grad(wanted, sources, weights, allow_unused=True)]
'''

_NUMERICS = '''def difference(a, b):
    """How two tensors differ: a word and the error relative to the largest value, or None."""
    if a is None or b is None:
        return None if a is b else ("shape", 1.0)
    if a.shape != b.shape or a.dtype != b.dtype:
        return "shape", 1.0
    x, y = a.double(), b.double()
    for word, mark in (("nan", torch.isnan), ("inf", torch.isinf)):
        if not torch.equal(mark(x), mark(y)):
            return word, 1.0
    finite = x.isfinite()
    if not finite.any():
        return None
    error = float((x - y)[finite].abs().max() / x[finite].abs().max().clamp(min=1e-6))
    return ("values", error) if error > TOLERANCE.get(a.dtype, 0.0) else None


TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 6e-2}
'''

_COMPARE = """    expected, actual = run(fn), run(compiled)
    for number, (a, b) in enumerate(zip(expected, actual)):
        found = difference(a, b)
        if found is not None:
            print(f"FAILED numerics {found[0]}: value {number}, relative error {found[1]:.3g}")
            sys.exit(1)
    print("no failure")
"""

_TIME = """    torch.set_num_threads(1)
    times = []
    for function in (fn, compiled):
        run(function)
        rounds = []
        for _ in range(7):
            start = time.process_time()
            run(function)
            rounds.append(time.process_time() - start)
        times.append(min(rounds))
    print(f"eager {times[0] * 1e3:.3g} ms, compiled {times[1] * 1e3:.3g} ms")
    if times[1] - times[0] > EXCESS:
        print("FAILED slow")
        sys.exit(1)
    print("no failure")
"""

_RUN = """    run(fn)
    run(compiled)
    print("no failure")
"""


def script(case: Case, signature: Signature, *, name: str, excess: float = 0.0) -> str:
    """The text of the script.

    Args:
        excess: seconds more than eager from which on it is slow.
    """
    title = str(signature).splitlines()[0].replace('"""', "'''").replace("\\", "/")
    stored = [n for n in case.inputs if n not in case.sources]
    packed = any(case.inputs[n].numel() > _INLINE for n in stored)
    body, count = str(case.rows), case.rows.operations
    modules = {"sys": signature.kind in ("numerics", "slow"), "operator": "operator." in body}
    modules |= {"base64": packed, "time": signature.kind == "slow", "zlib": packed}
    head = _HEAD.format(
        title=title,
        operations=f"{count} operation{'s' if count > 1 else ''}",
        name=name,
        imports="".join(f"import {module}\n" for module in sorted(modules) if modules[module]),
        note="Its inputs are stored in it." if stored else "Its inputs are drawn from seeds.",
        fn=body,
        inputs=_inputs(case),
    )
    goes_back = case.backward and any(v.requires_grad for v in case.given())
    run = _BACKWARD if goes_back else _FORWARD
    arguments = ['backend="deepep"']
    if case.dynamic:
        arguments.append("dynamic=True")
    if case.options:
        arguments.append(f"options={dict(case.options)!r}")
    main = f"    compiled = torch.compile(fn, {', '.join(arguments)})\n"
    if signature.kind == "numerics":
        run, main = f"{run}\n\n{_NUMERICS}", main + _COMPARE
    elif signature.kind == "slow":
        main += _TIME.replace("EXCESS", f"{excess:.3g}")
    else:
        main += _RUN
    return f'{head}{run}\n\nif __name__ == "__main__":\n{main}'


def _inputs(case: Case) -> str:
    lines = []
    for number, name in enumerate(case.rows.inputs):
        value = case.inputs[name]
        text = made_text(case.sources.get(name, "stored"), value, number)
        if value.requires_grad:
            text += ".requires_grad_()"
        lines.append(f"    {name} = {text}")
    lines.append(f"    return [{', '.join(case.rows.inputs)}]")
    return "\n".join(lines)


def made_text(source: str, value: Tensor, seed: int) -> str:
    """The expression that makes an input; `case.made` gives the same values."""
    if source == "stored":
        return _stored(value)
    shape, generator = tuple(value.shape), f"torch.Generator().manual_seed({seed})"
    if source == "randint":
        text = f"torch.randint(0, 2, {shape}, generator={generator})"
        return f"{text}.to({value.dtype})"
    text = f"torch.{source}({shape}, generator={generator})"
    return text if value.dtype == torch.float32 else f"{text}.to({value.dtype})"


def _stored(value: Tensor) -> str:
    flat = value.detach().contiguous().cpu()
    strides = "" if value.is_contiguous() else _strides(value)
    if flat.numel() <= _INLINE and not flat.dtype.is_complex:
        items = repr(flat.tolist()).replace("nan", 'float("nan")').replace("inf", 'float("inf")')
        return f"torch.tensor({items}, dtype={flat.dtype}){strides}"
    data = bytes(flat.reshape(-1).view(torch.uint8).tolist())
    text = base64.b85encode(zlib.compress(data, 9)).decode()
    decoded = f'bytearray(zlib.decompress(base64.b85decode("{text}")))'
    shape = tuple(flat.shape)
    return f"torch.frombuffer({decoded}, dtype={flat.dtype}).reshape({shape}){strides}"


def _strides(value: Tensor) -> str:
    """The same values in the strides that they had."""
    strides = value.stride()
    order = sorted(range(value.dim()), key=lambda d: -strides[d])
    if value.permute(order).is_contiguous():
        back = sorted(range(value.dim()), key=order.__getitem__)
        return f".permute({tuple(order)}).contiguous().permute({tuple(back)})"
    return ""
