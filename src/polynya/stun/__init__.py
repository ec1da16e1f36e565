"""STUN: numbers, attributes, messages, integrity, transactions, framing, URIs, the Binding server and probe."""
