"""Forward and backward within a budget of bytes: plan, compile for trial, simulate, plan again.

step.py       what a training step holds: what is pinned, and the programs of its two halves
planner.py    plans of one joint graph for any budget
refine.py     what programs were seen to hold, in place of estimates
split.py      what AOTAutograd calls to split a joint graph
setup.py      from the options of a compile to that
report.py     what became of a budget
plan_file.py  plans as files
buckets.py    sizes that a plan is for
menu.py       ways in which the step of one graph can run
ways.py       one of those, by what it holds and costs
runs.py       how often a graph runs in a step, and with which parameters
repeats.py    all calls of graphs that run several times in a step, as one choice
shares.py     the quickest combination of those, for all graphs of a model
planned_graph.py  one of those graphs: how it runs now, and how else it could
ledger.py     the graphs of a model, which of them run in one step, and when they are planned again
"""
