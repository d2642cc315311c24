"""Published files: fetched, resumed, unpacked, and verified."""
