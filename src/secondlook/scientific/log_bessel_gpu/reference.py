"""Slow references in many digits: the power series of I and the integral of K, summed outwards from their peaks.

mpmath's own `besseli` and `besselk` are not used, for they need seconds, or never end, where order or argument is
large. All terms are positive, so nothing cancels; the tests compare with mpmath's functions where those do end.
"""

from __future__ import annotations

from mpmath import mp

DIGITS = 50


def log_iv_reference(v: float, x: float) -> mp.mpf:
    """log sum_m (x/2)^(2m+v) / (m! Gamma(m+v+1)) to 45 digits or more."""
    with mp.workdps(DIGITS):
        v, x = mp.mpf(v), mp.mpf(x)
        peak = int((mp.hypot(x, v) - v) / 2)
        largest = (2 * peak + v) * mp.log(x / 2) - mp.loggamma(peak + 1) - mp.loggamma(peak + v + 1)
        q, total = x * x / 4, mp.one
        term, m, small = mp.one, peak, mp.mpf(10) ** -DIGITS
        while term > small:
            m += 1
            term *= q / (m * (m + v))
            total += term
        term, m = mp.one, peak
        while m > 0 and term > small:
            term *= m * (m + v) / q
            m -= 1
            total += term
        return largest + mp.log(total)


def log_kv_reference(v: float, x: float) -> mp.mpf:
    """log of 1/2 int exp(v s - x cosh s) ds over the line, by the trapezoid rule, to 25 digits or more."""
    with mp.workdps(DIGITS):
        v, x = mp.mpf(v), mp.mpf(x)
        h, top = mp.hypot(x, v), mp.asinh(v / x)
        spacing = mp.mpf(1) / (10 * int(mp.ceil(mp.sqrt(1 + h / 40))))
        largest, small, total = v * top - h, mp.mpf(10) ** -36, mp.zero
        for direction in (1, -1):
            s = top if direction > 0 else top - spacing
            e, power = mp.exp(s), mp.exp(v * s - largest)
            grow, lift = mp.exp(direction * spacing), mp.exp(direction * v * spacing)
            term = mp.one
            while term > small:
                term = power * mp.exp(-x * (e + 1 / e) / 2)
                total += term
                e *= grow
                power *= lift
        return mp.log(total * spacing / 2) + largest
