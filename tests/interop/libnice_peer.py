"""libnice as a peer, driven by lines of JSON (`dialogue.py`). Debian's Python runs it.

GObject introspection drives the agent. Data is sent and received through ctypes, because introspection treats it as
text that ends at the first zero byte.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
from typing import Any

import gi

gi.require_version("Nice", "0.1")
from gi.repository import GLib, Nice  # noqa: E402  # the version must be required first

COMPONENT = 1
LIBRARY = ctypes.CDLL("libnice.so.10")
LIBRARY.nice_agent_send.argtypes = [ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint, ctypes.c_char_p]
RECEIVE = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p
)
LIBRARY.nice_agent_attach_recv.argtypes = [
    ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, RECEIVE, ctypes.c_void_p
]  # fmt: skip
ctypes.pythonapi.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
ctypes.pythonapi.PyCapsule_GetPointer.restype = ctypes.c_void_p


def say(**line: Any) -> None:
    print(json.dumps(line), flush=True)


def place(address: Nice.Address) -> list[Any]:
    return [address.dup_string(), address.get_port()]


class Peer:
    def __init__(self, arguments: argparse.Namespace, loop: GLib.MainLoop) -> None:
        self.loop = loop
        self.arguments = arguments
        flags = Nice.AgentOption.NONE
        for chosen, flag in (
            (arguments.regular, Nice.AgentOption.REGULAR_NOMINATION),
            (not arguments.whole, Nice.AgentOption.ICE_TRICKLE),
            (arguments.lite, Nice.AgentOption.LITE_MODE),
            (arguments.consent, Nice.AgentOption.CONSENT_FRESHNESS),
        ):
            if chosen:
                flags |= flag
        self.agent = Nice.Agent.new_full(GLib.MainContext.default(), Nice.Compatibility.RFC5245, flags)
        self.pointer = ctypes.pythonapi.PyCapsule_GetPointer(self.agent.__gpointer__, None)
        self.agent.props.upnp = False
        self.agent.props.ice_tcp = False
        self.agent.props.controlling_mode = arguments.controlling
        if arguments.server:
            host, _, port = arguments.server.rpartition(":")
            self.agent.props.stun_server, self.agent.props.stun_server_port = host, int(port)
        address = Nice.Address.new()
        assert address.set_from_string(arguments.address)
        self.agent.add_local_address(address)
        self.agent.connect("new-candidate-full", self.on_candidate)
        self.agent.connect("candidate-gathering-done", self.on_gathered)
        self.agent.connect("new-selected-pair-full", self.on_pair)
        self.agent.connect("component-state-changed", self.on_state)
        self.stream = self.agent.add_stream(1)
        if arguments.relay:
            host, port, user, password = arguments.relay
            kind = Nice.RelayType.TCP if arguments.tcp else Nice.RelayType.UDP
            assert self.agent.set_relay_info(self.stream, COMPONENT, host, int(port), user, password, kind)
            self.agent.props.force_relay = True
        self.path: dict[str, Any] = {}
        self.rest = b""
        self.answered = False
        self.receiver = RECEIVE(self.on_data)  # keeps a reference while it is attached
        assert LIBRARY.nice_agent_attach_recv(self.pointer, self.stream, COMPONENT, None, self.receiver, None)
        if not arguments.whole:
            self.describe()
        assert self.agent.gather_candidates(self.stream)

    # ------------------------------------------------------------------------------------------------------ output

    def describe(self) -> None:
        known, ufrag, password = self.agent.get_local_credentials(self.stream)
        assert known
        options = [] if self.arguments.whole else ["trickle"]
        say(description={"ufrag": ufrag, "password": password, "options": options, "lite": self.arguments.lite})

    def signal_candidates(self) -> None:
        for candidate in self.agent.get_local_candidates(self.stream, COMPONENT):
            self.signal(candidate)
        say(candidate=None)

    def signal(self, candidate: Nice.Candidate) -> None:
        if candidate.type != Nice.CandidateType.PEER_REFLEXIVE:  # listed among the others, but not for signaling
            say(candidate=self.agent.generate_local_candidate_sdp(candidate).removeprefix("a=candidate:"))

    def on_candidate(self, _: Nice.Agent, candidate: Nice.Candidate) -> None:
        if not self.arguments.whole:
            self.signal(candidate)

    def on_gathered(self, *_: Any) -> None:
        if self.arguments.whole:
            self.describe()
            self.signal_candidates()
        else:
            say(candidate=None)

    def on_pair(self, _: Nice.Agent, __: int, ___: int, local: Nice.Candidate, remote: Nice.Candidate) -> None:
        relayed = Nice.CandidateType.RELAYED
        self.path = {
            "local": place(local.addr),
            "remote": place(remote.addr),
            "relayed": relayed in (local.type, remote.type),
        }
        say(pair=self.path)

    def on_state(self, _: Nice.Agent, __: int, ___: int, state: int) -> None:
        name = Nice.component_state_to_string(state)
        say(state=name)
        if name == "ready":
            say(connected=self.path)
        elif name == "failed":
            say(failed="libnice has no pair left")

    def on_data(self, _: int, __: int, ___: int, length: int, data: int, ____: int) -> None:
        say(received=ctypes.string_at(data, length).hex())

    # ------------------------------------------------------------------------------------------------------- input

    def on_input(self, *_: Any) -> bool:
        text = os.read(0, 1 << 16)
        self.rest += text
        *lines, self.rest = self.rest.split(b"\n")
        for line in lines:
            self.command(json.loads(line))
        if not text:
            self.loop.quit()
        return bool(text)

    def command(self, command: dict[str, Any]) -> None:
        if "description" in command:
            self.remote_described(command["description"])
        elif "candidate" in command:
            self.remote_candidate(command["candidate"])
        elif "send" in command:
            data = bytes.fromhex(command["send"])
            if LIBRARY.nice_agent_send(self.pointer, self.stream, COMPONENT, len(data), data) != len(data):
                say(unsent=command["send"])
        elif "restart" in command:
            self.restart()
            self.answered = False
        elif "revoke" in command:
            assert self.agent.consent_lost(self.stream, COMPONENT)
        elif "close" in command:
            say(ended=True)
            self.loop.quit()

    def remote_described(self, description: dict[str, Any]) -> None:
        if self.answered:  # the other side restarted: restart, too
            self.restart()
        self.answered = True
        assert self.agent.set_remote_credentials(self.stream, description["ufrag"], description["password"])
        for text in description.get("candidates", ()):
            self.remote_candidate(text)

    def remote_candidate(self, text: str | None) -> None:
        if text is None:
            if not self.arguments.whole:
                self.agent.peer_candidate_gathering_done(self.stream)
            return
        candidate = self.agent.parse_remote_candidate_sdp(self.stream, f"a=candidate:{text}")
        assert candidate is not None, text
        assert self.agent.set_remote_candidates(self.stream, COMPONENT, [candidate]) >= 0

    def restart(self) -> None:
        assert self.agent.restart()
        self.describe()
        self.signal_candidates()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--address", required=True, help="the local address to use")
    parser.add_argument("--controlling", action="store_true")
    parser.add_argument("--regular", action="store_true", help="nominate once, not by every check")
    parser.add_argument("--whole", action="store_true", help="without trickle: signal everything after gathering")
    parser.add_argument("--lite", action="store_true")
    parser.add_argument("--consent", action="store_true", help="RFC 7675")
    parser.add_argument("--server", help="HOST:PORT of a STUN server")
    parser.add_argument(
        "--relay", nargs=4, metavar=("HOST", "PORT", "USER", "PASSWORD"), help="use this TURN server only"
    )
    parser.add_argument("--tcp", action="store_true", help="connect to it over TCP")
    loop = GLib.MainLoop()
    peer = Peer(parser.parse_args(), loop)
    GLib.io_add_watch(0, GLib.PRIORITY_DEFAULT, GLib.IO_IN | GLib.IO_HUP, peer.on_input)
    loop.run()


if __name__ == "__main__":
    sys.exit(main())
