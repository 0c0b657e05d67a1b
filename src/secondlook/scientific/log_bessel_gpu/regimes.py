"""The three ways to compute log I_v(x) and log K_v(x), each good in its own part of the quadrant v >= 0, x > 0.

`sign` is +1 for I and -1 for K: the two functions share their expansions up to signs. With h = sqrt(v^2 + x^2) and

    phase(v, x) = h - v asinh(v / x)                                   (v eta in the usual notation)

both large-order expansions read  log I = phase - log(2 pi h) / 2 + ...  and  log K = -phase - log(2 h / pi) / 2 + ...
Arguments are tensors `[n]` of one floating type; nothing is checked here. Sums are formed on blocks `[terms, n]`, a few
kernels for all terms together: on a thousand points the kernels' fixed cost is all that counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import cache, lru_cache

import numpy as np
import torch
from torch import Tensor

ORDER, ARGUMENT = 12.7, 30.0  # beyond these the expansions for large order and for large argument are exact to rounding
HANKEL_TERMS = 20
BLOCK = {"cpu": 1 << 16, "cuda": 1 << 25}  # elements of a block: what stays in the cache, or fits the card; on the
# host a larger one is also given back to the system each time, and fetching its pages anew costs more than the work
LOG2, LOG_2PI, LOG_PI_2 = math.log(2), math.log(2 * math.pi), math.log(math.pi / 2)

# The phase vanishes at x = ROOT v, where h = SLOPE v and asinh(v / x) = SLOPE. ROOT_HI has 26 bits, so that its product
# with half of a float64 is exact.
ROOT_HI, ROOT_LO = 0.6627434194087982, -5.96166367986954e-11
ROOT = ROOT_HI + ROOT_LO
SLOPE = math.hypot(1, ROOT)
LIFT = 2.0**100  # keeps x cosh s in range for every x: as (LIFT x) (cosh s / LIFT)


# ------------------------------------------------------------------------------ sums, few kernels each


def powers(x: Tensor, count: int) -> Tensor:
    """x, x^2, ..., x^count along a new first dimension, each pass doubling what there is."""
    rows = x.new_empty(count, *x.shape)
    rows[0] = x
    done = 1
    while done < count:
        more = min(done, count - done)
        torch.mul(rows[:more], rows[done - 1], out=rows[done : done + more])
        done += more
    return rows


def blocks(rows: Tensor, like: Tensor) -> tuple[Tensor, ...]:
    """Parts of `rows`, each so long that its outer product with `like` is one block."""
    return rows.split(max(1, BLOCK.get(like.device.type, 1 << 20) // len(like)))


def running_products(factors: Tensor, ratios: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """r_1 + r_1 r_2 + r_1 r_2 r_3 + ... with the rows r = ratios(factors), shape of `like`."""
    if len(like) <= 1024:  # so few that one slow kernel beats a fast one for each row
        return ratios(factors).cumprod(0).sum(0)
    total = torch.zeros_like(like)
    for some in reversed(blocks(factors, like)):
        for r in reversed(ratios(some).unbind()):
            torch.addcmul(r, r, total, out=total)  # Horner: r (1 + total)
    return total


# ---------------------------------------------------------------------------------- large order: Debye


def debye_polynomials(count: int) -> list[list[Fraction]]:
    """P_0, ..., P_(count-1) with u_k(t) = t^k P_k(t^2), as exact coefficients in t^2 (DLMF 10.41.9).

    u_(k+1) = t^2 (1 - t^2) u_k' / 2 + 1/8 int_0^t (1 - 5 s^2) u_k(s) ds.
    """
    found = [[Fraction(1)]]
    for k in range(count - 1):
        following = [Fraction(0)] * (k + 2)
        for j, c in enumerate(found[-1]):
            p = k + 2 * j  # c t^p is a term of u_k
            following[j] += c * (Fraction(p, 2) + Fraction(1, 8 * (p + 1)))
            following[j + 1] -= c * (Fraction(p, 2) + Fraction(5, 8 * (p + 3)))
        found.append(following)
    return found


@cache
def coefficients(terms: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Row k holds the coefficients of P_(k+1), shape `[terms - 1, terms]`."""
    rows = debye_polynomials(terms)[1:]
    padded = [[float(c) for c in row] + [0.0] * (terms - len(row)) for row in rows]
    return torch.tensor(padded, dtype=dtype, device=device)


def _reach(terms: int) -> float:
    """The least h at which the first term left out is below a quarter of the rounding error, whatever t is."""
    row = debye_polynomials(terms + 1)[terms]
    worst = max(abs(sum(float(c) * (i / 200) ** j for j, c in enumerate(row))) for i in range(201))
    return (worst * 2.0**54) ** (1 / terms)


