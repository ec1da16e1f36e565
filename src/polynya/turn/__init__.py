"""TURN (RFC 8656): the client, the server's control plane, and which server to ask."""
