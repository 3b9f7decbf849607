"""Numbers and lists in words, for messages."""


def format_count(count, noun):
    """A count with its noun: `1 rank`, `8 ranks`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def duration(seconds):
    """A time in the unit that suits it: `45 s`, `12 min`, `3.5 h`, `4.2 days`."""
    units = ((120, "s", 1, 0), (7200, "min", 60, 0), (3 * 86400, "h", 3600, 1))
    for limit, unit, size, digits in units:
        if seconds < limit:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds / 86400:,.1f} days"


def listing(words):
    """["a", "b", "c"] → "a, b and c"."""
    if len(words) == 1:
        return words[0]
    return ", ".join(words[:-1]) + " and " + words[-1]
