"""The three ways to compute log I_v(x) and log K_v(x), each good in its own part of the quadrant v >= 0, x > 0.

`sign` is +1 for I and -1 for K: the two functions share their expansions up to signs. With h = sqrt(v^2 + x^2) and

    phase(v, x) = h - v asinh(v / x)                                   (v eta in the usual notation)

both large-order expansions read  log I = phase - log(2 pi h) / 2 + ...  and  log K = -phase - log(2 h / pi) / 2 + ...
Arguments are tensors of one shape and one floating type; nothing is checked here.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor

ORDER, ARGUMENT = 12.7, 30.0  # beyond these the expansions for large order and for large argument are exact to rounding
HANKEL_TERMS = 20
LOG2, LOG_2PI, LOG_PI_2 = math.log(2), math.log(2 * math.pi), math.log(math.pi / 2)

# The phase vanishes at x = ROOT v, where sqrt(1 + z^2) = asinh(1 / z). ROOT_HI has 26 bits, so that products with
# half of a float64 are exact.
ROOT_HI, ROOT_LO = 0.6627434194087982, -5.96166367986954e-11
ROOT = ROOT_HI + ROOT_LO


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


def _matrix(terms: int) -> Tensor:
    """Row k holds the coefficients of P_k, shape `[terms, terms]`."""
    rows = debye_polynomials(terms)
    return torch.tensor([[float(c) for c in row] + [0.0] * (terms - len(row)) for row in rows], dtype=torch.float64)


COEFFICIENTS = _matrix(20)


def _reach(terms: int) -> float:
    """The least h at which the first term left out is below a quarter of the rounding error, whatever t is."""
    worst = (COEFFICIENTS[terms] @ torch.linspace(0, 1, 201, dtype=torch.float64) ** torch.arange(20)[:, None]).abs()
    return float((worst.max() * 2.0**54) ** (1 / terms))


# Far out a few terms are enough: (terms, least h), the fullest first. Next to v = 12.7 the terms shrink until the
# twentieth; fourteen leave an error of 7e-14 there.
BANDS = ((20, 0.0), (12, _reach(12)), (7, _reach(7)), (5, _reach(5)))


def debye_tail(v: Tensor, h: Tensor, sign: int, terms: int = 20) -> Tensor:
    """log sum_k (sign)^k u_k(t) / v^k with t = v / h, written as sum_k P_k(t^2) (sign / h)^k."""
    powers = v.new_empty(terms, v.numel())
    powers[0] = 1
    torch.div(v, h, out=powers[1]).square_()
    for k in range(2, terms):
        torch.mul(powers[k - 1], powers[1], out=powers[k])
    values = COEFFICIENTS[1:terms, :terms].to(v) @ powers
    w = sign / h
    total = values[-1]
    for row in reversed(values[:-1].unbind()):
        total = torch.addcmul(row, total, w)
    return total.mul_(w).log1p_()  # the sum starts at 1


def asinh_ratio(v: Tensor, x: Tensor, h: Tensor) -> Tensor:
    """asinh(v / x) = log((v + h) / x), also where the quotient overflows."""
    quotient = (v + h).div_(x)
    found = quotient.log()
    lost = torch.isinf(quotient)
    return torch.where(lost, (v + h).log() - x.log(), found) if lost.any() else found


def phase(v: Tensor, x: Tensor, h: Tensor) -> Tensor:
    """h - v asinh(v / x), with full relative accuracy around its root x = ROOT v as well.

    Near the root the two parts cancel and the plain difference is wrong by v times the rounding error. So there
    d = x - ROOT v is formed exactly (the order split in halves), and the rise of the phase from d without cancelling.
    """
    out = torch.addcmul(h, v, asinh_ratio(v, x, h), value=-1)
    near = ((x - ROOT * v).abs() < 0.5 * ROOT * v) & (v < 1e150)
    at = near.nonzero().squeeze(1)
    if len(at):
        v, x, h = v[at], x[at], h[at]
        big = v * 134217729.0  # Veltkamp's splitting, 2^27 + 1
        high = big - (big - v)
        d = ((x - high * ROOT_HI) - (v - high) * ROOT_HI) - v * ROOT_LO
        root_s = math.hypot(1, ROOT)
        dz = d / v
        ds = dz * (x + ROOT * v) / (h + root_s * v)  # of sqrt(1 + z^2)
        out[at] = v * (ds + torch.log1p(dz / ROOT) - torch.log1p(ds / (1 + root_s)))
    return out


def debye(v: Tensor, x: Tensor, sign: int, terms: int = 20) -> Tensor:
    """The uniform expansion for large order (DLMF 10.41.3 and 10.41.4)."""
    h = torch.hypot(v, x)
    out = debye_tail(v, h, sign, terms).add_(phase(v, x, h), alpha=sign)
    return out.sub_(h.log_().add_(LOG_2PI if sign > 0 else -LOG_PI_2), alpha=0.5)


def debye_step(v: Tensor, x: Tensor, sign: int, terms: int = 20) -> Tensor:
    """log F_(v+1)(x) - log F_v(x) with the large parts subtracted on paper."""
    h, above = torch.hypot(v, x), torch.hypot(v + 1, x)
    rise = (2 * v + 1) / (above + h)
    main = rise - v * torch.log1p((1 + rise) / (v + h)) - asinh_ratio(v + 1, x, above)
    tails = debye_tail(v + 1, above, sign, terms) - debye_tail(v, h, sign, terms)
    return sign * main - torch.log1p(rise / h) / 2 + tails


# ------------------------------------------------------------------------------ large argument: Hankel


def hankel_tail(v: Tensor, x: Tensor, sign: int) -> Tensor:
    """log(1 + sum_k (-sign)^k a_k), a_k = a_(k-1) (4 v^2 - (2k-1)^2) / (8 k x)."""
    mu, w = 4 * v * v, (-sign / 8) / x
    term, total = torch.ones_like(x), torch.zeros_like(x)
    for k in range(1, HANKEL_TERMS + 1):
        term.mul_(mu - (2 * k - 1) ** 2).mul_(w).div_(k)
        total.add_(term)
    return total.log1p_()


def hankel(v: Tensor, x: Tensor, sign: int) -> Tensor:
    """The expansion for large argument (DLMF 10.40.1 and 10.40.2)."""
    constant = LOG_2PI if sign > 0 else -LOG_PI_2
    return hankel_tail(v, x, sign).add_(x, alpha=sign).sub_(x.log().add_(constant), alpha=0.5)


def hankel_step(v: Tensor, x: Tensor, sign: int) -> Tensor:
    """log F_(v+1)(x) - log F_v(x): everything but the tails is the same for both orders."""
    return hankel_tail(v + 1, x, sign) - hankel_tail(v, x, sign)


# ------------------------------------------------------------------------------------------ the corner


def series_tail(v: Tensor, x: Tensor) -> Tensor:
    """log(1 + t_1 + t_2 + ...), t_m = t_(m-1) (x / 2)^2 / (m (m + v)): the power series over its first term."""
    quarter = (x / 2).square_()
    term, total = torch.ones_like(x), torch.zeros_like(x)
    for m in range(1, 18 + int(1.1 * float(x.max()))):  # the largest term stands near m = x / 2
        term.mul_(quarter).div_((v + m).mul_(m))
        total.add_(term)
    return total.log1p_()


def series(v: Tensor, x: Tensor, sign: int) -> Tensor:
    """log I by its power series (DLMF 10.25.2); nothing overflows once the first term is taken out."""
    return series_tail(v, x).addcmul_(v, x.log().sub_(LOG2)).sub_(torch.lgamma(v + 1))


def series_step(v: Tensor, x: Tensor, sign: int) -> Tensor:
    """log I_(v+1)(x) - log I_v(x)."""
    return x.log() - LOG2 - torch.log(v + 1) + series_tail(v + 1, x) - series_tail(v, x)


SPACING = 1 / 8


def integral(v: Tensor, x: Tensor, sign: int) -> Tensor:
    """log K by int_0^inf exp(-x cosh s) cosh(v s) ds (DLMF 10.32.9) with the trapezoid rule, over its peak.

    The integrand is analytic and decays doubly exponentially: the rule's error falls exponentially in 1 / spacing.
    The smallest argument decides how many nodes all elements get.
    """
    peak = -phase(v, x, torch.hypot(v, x))  # the exponent v s - x cosh s at s = asinh(v / x)
    lift = 600 * LOG2 if float(x.max()) < 1e-100 else 0.0  # x cosh s = (x e^lift) (e^-lift cosh s): no overflow
    scaled = x * math.exp(lift)
    total = torch.exp(-x - peak).div_(2)
    for j in range(1, _nodes(float(v.max()), float(x.min())) + 1):
        s = j * SPACING
        cosh = (math.exp(s - lift) + math.exp(-s - lift)) / 2
        # exp is slow below -700, and e^-99 adds nothing
        weight = torch.add(peak.neg(), v, alpha=s).sub_(scaled, alpha=cosh).clamp_(min=-99).exp_()
        mirror = torch.mul(v, -2 * s).exp_()
        total.add_(weight, alpha=0.5).addcmul_(weight, mirror, value=0.5)
    return total.mul_(SPACING).log_().add_(peak)


def _nodes(v: float, x: float) -> int:
    """How many nodes until the integrand is below e^-42 of its peak, for orders up to `v`, arguments down to `x`."""
    s = math.asinh(v / x) if v / x < 1e300 else math.log(2 * v) - math.log(x)
    lowest = 42 + math.hypot(x, v) - v * s
    while math.exp(s + math.log(x) - LOG2) - v * s < lowest:
        s += SPACING
    return math.ceil(s / SPACING)
