"""Published files: where they are, fetched and resumed, checked against their checksums, unpacked."""
