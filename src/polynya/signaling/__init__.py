"""How two programs find each other before they can talk: rooms, the messages, and both sides' machines.

    messages    what is said, as JSON text
    links       what both machines get from and ask of the shell that owns the WebSockets
    limits      how much a member may say, and for how long it may be silent
    rooms       who is in which room, and who is told of it
    server      the server's side
    client      a member's side

The protocol is described in docs/reference/signaling.md. Needs the extra `polynya[signaling]`.
"""
