"""Published files: URLs, resumable downloads, checksums, and unpacking."""
