"""Application protocols over a connection."""
