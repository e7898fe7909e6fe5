"""Forward and backward within a budget of bytes: plan, compile for trial, simulate, plan again.

step.py     what a training step holds: what is pinned, and the programs of its two halves
planner.py  plans of one joint graph for any budget
split.py    what AOTAutograd calls to split a joint graph, and the report of what came of it
"""
