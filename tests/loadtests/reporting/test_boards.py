"""Pictures of dashboards: every panel is there, whatever its data are."""

from __future__ import annotations

from xml.etree.ElementTree import fromstring

from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.grafana.asking import Series, Shown
from deploy.grafana.build import BOARDS
from loadtests.reporting.boards import drawn

POINTS = st.lists(
    st.tuples(st.floats(0, 1e9), st.floats(-1e12, 1e12)), max_size=20, unique_by=lambda p: p[0]
).map(sorted)
SERIES = st.builds(Series, name=st.text("abc{}<&\"'é ", max_size=30), points=POINTS)


def shown(series: list[Series]) -> list[Shown]:
    return [
        Shown(board, panel, query, series)
        for board in BOARDS.values()
        for panel in board.panels
        for query in panel.queries
    ]


@settings(max_examples=15, deadline=None)
@given(st.lists(SERIES, max_size=8))
def test_every_panel_is_drawn(series: list[Series]) -> None:
    for board in BOARDS.values():
        words = [text.text for text in fromstring(drawn(board, shown(series))).iter() if text.text]
        for title, panels in board.rows:
            assert title in words
            for panel in panels:
                assert panel.title in words
        empty = all(not one.points for one in series)
        assert ("no data" in words) == empty