# Far out a few terms are enough: (least h, terms). Next to v = 12.7 the terms shrink until the twentieth; fourteen
# leave an error of 7e-14 there.
DEBYE_TERMS = ((_reach(5), 5), (_reach(7), 7), (_reach(12), 12))


def debye_terms(h: Tensor) -> int:
    """How many terms these elements need."""
    least = float(h.min())
    return next((terms for reach, terms in DEBYE_TERMS if least >= reach), 20)


def debye_tail(v: Tensor, h: Tensor, sign: int) -> Tensor:
    """log sum_k (sign)^k u_k(t) / v^k with t = v / h, written as sum_k P_k(t^2) (sign / h)^k."""
    terms, w = debye_terms(h), sign / h
    t2, w = powers(torch.stack([(v * w).square_(), w]), terms - 1).unbind(1)
    c = coefficients(terms, h.dtype, h.device)
    return torch.addmm(c[:, :1], c[:, 1:], t2).mul_(w).sum(0).log1p_()  # the sum starts at 1


def asinh_ratio(v: Tensor, x: Tensor, h: Tensor) -> Tensor:
    """asinh(v / x) = log((v + h) / x), also where the quotient overflows."""
    quotient = (v + h).div_(x)
    found = quotient.log()
    lost = torch.isinf(quotient)
    return torch.where(lost, (v + h).log() - x.log(), found) if lost.any() else found


def phase(v: Tensor, x: Tensor, h: Tensor) -> Tensor:
    """h - v asinh(v / x), with full relative accuracy around its root x = ROOT v as well.

    Near the root the two parts cancel and the plain difference is wrong by v times the rounding error. So
    d = x - ROOT v is formed exactly, and both parts as their rises from the root: e = h - SLOPE v without a
    difference, and asinh(v / x) - SLOPE = log1p((e / k - d) / x) with k = (1 + SLOPE) / ROOT, exp(SLOPE).
    """
    high = _upper_half(v)
    d = x.sub(high, alpha=ROOT_HI).sub_(v - high, alpha=ROOT_HI).sub_(v, alpha=ROOT_LO)
    e = x.add(v, alpha=ROOT).div_(h.add(v, alpha=SLOPE)).mul_(d)
    rise = e.mul(ROOT / (1 + SLOPE)).sub_(d).div_(x).log1p_()
    lost = rise.isinf()
    if lost.any():  # the quotient overflowed
        rise[lost] = asinh_ratio(v[lost], x[lost], h[lost]).sub_(SLOPE)
    return e.addcmul_(v, rise, value=-1)


def _upper_half(v: Tensor) -> Tensor:
    """v with the lower 27 bits of its float64 cleared; float32, which promises nothing, as it is."""
    return (v.view(torch.int64) & -(1 << 27)).view(v.dtype) if v.dtype == torch.float64 else v


def debye(v: Tensor, x: Tensor, sign: int) -> Tensor:
    """The uniform expansion for large order (DLMF 10.41.3 and 10.41.4)."""
    h = torch.hypot(v, x)
    out = debye_tail(v, h, sign).add_(phase(v, x, h), alpha=sign)
    return out.sub_(h.log_().add_(LOG_2PI if sign > 0 else -LOG_PI_2), alpha=0.5)


def debye_step(v: Tensor, x: Tensor, sign: int) -> Tensor:
    """log F_(v+1)(x) - log F_v(x) with the large parts subtracted on paper."""
    h, above = torch.hypot(v, x), torch.hypot(v + 1, x)
    rise = (2 * v + 1) / (above + h)
    main = rise - v * torch.log1p((1 + rise) / (v + h)) - asinh_ratio(v + 1, x, above)
    tails = debye_tail(v + 1, above, sign) - debye_tail(v, h, sign)
    return sign * main - torch.log1p(rise / h) / 2 + tails


# ------------------------------------------------------------------------------ large argument: Hankel


@cache
def hankel_factors(dtype: torch.dtype, device: torch.device) -> Tensor:
    """1 / k and -(k - 1/2)^2 / k, shape `[terms, 2]`."""
    rows = [(1 / k, -((k - 0.5) ** 2) / k) for k in range(1, HANKEL_TERMS + 1)]
    return torch.tensor(rows, dtype=dtype, device=device)


def hankel_tail(v: Tensor, x: Tensor, sign: int) -> Tensor:
    """log(1 + sum_k (-sign)^k a_k), a_k = a_(k-1) (v^2 - (k - 1/2)^2) / (2 k x)."""
    w = (-sign / 2) / x
    points = torch.stack([(v * v).mul_(w), w])
    return running_products(hankel_factors(x.dtype, x.device), lambda factors: factors @ points, x).log1p_()


