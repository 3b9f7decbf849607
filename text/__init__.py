"""Text from disk or the hub → token shards."""
