"""GPUs: their memory, streams and events, and arrays on them."""