def hankel(v: Tensor, x: Tensor, sign: int) -> Tensor:
    """The expansion for large argument (DLMF 10.40.1 and 10.40.2)."""
    constant = LOG_2PI if sign > 0 else -LOG_PI_2
    return hankel_tail(v, x, sign).add_(x, alpha=sign).sub_(x.log().add_(constant), alpha=0.5)


def hankel_step(v: Tensor, x: Tensor, sign: int) -> Tensor:
    """log F_(v+1)(x) - log F_v(x): everything but the tails is the same for both orders."""
    return hankel_tail(v + 1, x, sign) - hankel_tail(v, x, sign)


# ------------------------------------------------------------------------------------------ the corner


def series_terms(x: float) -> int:
    """How many terms of I_0's series at `x`, the slowest of all orders, until the next is below 1e-17 of the sum."""
    m, term, total = 0, 1.0, 1.0
    while term > 1e-17 * total:
        m += 1
        term *= (x / 2 / m) ** 2
        total += term
    return m


@cache
def series_factors(terms: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """4 m^2 and 4 m, shape `[terms, 2]`."""
    m = torch.arange(1, terms + 1, dtype=dtype, device=device)
    return torch.stack([4 * m * m, 4 * m], 1)


def series_tail(v: Tensor, x: Tensor) -> Tensor:
    """log(1 + t_1 + t_2 + ...), t_m = t_(m-1) (x / 2)^2 / (m (m + v)): the power series over its first term."""
    square = x * x

    def ratios(factors: Tensor) -> Tensor:
        below = torch.addcmul(factors[:, :1], factors[:, 1:], v)
        return torch.div(square, below, out=below)

    return running_products(series_factors(series_terms(float(x.max())), x.dtype, x.device), ratios, x).log1p_()


def series(v: Tensor, x: Tensor, sign: int) -> Tensor:
    """log I by its power series (DLMF 10.25.2); nothing overflows once the first term is taken out."""
    return series_tail(v, x).addcmul_(v, x.log().sub_(LOG2)).sub_(torch.lgamma(v + 1))


def series_step(v: Tensor, x: Tensor, sign: int) -> Tensor:
    """log I_(v+1)(x) - log I_v(x)."""
    return x.log() - LOG2 - torch.log(v + 1) + series_tail(v + 1, x) - series_tail(v, x)


def integral(v: Tensor, x: Tensor, sign: int) -> Tensor:
    """log K by 1/2 int exp(v s - x cosh s) ds over the line (DLMF 10.32.9) with the trapezoid rule, over its peak.

    The integrand is analytic and decays doubly exponentially: the rule's error falls exponentially in 1 / spacing.
    All elements share the nodes: the least argument decides how far they reach, the largest order and argument how
    dense they are.
    """
    h = torch.hypot(v, x)
    peak = (v + h).log_().sub_(x.log()).mul_(v).sub_(h)  # the exponent at s = asinh(v / x), where it is largest
    v_most, (x_least, x_most) = float(v.max()), (float(end) for end in x.aminmax())
    density = min(32, math.ceil(16.4 + 0.84 * v_most + 0.4 * x_most))  # leaves an error below 1e-16
    first, last = reach(v_most, x_least)
    rule = nodes(math.floor(2 * first), math.ceil(2 * last), density, x.dtype, x.device)
    points = torch.stack([v, x * LIFT, peak])
    deep = x_most / x_least > 5 or x_least < 1e-5  # some exponents are below -700, where exp is slow
    total = torch.zeros_like(x)
    for some in blocks(rule, x):
        exponent = some @ points
        total.add_((exponent.clamp_(min=-99) if deep else exponent).exp_().sum(0))  # e^-99 adds nothing
    return total.div_(density / 2).log_().add_(peak)


@lru_cache(maxsize=256)
def nodes(first: int, last: int, density: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Rows s, -cosh(s) / LIFT, -1, for `density` / 4 nodes s per unit from `first` / 2 to `last` / 2."""
    s = np.arange(first * density // 8, -(-last * density // 8) + 1) * 4 / density
    inner = np.clip(s, -700, 700)
    cosh = np.cosh(inner) / LIFT * np.exp(np.abs(s - inner))
    return torch.from_numpy(np.stack([s, -cosh, np.full_like(s, -1)], 1)).to(device, dtype)


def reach(v: float, x: float) -> tuple[float, float]:
    """Between which s the integrand is above e^-42 of its peak, for orders up to `v` and arguments down to `x`."""
    log_x = math.log(x)
    s = math.asinh(v / x) if v / x < 1e300 else math.log(2 * v) - log_x
    lowest = 42 + math.hypot(x, v) - v * s
    while math.exp(s + log_x - LOG2) - v * s < lowest:
        s += 0.1
    return log_x - math.log(2 * x + 84), s  # to the left v s only helps: x cosh s >= x + 42
