"""The first sentence of `why()`: what came of the connection, and the one reason that explains it best.

It is made from the data of a report alone, so that a redacted report has it, too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

Data = dict[str, Any]

_ICMP: Final = re.compile(r"ICMP ([a-z ]+?) from (\S+?)[:,)]")
_SILENT: Final = re.compile(r"did not answer (\d+) sends?")
_OPEN: Final = ("frozen", "waiting", "in-progress")
_REFLEXIVE: Final = ("srflx", "prflx")


def summary(data: Data) -> str:
    """Returns one sentence about the report of a session, for a user who knows no ICE."""
    ice, gathering = data["ice"], data["gathering"]
    pairs: list[Data] = ice["pairs"]
    selected = [pair for pair in pairs if pair["selected"]]
    if ice["state"] == "closed":
        return "Closed: the agent was closed on this side."
    if ice["state"] == "failed":
        return f"Not connected: {_failure(ice, gathering)}."
    if not selected:
        return f"Not connected yet: {_waiting(ice, gathering)}."
    components = {(pair["stream"], pair["component"]) for pair in pairs}
    more = f"; {len(selected)} of {len(components)} components have a path" if len(components) > len(selected) else ""
    relayed = next((pair for pair in selected if _is_relayed(pair)), None)
    if relayed is not None:
        return f"Relayed: {_why_relayed(relayed, pairs, ice)}{more}."
    pair = selected[0]
    rtt = "" if pair["rtt"] is None else f", {pair['rtt'] * 1000:.0f} ms round trip"
    settled = "" if pair["nominated"] else "; the path may still improve"
    return f"Connected directly: {_host(pair['local'])} to {_host(pair['remote'])}{rtt}{settled}{more}."


def _why_relayed(used: Data, pairs: Sequence[Data], ice: Data) -> str:
    same = [pair for pair in pairs if (pair["stream"], pair["component"]) == (used["stream"], used["component"])]
    direct = [pair for pair in same if not _is_relayed(pair)]
    if any(pair["valid"] for pair in direct):
        return "a direct path works, and data will move to it"
    if obstacle := _obstacle(direct, "direct checks"):
        return obstacle
    for name, side in (("local_candidates", "this side has"), ("remote_candidates", "the other side signaled")):
        if ice[name] and all(" typ relay" in line for line in ice[name]):
            return f"{side} relayed candidates only"
    return "no direct pair of addresses could be made"


def _failure(ice: Data, gathering: Data) -> str:
    pairs: list[Data] = ice["pairs"]
    if "consent" in ice["reason"]:
        return "the other side stopped answering, so that the path was given up"
    if not ice["local_candidates"]:
        return _no_address(gathering)
    if not ice["remote_candidates"]:
        return "the other side signaled no candidate"
    if not pairs:
        return "no address of this side fits one of the other side"
    what = _obstacle(pairs, "checks") or ice["reason"]
    relays = any(" typ relay" in line for line in (*ice["local_candidates"], *ice["remote_candidates"]))
    return what if relays else f"{what}, and neither side has a relay"


def _waiting(ice: Data, gathering: Data) -> str:
    pairs: list[Data] = ice["pairs"]
    if not ice["local_candidates"] and gathering["state"] == "complete":
        return _no_address(gathering)
    if ice["remote_ufrag"] is None:
        return "the description of the other side is missing"
    if not ice["remote_candidates"]:
        return "the other side has signaled no candidate so far"
    count = sum(pair["state"] in _OPEN for pair in pairs)
    if count:
        return f"{count} of {len(pairs)} pairs of addresses {'is' if count == 1 else 'are'} still checked"
    return _obstacle(pairs, "checks") or "no pair of addresses could be made so far"


def _no_address(gathering: Data) -> str:
    reasons = list(dict.fromkeys(no["reason"] for no in gathering["refused"]))
    if len(reasons) == 1:
        return f"no address of this host is used ({reasons[0]})"
    return "this host has no usable address" if not reasons else "no address of this host is used"


def _obstacle(pairs: Sequence[Data], checks: str) -> str:
    """Returns what stopped the checks of these pairs, the most telling observation first; "" if there are no pairs."""
    for pair in pairs:
        if (found := _ICMP.search(pair["reason"])) is not None:
            return f"the {_sender(pair, found[2])} answered '{found[1]}' to the {checks}"
    one_way = next((pair for pair in pairs if pair["readable"] and not pair["writable"]), None)
    if one_way is not None:
        return f"checks arrive from {_host(one_way['remote'])}, but no answer to ours does"
    if any(pair["state"] in _OPEN for pair in pairs):
        return f"the {checks} are not finished"
    if pairs and all(_SILENT.search(pair["reason"]) for pair in pairs):
        return f"no answer came to the {checks} of {_count(len(pairs))}"
    failed = next((pair for pair in pairs if pair["state"] == "failed"), None)
    return "" if failed is None else f"the {checks} failed: {failed['reason']}"


def _sender(pair: Data, origin: str) -> str:
    """Returns the sender of an ICMP error, for people: a reflexive address is one of a router."""
    kind = pair["remote"].partition(" ")[0]
    return f"{'router' if kind in _REFLEXIVE or _host(pair['remote']) != origin else 'host'} {origin}"


def _count(pairs: int) -> str:
    return "the only pair of addresses" if pairs == 1 else f"all {pairs} pairs of addresses"


def _is_relayed(pair: Data) -> bool:
    return bool(pair["relayed"]) or pair["local"].startswith("relay ") or pair["remote"].startswith("relay ")


def _host(label: str) -> str:
    """Returns the host in the label of a candidate, `srflx 192.0.2.1:4000`."""
    return label.partition(" ")[2].rpartition(":")[0].strip("[]")
