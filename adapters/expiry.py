"""When something ends: `30d`, `12h`, `2w`, or a date."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from adapters.errors import UsageError

_SPAN = re.compile(r"([1-9][0-9]{0,5})([hdw])")
_UNITS = {"h": "hours", "d": "days", "w": "weeks"}


def parse_expiry(text: str, now: datetime) -> datetime:
    """The moment that `text` means, in UTC; `now` has a time zone.

    Hours, days or weeks from now; else an ISO 8601 date (its first moment) or time, of UTC where it
    names no zone. Raises UsageError for anything else and for what is over already.
    """
    span = _SPAN.fullmatch(text)
    try:
        if span is not None:
            moment = now + timedelta(**{_UNITS[span.group(2)]: int(span.group(1))})
        else:
            moment = datetime.fromisoformat(text)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise UsageError(
            f"'{text[:80]}' is no time: write 12h, 30d or 2w, or a date such as 2030-01-31",
            param="expires_at",
        ) from None
    return check_expiry(moment, now)


def check_expiry(moment: datetime, now: datetime) -> datetime:
    """`moment`, or UsageError where it is over."""
    if moment <= now:
        raise UsageError(
            f"{moment.isoformat(timespec='seconds')} is over already: a key ends later",
            param="expires_at",
        )
    return moment
