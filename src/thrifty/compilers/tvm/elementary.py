"""exp, tanh, erf and the sigmoid by polynomials: as calls of the C library they would run one number at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx

# Minimax on [-ln 2 / 2, ln 2 / 2], Cephes' expf.
EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
# x P(x^2) / Q(x^2), Eigen's ptanh and perf.
TANH = ((-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08, 1.48572235717979e-05,
         6.37261928875436e-04, 4.89352455891786e-03),
        (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03), 7.90531110763549805)
ERF = ((-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
        -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02),
       (-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
        -1.42647390514189e-02), 4.0)


def _exp(x: Any) -> Any:
    """2^n e^r with n = floor(x / ln 2 + 1/2), r = x - n ln 2."""
    def of(x: Any) -> Any:
        return _let(tirx.floor(x * _f(1.44269504088896341) + _f(0.5)), "n", lambda n: _let(
            x - n * _f(0.693359375) - n * _f(-2.12194440e-4), "r", lambda r: _limits(
                x, (_horner(EXP, r) * r * r + r + _f(1)) * tirx.reinterpret(
                    "float32", (tirx.Cast("int32", n) + tirx.const(127, "int32")) << tirx.const(23, "int32")))))

    return _let(x, "x", of)


def _limits(x: Any, value: Any) -> Any:
    """0 and infinity where 2^n has no float32, the latter 0.35 early; a NaN passes both tests and stays what it is."""
    return tirx.Select(x < _f(-87.33), _f(0), tirx.Select(x > _f(88.37), _f(float("inf")), value))


def _sigmoid(x: Any) -> Any:
    return _f(1) / (_f(1) + _exp(_f(0) - x))


def _rational(p: Sequence[float], q: Sequence[float], limit: float) -> Callable[[Any], Any]:
    def of(x: Any) -> Any:
        return _let(tirx.Select(x > _f(limit), _f(limit), tirx.Select(x < _f(-limit), _f(-limit), x)), "x", lambda x: _let(
            x * x, "s", lambda s: x * _horner(p, s) / _horner(q, s)))

    return lambda x: _let(x, "given", of)


_tanh, _erf = _rational(*TANH), _rational(*ERF)

FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "relax.exp": _exp,
    "relax.sigmoid": _sigmoid,
    "relax.tanh": _tanh,
    "relax.erf": _erf,
    "relax.nn.silu": lambda x: x * _sigmoid(x),
    "relax.nn.gelu": lambda x: _let(x, "y", lambda y: _f(0.5) * y * (_f(1) + _erf(y * _f(0.5**0.5)))),
    "relax.nn.gelu_tanh": lambda x: _let(x, "y", lambda y: _f(0.5) * y * (
        _f(1) + _tanh(_f((2 / math.pi) ** 0.5) * (y + _f(0.044715) * y * y * y)))),
}
"""Operator -> its value at a float32."""


def _horner(coefficients: Sequence[float], x: Any) -> Any:
    total = _f(coefficients[0])
    for c in coefficients[1:]:
        total = total * x + _f(c)
    return total


def _let(value: Any, name: str, body: Callable[[Any], Any]) -> Any:
    variable = tirx.Var(name, "float32")
    return tirx.Let(variable, value, body(variable))


def _f(value: float) -> Any:
    return tirx.const(value, "float32")
