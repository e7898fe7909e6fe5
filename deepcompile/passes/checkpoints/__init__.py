"""Activation checkpoints under a budget of bytes: which tensors forward leaves for backward.

joint.py     forward, backward and storages of a joint graph; what may be computed again
segments.py  the layers of a model: cuts where few tensors cross, layers that are the same
live.py      bytes that live at each step of a graph, and seconds, before it is fused
choices.py   for each distinct layer, sets of tensors to keep, from all to as few as possible
combine.py   one choice a layer, such that every moment fits; the quickest, with a bound
emit.py      the joint graph with the chosen recomputation written out
place.py     all of it in order
    decisions.py what became of each tensor, as rows to show
"""
