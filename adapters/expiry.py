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
    return check_expiry(_moment(text, now, 1, "expires_at"), now)


def parse_since(text: str, now: datetime) -> datetime:
    """The same for a moment that is over: hours, days or weeks ago."""
    moment = _moment(text, now, -1, "since")
    if moment > now:
        raise UsageError(
            f"{moment.isoformat(timespec='seconds')} is still to come: write 12h, 30d or 2w, or a "
            "date that is over",
            param="since",
        )
    return moment


def _moment(text: str, now: datetime, sign: int, param: str) -> datetime:
    span = _SPAN.fullmatch(text)
    try:
        if span is not None:
            moment = now + sign * timedelta(**{_UNITS[span.group(2)]: int(span.group(1))})
        else:
            moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise UsageError(
            f"'{text[:80]}' is no time: write 12h, 30d or 2w, or a date such as 2030-01-31",
            param=param,
        ) from None


def check_expiry(moment: datetime, now: datetime) -> datetime:
    """`moment`, or UsageError where it is over."""
    if moment <= now:
        raise UsageError(
            f"{moment.isoformat(timespec='seconds')} is over already: a key ends later",
            param="expires_at",
        )
    return moment
