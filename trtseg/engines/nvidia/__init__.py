"""Engines for NVIDIA GPUs: build them, keep them, load them, and run them."""
