"""The order of a bisection: good and bad, the pass, the rewrite, the kernel, the two commands."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from deepcompile.bisect.outcome import Application, Outcome, applications, change, numbered
from deepcompile.bisect.result import Culprit, Level, Result
from deepcompile.bisect.search import Found, Verdict, search
from deepcompile.bisect.subject import ModelSubject, Settings, Subject, Trial, run_all
from deepcompile.child.probe import Fail, is_of_kind
from deepcompile.child.signature import Signature
from deepcompile.inspect.reader import Run

ALL = str(10**9)
"""A limit that holds nothing back, under which what is counted is recorded."""
SLOWER = 1.5
"""How much slower than without passes something must be to be called slow."""
Say = Callable[[str], None]


class NotReproduced(Exception):
    """There is nothing to bisect; the text says what was seen."""


class Bisection:
    """One bisection of one subject.

    Args:
        fail: what to look for; a failure of another kind tells nothing.
        base: settings that hold for all runs.
        level: how deep to go.
        graph: only applications to this graph are suspects.
        limits: only applications between these numbers are.
        say: receives a line at each step.
    """

    def __init__(
        self,
        subject: Subject,
        fail: Fail,
        *,
        base: Settings,
        level: Level = "kernel",
        graph: str | None = None,
        limits: tuple[int, int] | None = None,
        jobs: int = 1,
        say: Say,
        place: Path,
        slower: float = SLOWER,
    ) -> None:
        self.subject = subject
        self.fail = fail
        self.base = dict(base)
        self.level = level
        self.graph = graph
        self.limits = limits
        self.jobs = jobs
        self.say = say
        self.place = place
        self.slower = slower
        self.numbers = itertools.count()
        self.seed = 0
        self.reference: Signature | None = None
        self.slow_from: float | None = None
        self.others: dict[str, None] = {}

    # -- runs ------------------------------------------------------------------------------------

    def _trials(self, trials: Sequence[Trial]) -> list[Outcome]:
        places = [self.place / f"{next(self.numbers):03d}" for _ in trials]
        return run_all(self.subject, list(zip(trials, places, strict=True)), self.jobs)

    def _run(self, settings: Settings = {}, **fields: Any) -> Outcome:  # noqa: B006
        trial = Trial({**self.base, **settings}, fields.pop("seed", self.seed), **fields)
        return self._twice_if_slow([trial])[0]

    def _verdict(self, outcome: Outcome) -> Verdict:
        if outcome.is_skip:
            return "skip"
        failure = outcome.failure
        if failure is None:
            if self.slow_from is None or outcome.seconds is None:
                return "good"
            return "bad" if outcome.seconds > self.slow_from else "good"
        same = self.reference is None or self.fail in ("exit", "slow")
        if not is_of_kind(failure, self.fail) or not (same or failure.matches(self.reference)):  # type: ignore[arg-type]
            self.others.setdefault(str(failure).splitlines()[0])
            return "skip"
        return "bad"

    def _search(
        self, option: Callable[[int], Settings], good: int, bad: int, base: Settings
    ) -> tuple[Found, dict[int, Outcome]]:
        outcomes: dict[int, Outcome] = {}

        def ask(limits: Sequence[int]) -> list[Verdict]:
            settings = [{**self.base, **base, **option(limit)} for limit in limits]
            got = self._twice_if_slow([Trial(s, self.seed) for s in settings])
            outcomes.update(zip(limits, got, strict=True))
            verdicts = [self._verdict(outcome) for outcome in got]
            for limit, verdict in zip(limits, verdicts, strict=True):
                text = " ".join(f"{k}={v}" for k, v in option(limit).items())
                self.say(f"  {text}: {verdict}")
            return verdicts

        checks = 2 if "opt_limit" in option(bad) else 1
        return search(good, bad, ask, jobs=self.jobs, checks=checks), outcomes

    def _twice_if_slow(self, trials: Sequence[Trial]) -> list[Outcome]:
        """Others may use the machine too: what is slow is timed once more."""
        found = self._trials(trials)
        for place, outcome in enumerate(found):
            if self.slow_from is not None and (outcome.seconds or 0.0) > self.slow_from:
                found[place] = _faster(outcome, self._trials([trials[place]])[0])
        return found

    # -- steps -----------------------------------------------------------------------------------

    def run(self) -> Result:
        """All steps.

        Raises:
            NotReproduced: what is to be good is bad, or what is to be bad is good.
        """
        seeds = self._confirm()
        culprits = [self._pass()]
        if self.level != "pass" and culprits[0].name not in (None, "recompute"):
            culprits.append(self._rewrite(culprits[0]))
        if self.level == "kernel":
            culprits.append(self._kernel())
        assert self.reference is not None
        named = [c for c in culprits if c.name is not None and c.found is not None]
        last = named[-1] if named else culprits[0]
        good, bad = ({**self.base, **settings} for settings in (last.good, last.bad))
        lines = [
            self.subject.line(Trial(settings, self.seed), self.slow_from)
            for settings in (good, bad)
        ]
        fresh = self._fresh(good, bad) if named else None
        return Result(
            self.reference, culprits, lines[0], lines[1], fresh, seeds, next(self.numbers),
            list(self.others),
        )  # fmt: skip

    def _confirm(self) -> dict[int, str]:
        """Eager is good and compiled is bad; otherwise there is nothing to find."""
        self.say("without the compiler")
        seeds = list(self.subject.seeds)
        fresh = self.subject.is_fresh()
        eager = self._trials([Trial(self.base, s, True) for s in (seeds[:1] if fresh else seeds)])
        for outcome in eager:
            if outcome.failure is not None or outcome.is_skip:
                said = outcome.failure or "exit status 125"
                raise NotReproduced(
                    f"without the compiler it fails too (seed {outcome.seed}): {said}"
                )
            if outcome.compiles == 0:
                raise NotReproduced("the command compiles nothing: no torch.compile was called")
        self.say("with all passes")
        full = {**self.base, "opt_limit": ALL}
        outcomes = self._trials([Trial(full, seed) for seed in seeds])
        if self.fail == "slow":
            return self._confirm_slow(outcomes)
        seen = {o.seed: str(o.failure or ("skip" if o.is_skip else "good")) for o in outcomes}
        bad = [o for o in outcomes if self._verdict(o) == "bad"]
        if not bad:
            raise NotReproduced(f"no failure of kind {self.fail!r}: {_seen(seen)}")
        self._choose(bad[0])
        if len(bad) < len(outcomes):
            self.say(f"  not for every seed: {_seen(seen)}")
        return seen

    def _choose(self, outcome: Outcome) -> None:
        self.seed = outcome.seed
        self.reference = outcome.failure
        self.full = outcome
        self.say(f"  {outcome.failure}")

    def _confirm_slow(self, outcomes: Sequence[Outcome]) -> dict[int, str]:
        without = _faster(self._run({"opt_limit": "0"}), self._run({"opt_limit": "0"}))
        for outcome in (*outcomes, without):
            if outcome.failure is not None or outcome.seconds is None:
                raise NotReproduced(f"it fails before it can be slow: {outcome.failure}")
        assert without.seconds is not None
        seconds = {o.seed: o.seconds or 0.0 for o in outcomes}
        least = min(seconds.values())
        seen = {seed: f"{value * 1e3:.3g} ms" for seed, value in seconds.items()}
        text = f"{least * 1e3:.3g} ms against {without.seconds * 1e3:.3g} ms without passes"
        if least < self.slower * without.seconds:
            raise NotReproduced(f"it is not {self.slower:g} times slower with passes: {text}")
        self.slow_from = math.sqrt(least * without.seconds)
        failure = Signature("slow", "", text, least / without.seconds)
        self._choose(replace(outcomes[0], failure=failure))
        return seen

    def _pass(self) -> Culprit:
        self.say("which pass")
        run = self.full.read()
        known = applications(run) if run is not None else {}
        last = max(known, default=0)
        low, high = 0, last
        suspects = [n for n, a in known.items() if self.graph is None or a.graph == self.graph]
        if self.graph is not None:
            if not suspects:
                names = ", ".join(dict.fromkeys(a.graph for a in known.values()))
                raise NotReproduced(f"no pass ran on a graph {self.graph!r}; there are {names}")
            low, high = min(suspects) - 1, max(suspects)
        if self.limits is not None:
            low, high = max(low, self.limits[0]), min(high, self.limits[1])
        before = self._verdict(self._run({"opt_limit": str(low)}))
        self.say(f"  opt_limit={low}: {before}")
        none = Culprit("pass", None, total=last, found=Found(low, low, {low: before}))
        none.good = none.bad = {"opt_limit": str(low)}
        if before != "good":
            none.note = _before(low, before)
            return none
        if (low, high) != (0, last):
            after = self._verdict(self._run({"opt_limit": str(high)}))
            self.say(f"  opt_limit={high}: {after}")
            if after != "bad":
                none.note = f"with the first {high} applications it is {after}: look further back"
                return none
        found, outcomes = self._search(lambda n: {"opt_limit": str(n)}, low, high, {})
        return self._named_pass(found, outcomes.get(found.first_bad, self.full), known, last)

    def _named_pass(
        self, found: Found, outcome: Outcome, known: Mapping[int, Application], last: int
    ) -> Culprit:
        run = outcome.read()
        known = {**known, **(applications(run) if run is not None else {})}
        application = known.get(found.first_bad)
        culprit = Culprit("pass", "?", number=found.first_bad, total=last, found=found)
        culprit.good = {"opt_limit": str(found.last_good)}
        culprit.bad = {"opt_limit": str(found.first_bad)}
        if application is not None:
            culprit.name, culprit.where = application.pass_name, application.graph
            culprit.diff = change(run, application) if run is not None else None
        if not found.is_exact:
            names = [
                str(known[n]) for n in range(found.last_good + 1, found.first_bad) if n in known
            ]
            culprit.note = f"or one of those that could not be told from it: {', '.join(names)}"
        self.known = known
        return culprit

    def _rewrite(self, culprit: Culprit) -> Culprit:
        self.say(f"which rewrite of {culprit.name}")
        name, number = culprit.name or "", culprit.number or 0
        own = [a for a in self.known.values() if a.pass_name == name and a.number <= number]
        before = sum(a.rewrites for a in own if a.number < number)
        count = sum(a.rewrites for a in own if a.number == number)
        base = {"opt_limit": str(number)}

        def option(limit: int) -> Settings:
            return {"rewrite_limit": f"{name}:{limit}"}

        result = Culprit("rewrite", None, total=count)
        verdict = self._verdict(self._run({**base, **option(before)}))
        self.say(f"  rewrite_limit={name}:{before}: {verdict}")
        if verdict != "good":
            result.note = f"{name} is {verdict} with none of its rewrites"
            return result
        high = before + count
        if not count:
            # A pass that failed did not say how many rewrites it made.
            power = self._first_bad_power(lambda n: {**base, **option(n)}, before)
            if power is None:
                result.note = f"{name} asks for no leave for what it does here"
                return result
            high = power
        found, outcomes = self._search(option, before, high, base)
        last = outcomes.get(found.first_bad) or self._run({**base, **option(found.first_bad)})
        run = last.read()
        fields = (numbered(run, "rewrite") if run is not None else {}).get(found.first_bad, {})
        result.name = str(fields.get("rewrite", f"rewrite {found.first_bad - before}"))
        result.where = f"at {fields['node']}" if fields.get("node") else ""
        result.number, result.found = found.first_bad - before, found
        result.good, result.bad = (
            {**base, **option(n)} for n in (found.last_good, found.first_bad)
        )
        if run is not None and culprit.number in (known := applications(run)):
            result.diff = self._rewrite_change(found, outcomes, run, known[culprit.number])
        return result

    def _rewrite_change(
        self, found: Found, outcomes: Mapping[int, Outcome], run: Run, application: Application
    ) -> tuple[str, str] | None:
        """The pass without and with the one rewrite."""
        good = outcomes.get(found.last_good)
        with_it = change(run, application)
        other = good.read() if good is not None else None
        without = change(other, application) if other is not None else None
        if with_it is None or without is None:
            return with_it
        return without[1], with_it[1]

    def _first_bad_power(self, settings: Callable[[int], Settings], start: int) -> int | None:
        for step in (1, 4, 16, 64, 256, 1024, 4096):
            if self._verdict(self._run(settings(start + step))) == "bad":
                return start + step
        return None

    def _kernel(self) -> Culprit:
        self.say("which kernel")
        result = Culprit("kernel", None)
        none = self._run({"kernel_limit": "0"})
        verdict = self._verdict(none)
        self.say(f"  kernel_limit=0: {verdict}")
        if verdict != "good":
            result.note = (
                f"with all kernels as ATen ops it is {verdict}: no kernel's code is at fault"
            )
            return result
        full = self._run({"kernel_limit": ALL})
        if self._verdict(full) != "bad":
            result.note = "it is good when kernels are counted: no kernel alone is at fault"
            return result
        run = full.read()
        kernels = numbered(run, "kernel") if run is not None else {}
        if not kernels:
            result.note = "there are no kernels"
            return result
        found, _ = self._search(lambda n: {"kernel_limit": str(n)}, 0, max(kernels), {})
        fields = kernels[found.first_bad]
        graph, kernel = str(fields.get("graph")), str(fields.get("kernel"))
        result.name, result.where = kernel, f"of {graph}"
        assert run is not None
        record = next((k for k in run.kernels if k.name == f"{graph}.{kernel}"), None)
        if record is not None:
            result.where += f", from {', '.join(record.ops)}"
            result.where += f" at {', '.join(record.origins)}" if record.origins else ""
        result.number, result.total, result.found = found.first_bad, len(kernels), found
        result.good, result.bad = (
            {"kernel_limit": str(n)} for n in (found.last_good, found.first_bad)
        )
        return result

    def _fresh(self, good: Settings, bad: Settings) -> bool | None:
        """Whether processes of their own give the same as the forks did."""
        if not isinstance(self.subject, ModelSubject):
            return None
        self.say("both once more, in new processes")
        wanted = {}
        for status, settings in enumerate((good, bad)):
            place = self.place / f"fresh{status}"
            place.mkdir()
            trial = Trial(settings, self.seed)
            wanted[status] = self.subject.run_fresh(trial, self.slow_from, place)
        assert self.reference is not None
        as_before: set[int | None] = {1}
        if self.reference.kind in ("signal", "timeout"):
            as_before = {got for got in (wanted[1],) if got is None or got < 0}
        return wanted[0] == 0 and wanted[1] in as_before


def _faster(a: Outcome, b: Outcome) -> Outcome:
    """The one of two runs that took less time; one that failed is never better."""
    if a.failure is not None or b.failure is not None:
        return a if a.failure is not None else b
    return a if (a.seconds or 0.0) <= (b.seconds or 0.0) else b


def _before(low: int, verdict: Verdict) -> str:
    what = "every pass left out" if low == 0 else f"the first {low} applications"
    where = "capture, the program or the runtime" if low == 0 else "an earlier application"
    return f"with {what} it is {verdict}: look at {where}"


def _seen(seen: Mapping[int, str]) -> str:
    return "; ".join(f"seed {seed}: {text.splitlines()[0]}" for seed, text in seen.items())


def scratch() -> AbstractContextManager[str]:
    """A folder for the files of all runs, which goes when the bisection ends."""
    return tempfile.TemporaryDirectory(prefix="deepcompile-bisect-", ignore_cleanup_errors=True)
