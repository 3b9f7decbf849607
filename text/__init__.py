"""Documents on disk or on the Hugging Face hub → token shards."""
