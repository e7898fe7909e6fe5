"""Several ranks that run one program: how they start, and how they know that they run the same.

    start.py          the process group under torchrun or alone, named mesh axes
    round.py          ranks of one attempt find each other in a store that outlives attempts
    fingerprint.py    the collectives of a compiled graph as data, and where two of them differ
    graph_collectives.py    a fingerprint read from an FX graph
    agreement.py      ranks compare fingerprints at a graph's first run, with a bounded wait

Bucketing, overlap, choice of algorithms, compression, trace and recovery belong here too, a file
each. What changes collectives of a graph comes before its fingerprint is read: agreement is on
what is sent, in the order in which it is sent.
"""
