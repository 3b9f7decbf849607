"""Token ids: tokenizers, shards on disk, the data loader."""
