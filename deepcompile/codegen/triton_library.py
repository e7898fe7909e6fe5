"""Device functions that generated Triton kernels call as `dl.name`: what `tl` does otherwise.

Each works on blocks of one register dtype and means what torch means on the same numbers: NaN goes
through maximum and minimum, division rounds to nearest, integer division floors.
"""

# Triton reads these functions as source text: no annotations, no keyword-only arguments.
# mypy: ignore-errors

import triton
import triton.language as tl
from triton.language.extra import libdevice

# -- reductions: how two states become one --------------------------------------------------------


@triton.jit
def add(a, b):
    return a + b


@triton.jit
def mul(a, b):
    return a * b


@triton.jit
def maximum(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def minimum(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def either(a, b):
    return a | b


@triton.jit
def both(a, b):
    return a & b


@triton.jit
def argmax(a, i, b, j):
    """The larger value with its index; NaN beats all, the smaller index beats the larger."""
    a_nan = a != a
    b_nan = b != b
    tie = ((a == b) | (a_nan & b_nan)) & (i < j)
    first = tie | ((a > b) & ~b_nan) | (a_nan & ~b_nan)
    return tl.where(first, a, b), tl.where(first, i, j)


@triton.jit
def argmin(a, i, b, j):
    """The smaller value with its index; NaN beats all, the smaller index beats the larger."""
    a_nan = a != a
    b_nan = b != b
    tie = ((a == b) | (a_nan & b_nan)) & (i < j)
    first = tie | ((a < b) & ~b_nan) | (a_nan & ~b_nan)
    return tl.where(first, a, b), tl.where(first, i, j)


@triton.jit
def welford(mean_a, m2_a, count_a, mean_b, m2_b, count_b):
    """Mean, sum of squared distances from it and count of two sets of numbers together."""
    count = count_a + count_b
    share = tl.where(count == 0.0, 0.0, count_b / tl.where(count == 0.0, 1.0, count))
    away = mean_b - mean_a
    return mean_a + away * share, m2_a + m2_b + away * away * count_a * share, count


@triton.jit
def lse(max_a, sum_a, max_b, sum_b):
    """Maximum and sum of exponentials (from the maximum, unless that is infinite) of two sets."""
    top = maximum(max_a, max_b)
    scale_a = tl.where(max_a == top, 1.0, libdevice.exp(max_a - top))
    scale_b = tl.where(max_b == top, 1.0, libdevice.exp(max_b - top))
    return top, sum_a * scale_a + sum_b * scale_b


@triton.jit
def finite_or_zero(x):
    """`x` where it is not infinite, else 0: what an exponential is taken from."""
    return tl.where((x == float("inf")) | (x == float("-inf")), 0.0, x)


# -- integers -------------------------------------------------------------------------------------


@triton.jit
def floordiv_int(a, b):
    quotient = a // b
    return quotient - ((a % b != 0) & ((a < 0) != (b < 0))).to(a.dtype)


@triton.jit
def remainder_int(a, b):
    rest = a % b
    return tl.where((rest != 0) & ((rest < 0) != (b < 0)), rest + b, rest)


@triton.jit
def power_int(a, b):
    """`a ** b` by squaring, wrapping around; 0 for a negative exponent unless `a` is 1 or -1."""
    result = a * 0 + 1
    base = a
    left = tl.where(b < 0, 0, b)
    for _ in tl.static_range(63):
        result = tl.where((left & 1) != 0, result * base, result)
        base = base * base
        left = left >> 1
    odd = tl.where((b & 1) != 0, a, a * a)
    negative = tl.where((a == 1) | (a == -1), odd, 0)
    return tl.where(b < 0, negative, result)


@triton.jit
def gcd(a, b):
    """Euclid's algorithm on magnitudes: 92 steps are enough for 64 bits, 46 for 32."""
    a, b = a + b * 0, b + a * 0
    if a.dtype == tl.int64:
        x = tl.where(a < 0, -a, a).to(tl.uint64)
        y = tl.where(b < 0, -b, b).to(tl.uint64)
        for _ in range(92):
            rest = tl.where(y == 0, x, x % tl.where(y == 0, y + 1, y))
            x, y = tl.where(y == 0, x, y), tl.where(y == 0, y, rest)
    else:
        x = tl.where(a < 0, -a, a).to(tl.uint32)
        y = tl.where(b < 0, -b, b).to(tl.uint32)
        for _ in range(46):
            rest = tl.where(y == 0, x, x % tl.where(y == 0, y + 1, y))
            x, y = tl.where(y == 0, x, y), tl.where(y == 0, y, rest)
    return x.to(a.dtype)


@triton.jit
def lcm(a, b):
    """The least common multiple, wrapping around; 0 when an operand is."""
    divisor = gcd(a, b)
    multiple = a // tl.where(divisor == 0, 1, divisor) * b
    return tl.where(multiple < 0, -multiple, multiple)


# -- floating point -------------------------------------------------------------------------------


@triton.jit
def floordiv(a, b, quotient):
    """torch.floor_divide, given `a / b`."""
    rest = libdevice.fmod(a, b)
    adjusted = (rest != 0) & ((rest < 0) != (b < 0))
    # (a - rest) / b is a whole number but for rounding.
    whole = (a - rest) / b
    whole = tl.where(adjusted, whole - 1, whole)
    floor = libdevice.floor(whole)
    floor = tl.where(whole - floor > 0.5, floor + 1, floor)
    zero = libdevice.copysign(quotient * 0, quotient)
    return tl.where(b == 0, quotient, tl.where(whole == 0, zero, floor))


@triton.jit
def remainder(a, b):
    rest = libdevice.fmod(a, b)
    return tl.where((rest != 0) & ((rest < 0) != (b < 0)), rest + b, rest)


@triton.jit
def f8e4m3_to_f32(bits):
    """An 8-bit float of 4 exponent and 3 fraction bits, by its bits in a `uint8`."""
    h = bits.to(tl.int32)
    a = h & 127
    small = a.to(tl.float32) * 0.001953125  # below 2**-6 in steps of 2**-9
    value = ((a << 20) + (120 << 23)).to(tl.float32, bitcast=True)
    value = tl.where(a < 8, small, value)
    value = tl.where(a == 127, float("nan"), value)
    return (value.to(tl.int32, bitcast=True) | ((h & 128) << 24)).to(tl.float32, bitcast=True)


@triton.jit
def f32_to_f8e4m3(x):
    """The same back, to nearest even; what is beyond 448 becomes that, infinity too."""
    u = x.to(tl.int32, bitcast=True)
    a = u & 0x7FFFFFFF
    tiny = (a.to(tl.float32, bitcast=True) + 16384.0).to(tl.int32, bitcast=True) - (141 << 23)
    normal = (a + ((a >> 20) & 1) - ((120 << 23) - 0x7FFFF)) >> 20
    found = tl.where(a < (121 << 23), tiny, normal)
    found = tl.where(found > 126, 126, found)
    found = tl.where(a > 0x7F800000, 127, found)
    return (found | ((u >> 24) & 128)).to(tl.uint8)


@triton.jit
def sign(x):
    return (x > 0).to(x.dtype) - (x < 0).to(x.dtype)


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + libdevice.exp(-x))


@triton.jit
def xlogy(x, y):
    return tl.where(y != y, y, tl.where(x == 0, x * 0.0, x * libdevice.log(y)))


@triton.jit
def xlog1py(x, y):
    return tl.where(y != y, y, tl.where(x == 0, x * 0.0, x * libdevice.log1p(y)))


@triton.jit
def sinc(x):
    angle = x * 3.141592653589793
    return tl.where(x == 0, 1.0, libdevice.sin(angle) / tl.where(x == 0, 1.0, angle))


@triton.jit
def entr(x):
    positive = -x * libdevice.log(tl.where(x > 0, x, 1.0))
    other = tl.where(x == 0, 0.0, float("-inf"))
    return tl.where(x != x, x, tl.where(x > 0, positive, other))


@triton.jit
def logaddexp(a, b):
    top = maximum(a, b)
    away = -tl.abs(a - b)
    same = (a == b) & ((a == float("inf")) | (a == float("-inf")))
    return tl.where(same, a, top + libdevice.log1p(libdevice.exp(away)))


@triton.jit
def heaviside(x, at_zero):
    return tl.where(x == 0, at_zero, (x > 0).to(x.dtype))


@triton.jit
def digamma(value):
    """The derivative of the logarithm of gamma, after Cephes psi: recurrence to 10, then a series.

    In f64, of which f32 keeps the first half; below 0 by reflection.
    """
    x = value.to(tl.float64)
    part = x - libdevice.trunc(x)
    below = x < 0
    turn = tl.where(below, part, 0.5)
    cotangent = libdevice.cospi(turn) / tl.where(turn == 0, 1.0, libdevice.sinpi(turn))
    shift = tl.where(below, -3.141592653589793 * cotangent, 0.0)
    y = tl.where(below, 1.0 - x, x)
    for _ in range(10):
        short = y < 10.0
        shift = tl.where(short, shift - 1.0 / tl.where(y == 0, 1.0, y), shift)
        y = tl.where(short, y + 1.0, y)
    z = 1.0 / (y * y)
    p = z * 8.33333333333333333333e-2 - 2.10927960927960927961e-2
    p = p * z + 7.57575757575757575758e-3
    p = p * z - 4.16666666666666666667e-3
    p = p * z + 3.96825396825396825397e-3
    p = p * z - 8.33333333333333333333e-3
    p = p * z + 8.33333333333333333333e-2
    result = shift + libdevice.log(y) - 0.5 / y - z * p
    result = tl.where(below & (part == 0), float("nan"), result)
    return tl.where(x == 0, libdevice.copysign(x * 0 + float("inf"), -x), result).to(value.dtype)


@triton.jit
def bessel_scaled(value, order: tl.constexpr):
    """`exp(-|x|) I_order(x)`: the power series up to 30, the asymptotic one above; in f64."""
    x = value.to(tl.float64)
    size = tl.abs(x)
    near = size <= 30.0
    square = tl.where(near, size, 0.0)
    square = square * square * 0.25
    near_term = square * 0.0 + 1.0
    near_sum = near_term
    for k in range(1, 72):
        near_term = near_term * square / (k * (k + order))
        near_sum += near_term
    far = tl.where(near, 30.0, size)
    far_term = far * 0.0 + 1.0
    far_sum = far_term
    for k in range(1, 25):
        odd = 2 * k - 1
        far_term = far_term * (odd * odd - 4 * order * order) / (far * (8 * k))
        far_sum += far_term
    result = far_sum / (2.50662827463100050242 * libdevice.sqrt(far))
    result = tl.where(far == float("inf"), 0.0, result)
    factor = libdevice.exp(-tl.where(near, size, 0.0))
    if order == 1:
        factor = factor * size * 0.5
    result = tl.where(near, near_sum * factor, result)
    if order == 1:
        result = libdevice.copysign(result, x)
    return tl.where(x != x, x, result).to(value.dtype)


# -- random numbers -------------------------------------------------------------------------------


@triton.jit
def philox_u32(seed, offset):
    """32 random bits an element: Philox4x32-10, key the seed, counter `offset // 4`."""
    seed = seed + offset * 0
    block = (offset >> 2) & 0x3FFFFFFFFFFFFFFF
    low = (block & 0xFFFFFFFF).to(tl.uint32)
    high = (block >> 32).to(tl.uint32)
    zero = low * 0
    r0, r1, r2, r3 = tl.philox(seed, low, high, zero, zero)
    word = offset & 3
    return tl.where(word == 0, r0, tl.where(word == 1, r1, tl.where(word == 2, r2, r3)))


@triton.jit
def uniform(seed, offset):
    """24-bit uniform numbers in [0, 1), f32."""
    return (philox_u32(seed, offset) >> 8).to(tl.float32) * 5.9604644775390625e-08


@triton.jit
def normal(seed, offset):
    """Normal numbers by Box-Muller on the uniforms at `offset & ~1` and `offset | 1`, f32."""
    odd = offset & 1
    first = 1.0 - uniform(seed, offset - odd)
    angle = uniform(seed, offset - odd + 1) * 6.283185307179586
    radius = libdevice.sqrt(libdevice.log(first) * -2.0)
    return radius * tl.where(odd != 0, libdevice.sin(angle), libdevice.cos(angle))
