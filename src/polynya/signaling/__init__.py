"""Signaling: how two programs find each other and exchange ICE descriptions and candidates.

    messages    the types of message and their JSON codec
    links       inputs and outputs of the machines
    limits      limits of the server, and the token bucket
    rooms       rooms, their members, and the messages kept for absent members
    server      the server's machine
    client      the machine of a member
    servers     the machine that requests a server list without joining a room

docs/reference/signaling.md describes the protocol. Needs the extra `polynya[signaling]`.
"""
