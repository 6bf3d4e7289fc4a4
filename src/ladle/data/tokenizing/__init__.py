"""Documents to token ids, at the speed of the fastest engine that agrees with `tokenizers`; one shard a piece."""
