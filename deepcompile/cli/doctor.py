"""`deepcompile doctor`: does everything that a compile needs work here?"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import click

import deepcompile
from deepcompile.cache_dir import cache_dir, make_cache_dir, rates_file
from deepcompile.cli.exit import Exit
from deepcompile.cli.output import json_option, print_json, table
from deepcompile.cost.calibration import Measured, load_measured, save_measured
from deepcompile.cost.rates import Rates
from deepcompile.errors import CalibrationError, CompilerMissing
from deepcompile.options import Options
from deepcompile.runtime.build import find_compiler

LINKS = ("passes", "codegen", "runtime")
_PROGRAM = 'extern "C" int deepcompile_doctor(int x) { return x + 1; }\n'


@dataclass(frozen=True)
class Finding:
    """One check: `ok` is None for what is only told."""

    name: str
    ok: bool | None
    detail: str


@click.command(epilog="Example: deepcompile doctor --compile")
@click.option(
    "--compile", "compiles", is_flag=True, help="Also compile a tiny function (loads torch)."
)
@click.option(
    "--calibrate",
    is_flag=True,
    help="First measure, in seconds, how fast this machine is, for memory_budget (loads torch).",
)
@json_option
def doctor(compiles: bool, calibrate: bool, as_json: bool) -> Exit:
    """Check this installation; exit status 1 when something is wrong."""
    checks = [_calibrate] if calibrate else []
    checks += [*_CHECKS, _tiny_compile] if compiles else _CHECKS
    findings = [finding for check in checks for finding in check()]
    healthy = all(finding.ok is not False for finding in findings)
    if as_json:
        print_json("doctor", ok=healthy, findings=[asdict(finding) for finding in findings])
    else:
        words = {True: "ok", False: "WRONG", None: ""}
        rows = [(f.name, words[f.ok], f.detail) for f in findings]
        click.echo(table(("CHECK", "", "FOUND"), rows))
    return Exit.OK if healthy else Exit.NO


def _versions() -> list[Finding]:
    findings = [
        Finding("deepcompile", None, f"{deepcompile.__version__} in {Path(__file__).parents[1]}"),
        Finding("python", None, f"{platform.python_version()} on {platform.platform()}"),
    ]
    without = {"scipy": "; plans for memory_budget are greedy, with no bound"}
    for package, needed in (("torch", True), ("triton", False), ("scipy", False)):
        try:
            findings.append(Finding(package, True if needed else None, metadata.version(package)))
        except metadata.PackageNotFoundError:
            lacking = "not installed" + without.get(package, "")
            findings.append(Finding(package, False if needed else None, lacking))
    return findings


def _compiler() -> list[Finding]:
    """The compiler that a compile would take, tried on a tiny program."""
    try:
        words = find_compiler()
    except CompilerMissing as error:
        return [Finding("C++ compiler", False, f"{error}; models on the CPU run in eager")]
    found = " ".join(words)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "doctor.cpp")
        source.write_text(_PROGRAM)
        command = [*words, "-shared", "-fPIC", "-O1", str(source), "-o", f"{folder}/doctor.so"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return [Finding("C++ compiler", False, f"{found} does not run: {error}")]
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[0]
        return [Finding("C++ compiler", False, f"{found} fails: {reason}")]
    wanted = os.environ.get("CXX", "")
    if wanted and not found.startswith(shutil.which(wanted.split()[0]) or "\0"):
        found = f"{found}, for there is no {wanted}"
    return [Finding("C++ compiler", True, found)]


def _entry_point() -> list[Finding]:
    found = [e.value for e in metadata.entry_points(group="torch_dynamo_backends", name="deepep")]
    if not found:
        hint = "not found; install the package, e.g. pip install -e ."
        return [Finding('backend="deepep"', False, hint)]
    return [Finding('backend="deepep"', True, found[0])]


def _cache() -> list[Finding]:
    folder = cache_dir()
    try:
        make_cache_dir(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return [Finding("cache", False, f"{folder} is not writable: {error}; kernels are rebuilt")]
    return [Finding("cache", True, f"{folder} is writable")]


def _rates() -> list[Finding]:
    """Which rates of the device plans are made by."""
    options = Options.resolve()
    if options.rates == "table":
        return [Finding("rates", None, "of the table: the option rates says so")]
    file = rates_file(options)
    try:
        known = load_measured(file)
    except CalibrationError as error:
        return [Finding("rates", False, f"{error}; plans use the table")]
    if not known:
        return [Finding("rates", None, "of the table; --calibrate measures this machine's")]
    machines = "; ".join(f"{entry.machine} ({entry.date})" for entry in known)
    return [Finding("rates", None, f"{file} has those of {machines}")]


def _links() -> list[Finding]:
    package = Path(__file__).parents[1]
    checkout = package.parent
    if not (checkout / "pyproject.toml").is_file():
        return []
    broken = [n for n in LINKS if (checkout / n).resolve() != (package / n).resolve()]
    if broken:
        return [Finding("links", False, f"{', '.join(broken)} do not lead into the package")]
    return [Finding("links", True, f"{', '.join(LINKS)} in {checkout}")]


def _tiny_compile() -> list[Finding]:
    import torch

    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return [finding for device in devices for finding in _tiny_compile_on(device)]


def _tiny_compile_on(device: str) -> list[Finding]:
    import torch

    name = f"tiny compile on {device}"
    x = torch.linspace(-1, 1, 64, device=device)
    compiled = torch.compile(
        lambda t: torch.softmax(t * 2, 0), backend="deepep", options={"strict": True}
    )
    try:
        error = float((compiled(x) - torch.softmax(x * 2, 0)).abs().max())
    except Exception as failure:  # whatever it is, it is the finding
        reason = f"{type(failure).__name__}: {failure}".splitlines()[0]
        return [Finding(name, False, reason)]
    return [Finding(name, error < 1e-5, f"max error {error:.1e}")]


def _calibrate() -> list[Finding]:
    """Measure every kind of device that is here, for plans to come."""
    import torch

    from deepcompile.runtime.measured_rates import measure_rates, table_of

    names = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    devices = [torch.device(name) for name in names]
    found = [measure_rates(device) for device in devices]
    save_measured(rates_file(), found)
    return [
        Finding(f"measured on {device}", True, _in_words(measured, table_of(device)))
        for device, measured in zip(devices, found, strict=True)
    ]


def _in_words(measured: Measured, table: Rates) -> str:
    """What was measured, each with what the table says."""
    rows = [
        (dtype, rate / 1e9, table.flops[dtype] / 1e9, "GFLOP/s")
        for dtype, rate in measured.flops.items()
    ]
    rows.append(("memory", measured.bandwidth / 1e9, table.bandwidth / 1e9, "GB/s"))
    rows += [
        (way.replace("_", " "), rate / 1e9, table.link / 1e9, "GB/s")
        for way, rate in measured.link.items()
    ]
    rows.append(("a call", measured.launch * 1e6, table.launch * 1e6, "us"))
    return ", ".join(
        f"{what} {is_:.3g} {unit} (table {said:.3g})" for what, is_, said, unit in rows
    )


_CHECKS: list[Callable[[], list[Finding]]] = [
    _versions,
    _compiler,
    _entry_point,
    _cache,
    _rates,
    _links,
]
