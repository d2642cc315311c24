"""Published annotation files, read as sparse labels."""
