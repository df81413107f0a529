"""Raw files in, token shards out: readers, tokenizer, template and the .bin/.idx format."""
