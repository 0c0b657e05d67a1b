"""How numbers are written: as many digits as the interval justifies, never more."""

from __future__ import annotations

import math
import re

MINUS, NONE = "−", "–"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def missing(x: object) -> bool:
    """None and nan are missing."""
    return x is None or (isinstance(x, float) and math.isnan(x)) or x != x


def number(x: float | None, digits: int = 3) -> str:
    """A number with `digits` significant digits; very large and very small ones as a power of ten."""
    if missing(x):
        return NONE
    x = float(x)  # type: ignore[arg-type]
    if math.isinf(x):
        return "∞" if x > 0 else f"{MINUS}∞"
    if x == 0:
        return "0"
    power = math.floor(math.log10(abs(x)))
    if power < -3 or power > 5:
        return _scientific(x, max(digits - 1, 0))
    return _fixed(x, max(0, digits - 1 - power))


def quantity(mean: float | None, low: float | None = None, high: float | None = None) -> tuple[str, str]:
    """A mean and its interval, to two digits of the interval's half width: `("1.24", "[0.95, 1.53]")`.

    The second part is empty where there is no interval.
    """
    if missing(mean) or missing(low) or missing(high):
        return number(mean), ""
    half = (high - low) / 2  # type: ignore[operator]
    size = max(abs(low), abs(high), abs(mean))  # type: ignore[arg-type]
    if half <= 0 or math.isinf(half) or half < 1e-6 * size:
        return number(mean, 4), f"[{number(low, 4)}, {number(high, 4)}]"
    power = math.floor(math.log10(size))
    decimals = 1 - math.floor(math.log10(half))
    if power < -3 or power > 5:
        places = max(0, min(decimals + power, 4))
        return _scientific(mean, places), f"[{_scientific(low, places)}, {_scientific(high, places)}]"  # type: ignore[arg-type]
    decimals = max(0, min(decimals, 4 - power))
    return _fixed(mean, decimals), f"[{_fixed(low, decimals)}, {_fixed(high, decimals)}]"  # type: ignore[arg-type]


def printed(x: object) -> str:
    """A published number as it stands in the paper."""
    if isinstance(x, bool) or not isinstance(x, int | float):
        return str(x)
    return spelled(f"{x:.10g}")


def spelled(text: str) -> str:
    """Text with its machine numbers (`-1e-12`) as a reader writes them (`−10⁻¹²`)."""

    def power(match: re.Match[str]) -> str:
        mantissa = "" if match[1] == "1" else f"{match[1]}×"
        return f"{mantissa}10{str(int(match[2])).translate(_SUPERSCRIPT)}"

    text = re.sub(r"(\d+(?:\.\d+)?)e([+-]?\d+)", power, text)
    return re.sub(r"(?<![\w⁻])-(?=\d)", MINUS, text)


def probability(p: float | None) -> str:
    """A p-value: three decimals, and `< 0.001` below."""
    if missing(p):
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"  # type: ignore[operator]


def duration(seconds: float | None) -> str:
    """Seconds as a person would say them."""
    if missing(seconds):
        return NONE
    if seconds < 90:  # type: ignore[operator]
        return f"{number(seconds, 2)} s"
    minutes = seconds / 60  # type: ignore[operator]
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers between two limits."""
    if not high - low > 1e-300:  # numbers smaller still have too few digits to divide
        return [low]
    raw = (high - low) / about
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(m * base for m in (1, 2, 2.5, 5, 10) if m * base >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _fixed(x: float, decimals: int) -> str:
    text = f"{x:.{decimals}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", MINUS)


def _scientific(x: float, places: int) -> str:
    if x == 0:
        return "0"
    mantissa, power = f"{x:.{places}e}".split("e")
    return f"{mantissa}×10{str(int(power)).translate(_SUPERSCRIPT)}".replace("-", MINUS)
