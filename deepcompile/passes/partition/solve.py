import numpy as np
from scipy.optimize import milp, LinearConstraint, Bounds
from scipy.sparse import coo_matrix
from deepcompile.passes.partition.problem import *


def solve(p, gap=0.01, start=None):
    off = np.cumsum([0] + [len(c) for c in p.costs])
    n = off[-1]
    cost = list(np.concatenate(p.costs))
    R = []
    C = []
    V = []
    lo = []
    hi = []
    r = 0

    def row(items, l, h):
        nonlocal r
        for c, v in items:
            R.append(r)
            C.append(c)
            V.append(v)
        lo.append(l)
        hi.append(h)
        r += 1

    for g in range(len(p.costs)):
        row([(off[g] + i, 1) for i in range(len(p.costs[g]))], 1, 1)
    W = {}
    for u in p.uses:
        v = p.values[u.value]
        ph = 0 if v.keeps_moved else int(u.backward)
        ps = sorted(set(v.made))
        qs = sorted(set(u.taken))
        if len(ps) == 1 and qs == ps:
            continue
        e = {}
        for a in ps:
            for b in qs:
                if b < 0 or np.isfinite(v.moves[a, b]):
                    e[a, b] = len(cost)
                    cost.append(0.0)
                    if b >= 0 and a != b:
                        k = (u.value, ph, a, b)
                        if k not in W:
                            W[k] = len(cost)
                            cost.append(v.moves[a, b])
                        row([(W[k], 1), (e[a, b], -1)], 0, np.inf)
        for a in ps:
            row(
                [(e[a, b], 1) for b in qs if (a, b) in e]
                + [(off[v.maker] + i, -1) for i, x in enumerate(v.made) if x == a],
                0,
                0,
            )
        for b in qs:
            row(
                [(e[a, b], 1) for a in ps if (a, b) in e]
                + [(off[u.user] + i, -1) for i, x in enumerate(u.taken) if x == b],
                0,
                0,
            )
    for m in p.rows:
        row(
            [(off[g] + i, h[i] / m.limit) for g, h in m.bytes.items() for i in range(len(h))],
            -np.inf,
            1 - m.fixed / m.limit,
        )
    N = len(cost)
    A = coo_matrix((V, (R, C)), shape=(r, N)).tocsr()
    integ = np.zeros(N)
    integ[:n] = 1
    scale = 1e6
    res = milp(
        np.array(cost) * scale,
        constraints=LinearConstraint(A, lo, hi),
        bounds=Bounds(0, 1),
        integrality=integ,
        options=dict(mip_rel_gap=gap),
    )
    assert res.x is not None, res.message
    opts = tuple(int(np.argmax(res.x[off[g] : off[g + 1]])) for g in range(len(p.costs)))
    return Solution(opts, seconds_of(p, opts), res.mip_dual_bound / scale, method="naive")
