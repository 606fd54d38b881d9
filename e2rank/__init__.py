"""One embedding model that retrieves and reranks. Start with `Engine`."""
