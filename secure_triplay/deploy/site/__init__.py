"""SECRET. A site's half of a real federation: the worker with model, records and keys, and what keeps it alive."""
