"""Images packed into few large files: plbench's own shards, and published tar files."""
