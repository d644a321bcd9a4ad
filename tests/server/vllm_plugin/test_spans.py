"""The plan covers exactly the rows with an adapter, each with its own slot."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.vllm_plugin.spans import LONG_RUN, NO_ADAPTER, plan_rows


@st.composite
def _indices(draw: st.DrawFn) -> list[int]:
    runs = draw(st.lists(st.tuples(st.integers(-1, 7), st.integers(1, 40)), max_size=12))
    return [slot for slot, length in runs for _ in range(length)]


@given(_indices())
def test_runs_name_each_row_with_an_adapter_once(indices: list[int]) -> None:
    plan = plan_rows(indices)
    seen = [NO_ADAPTER] * len(indices)
    for run in plan.runs():
        for row in range(run.start, run.end):
            assert seen[row] == NO_ADAPTER
            seen[row] = run.slot
    assert seen == indices
    assert plan.slots == set(indices) - {NO_ADAPTER}


@given(_indices())
def test_spans_are_apart_and_only_mixtures_need_a_mask(indices: list[int]) -> None:
    plan = plan_rows(indices)
    end = 0
    for span in plan.spans:
        assert span.start >= end
        end = span.end
        inside = indices[span.start : span.end]
        # The ends always have an adapter: leading and trailing base rows cost nothing.
        assert NO_ADAPTER not in (inside[0], inside[-1])
        if span.slot is not None:
            assert set(inside) == {span.slot}
        else:
            assert len(span.runs) > 1
            assert all(run.end - run.start < LONG_RUN for run in span.runs)


@given(_indices(), st.lists(st.integers(0, 7), min_size=1, max_size=20))
def test_masks_hide_every_foreign_column(indices: list[int], columns: list[int]) -> None:
    plan = plan_rows(indices)
    for span in plan.spans:
        mask = plan.foreign(span, tuple(columns))
        assert mask.shape == (span.rows, len(columns))
        for offset in range(span.rows):
            own = indices[span.start + offset]
            assert mask[offset].tolist() == [column != own for column in columns]
        assert plan.foreign(span, tuple(columns)) is mask


def test_a_step_without_adapters_has_nothing_to_do() -> None:
    assert plan_rows([-1] * 50).spans == ()
    assert plan_rows([]).spans == ()
