"""TURN (RFC 8656): the client, the server's control plane, and server discovery."""
