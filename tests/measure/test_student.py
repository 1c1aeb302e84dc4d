import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from thrifty.measure.student import incomplete_beta, student_quantile, student_tail


@pytest.mark.parametrize("dof", [0.5, 1, 2, 3, 4, 7.3, 30, 199, 4999, 1e6])
@pytest.mark.parametrize("p", [0.5, 0.51, 0.9, 0.975, 0.995, 0.999999, 1 - 1e-10, 0.025, 1e-9])
def test_the_quantile_is_scipys(dof: float, p: float) -> None:
    assert student_quantile(p, dof) == pytest.approx(stats.t.ppf(p, dof), rel=1e-8, abs=1e-12)


@given(a=st.floats(0.1, 500), b=st.floats(0.1, 500), x=st.floats(0, 1))
def test_the_incomplete_beta_is_scipys(a: float, b: float, x: float) -> None:
    assert incomplete_beta(a, b, x, 1 - x) == pytest.approx(stats.beta.cdf(x, a, b), rel=1e-8, abs=1e-12)


@settings(max_examples=50)
@given(p=st.floats(1e-6, 1 - 1e-6), dof=st.floats(0.5, 1e4))
def test_the_quantile_is_odd_and_inverts_the_tail(p: float, dof: float) -> None:
    t = student_quantile(p, dof)
    tail = student_tail(abs(t), dof)
    assert (1 - tail if t >= 0 else tail) == pytest.approx(p, rel=1e-9)


@pytest.mark.parametrize(("p", "dof"), [(0.0, 4), (1.0, 4), (float("nan"), 4), (0.5, 0), (0.5, float("nan"))])
def test_out_of_range_is_refused(p: float, dof: float) -> None:
    with pytest.raises(ValueError, match="must be in"):
        student_quantile(p, dof)
