"""The asyncio shell: sockets, streams, names and interfaces, and what people import."""
