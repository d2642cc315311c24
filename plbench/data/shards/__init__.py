"""Images packed into few large files: shards of our own, and tar files as others publish them."""
