"""Which times a record may name."""

from datetime import UTC, datetime, timedelta

import pytest

from plbench.board import identity


@pytest.mark.parametrize(
    ("clock", "latest"),
    [
        (datetime(2030, 5, 1, tzinfo=UTC), datetime(2030, 5, 2, tzinfo=UTC)),
        (datetime(1970, 1, 1, tzinfo=UTC), datetime.max.replace(tzinfo=UTC)),
    ],
    ids=["a day ahead", "any, where the clock is wrong"],
)
def test_the_latest_time(clock: datetime, latest: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, zone: object = None) -> datetime:  # type: ignore[override]
            return clock

    monkeypatch.setattr(identity, "datetime", Clock)
    assert abs(identity.latest_time().replace(tzinfo=UTC) - latest) < timedelta(seconds=1)
