"""security.md, line 9: credentials expire, secrets can be replaced, keys are stored, algorithms are not bid down."""

from __future__ import annotations

import base64
import hashlib
import hmac
import pickle

import pytest

from polynya.core.addresses import Address
from polynya.core.errors import ConfigurationError
from polynya.core.instants import SECOND
from polynya.stun import attributes as a
from polynya.stun.integrity import IntegrityKey, long_term_key
from polynya.stun.registry import Method
from polynya.stun.security import SecurityFeature, features_of
from polynya.turn.server.config import Limits
from polynya.turn.server.lookups import LookUp, UserFound
from polynya.turn.server.users import Directories, ExternalUsers, SharedSecrets, StaticUsers, User
from tests.turn.server.harness import CLIENT, OTHER, PASSWORDS, REALM, Person, Table, code, config, users

ALLOCATE = {a.REQUESTED_TRANSPORT: 17}
UNIX = 1_700_000_000


def shared(*secrets: str, **changes: object) -> Table:
    table = Table(config(**changes), SharedSecrets(REALM, secrets))
    table.server.control.set_unix_time(UNIX, now=table.now)
    return table


def limited(table: Table, expires: int, who: str = "alice", secret: str = "one", address: Address = CLIENT) -> Person:
    name = f"{expires}:{who}"
    password = base64.b64encode(hmac.digest(secret.encode(), name.encode(), hashlib.sha1)).decode()
    return Person(table, address, name, password)


def test_time_limited_credentials_are_valid_until_they_expire() -> None:
    table = shared("one")
    assert code(limited(table, UNIX + 10).allocate()) == 0
    assert code(limited(table, UNIX, address=OTHER).allocate()) == 401
    late = limited(table, UNIX + 10, address=OTHER)
    table.run_for(11)
    assert code(late.allocate()) == 401


def test_time_limited_credentials_need_the_time_of_day() -> None:
    table = Table(config(), SharedSecrets(REALM, ["one"]))
    assert code(limited(table, 10**11).allocate()) == 401


@pytest.mark.parametrize("strict", [False, True])
def test_an_allocation_outlives_its_credentials_unless_refresh_is_strict(strict: bool) -> None:
    table = shared("one", refuse_expired_refresh=strict)
    alice = limited(table, UNIX + 10)
    alice.allocate()
    table.run_for(11)
    assert code(alice.refresh()) == (401 if strict else 0)
    assert code(alice.permit(Address("203.0.113.9", 1))) == 0
    renewed = limited(table, UNIX + 1000)
    assert code(renewed.refresh()) == 0, "the same account with renewed credentials"
    assert code(limited(table, UNIX + 1000, "bob").refresh()) == 441


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (f"alice:{UNIX + 10}", 0),
        (f"alice:x:{UNIX + 10}", 0),
        (f"alice:{UNIX}", 401),
        (f"{UNIX + 10}", 0),
        (f"{UNIX + 10}:17", 0),
        (f"17:{UNIX + 10}", 401),  # the first field is the expiry: a client cannot choose another one
        (f"{UNIX}:{UNIX + 10}", 401),
        (f"{UNIX + 10}:{UNIX}", 0),
        (f"{'9' * 13}:{UNIX + 10}", 401),
        (f"alice:{'9' * 13}", 401),
        (f"alice:{UNIX + 10}:x", 401),
        (f":{UNIX + 10}", 401),
        ("alice:", 401),
    ],
)
def test_the_expiry_is_the_first_field_if_that_is_a_number_and_else_the_last(name: str, expected: int) -> None:
    password = base64.b64encode(hmac.digest(b"one", name.encode(), hashlib.sha1)).decode()
    assert code(Person(shared("one"), CLIENT, name, password).allocate()) == expected


def test_an_allocation_belongs_to_the_id_in_both_orders() -> None:
    table = shared("one")
    alice = limited(table, UNIX + 10)
    assert code(alice.allocate()) == 0
    name = f"alice:{UNIX + 20}"
    password = base64.b64encode(hmac.digest(b"one", name.encode(), hashlib.sha1)).decode()
    assert code(Person(table, CLIENT, name, password).refresh()) == 0


def test_several_secrets_are_valid_at_once() -> None:
    table = shared("new", "old")
    for number, (secret, expected) in enumerate({"new": 0, "old": 0, "other": 401}.items()):
        person = limited(table, UNIX + 10, "alice", secret, Address(CLIENT.host, 2000 + number))
        assert code(person.allocate()) == expected


@pytest.mark.parametrize(
    "name", ["alice", ":alice", "-5:alice", "1e9:alice", "\u0661\u0662:alice", "9" * 30 + ":alice"]
)
def test_names_without_an_expiry_are_unknown(name: str) -> None:
    table = shared("one")
    password = base64.b64encode(hmac.digest(b"one", name.encode(), hashlib.sha1)).decode()
    assert code(Person(table, name=name, password=password).allocate()) == 401


def test_renewed_credentials_share_the_quota_of_their_account() -> None:
    from polynya.turn.server.config import Limits

    table = shared("one", limits=Limits(allocations_per_user=1))
    assert code(limited(table, UNIX + 10).allocate()) == 0
    assert code(limited(table, UNIX + 20, address=OTHER).allocate()) == 486


def test_passwords_are_not_stored() -> None:
    user = User.with_password("alice", REALM, "wonder-in-clear")
    assert b"wonder-in-clear" not in pickle.dumps(str(vars(type(user))) + repr(user))
    assert "wonder-in-clear" not in repr(user) + repr(user.keys)
    stored = {1: long_term_key("alice", REALM, "wonder", 1), 2: long_term_key("alice", REALM, "wonder", 2)}
    table = Table(config(), StaticUsers(REALM, [User.with_keys("alice", stored)]))
    assert [code(Person(table, Address(CLIENT.host, n), algorithm=n).allocate()) for n in (1, 2)] == [0, 0]
    with pytest.raises(ConfigurationError):
        User.with_keys("alice", {1: b"wonder"})


def challenge(table: Table) -> tuple[Person, a.PasswordAlgorithm]:
    alice = Person(table)
    answer = alice.say(alice.build(Method.ALLOCATE, ALLOCATE))
    assert alice.learn(answer)
    return alice, alice.offered


def test_sha256_is_offered_first_and_announced_in_the_nonce() -> None:
    alice, offered = challenge(Table(config()))
    assert [each.number for each in offered] == [2, 1]
    features = features_of(alice.nonce)
    assert features == SecurityFeature.PASSWORD_ALGORITHMS | SecurityFeature.USERNAME_ANONYMITY


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ((a.PasswordAlgorithm(1),), a.PasswordAlgorithm(1)),
        ((a.PasswordAlgorithm(1), a.PasswordAlgorithm(2)), a.PasswordAlgorithm(1)),
        ((a.PasswordAlgorithm(2), a.PasswordAlgorithm(1)), a.PasswordAlgorithm(3)),
        ((a.PasswordAlgorithm(2), a.PasswordAlgorithm(1)), None),
        (None, a.PasswordAlgorithm(1)),
    ],
)
def test_a_changed_offer_of_algorithms_is_refused(offered: tuple | None, chosen: a.PasswordAlgorithm | None) -> None:
    table = Table(config())
    alice, _ = challenge(table)
    alice.offered = None
    values = dict(ALLOCATE)
    if offered is not None:
        values[a.PASSWORD_ALGORITHMS] = offered
    if chosen is not None:
        values[a.PASSWORD_ALGORITHM] = chosen
    assert code(alice.say(alice.build(Method.ALLOCATE, values))) == 400


def test_a_server_without_md5_accepts_no_md5() -> None:
    table = Table(config(algorithms=(2,)))
    assert code(Person(table, algorithm=None).allocate()) == 401
    assert code(Person(table, OTHER).allocate()) == 0


def test_a_server_with_md5_alone_offers_nothing() -> None:
    table = Table(config(algorithms=(1,)))
    alice, offered = challenge(table)
    assert offered is None and features_of(alice.nonce) == SecurityFeature.USERNAME_ANONYMITY
    assert code(Person(table, algorithm=None).allocate()) == 0


def test_userhash_is_announced_and_resolved_only_if_all_users_are_known() -> None:
    table = Table(config())
    assert code(Person(table, by_hash=True).allocate()) == 0
    table = shared("one")
    alice, _ = challenge(table)
    assert features_of(alice.nonce) == SecurityFeature.PASSWORD_ALGORITHMS
    person = limited(table, UNIX + 10)
    person.by_hash = True
    assert code(person.allocate()) == 401


@pytest.mark.parametrize(("name", "password"), [("alice", "wrong"), ("mallory", "wonder"), ("alice", "builder")])
def test_wrong_names_and_passwords_get_the_same_response(name: str, password: str) -> None:
    table = Table(config())
    answer = Person(table, name=name, password=password).allocate()
    assert answer[a.ERROR_CODE] == (401, "")
    assert sorted(each.name for each in answer.attributes) == ["ERROR-CODE", "NONCE", "PASSWORD-ALGORITHMS", "REALM"]
    assert not answer.has_integrity and not answer.has_integrity_sha256


@pytest.mark.parametrize("missing", [a.USERNAME, a.REALM, a.NONCE])
def test_incomplete_credentials_are_a_bad_request(missing: a.Attribute) -> None:
    from polynya.stun.message import Message

    table = Table(config())
    alice, _ = challenge(table)
    values = {**ALLOCATE, a.USERNAME: "alice", a.REALM: REALM, a.NONCE: alice.nonce}
    del values[missing]
    key = IntegrityKey.long_term("alice", REALM, PASSWORDS["alice"])
    assert code(alice.say(Message.request(Method.ALLOCATE, bytes(12), values).encode(integrity=key))) == 400


def test_users_can_be_looked_up_outside_the_server() -> None:
    table = Table(config(), Directories([users(), ExternalUsers()]))
    carol = Person(table, name="carol", password="sea")
    carol.learn(carol.say(carol.build(Method.ALLOCATE, ALLOCATE)))
    request = carol.build(Method.ALLOCATE, ALLOCATE)
    assert table.from_client(request) == [] and table.from_client(request) == []
    assert table.events(LookUp) == [LookUp("carol")], "looked up once"
    [answer] = table.give(UserFound("carol", User.with_password("carol", REALM, "sea")))
    assert answer.remote == CLIENT and len(table.flows) == 1
    assert code(carol.refresh()) == 0 and len(table.events(LookUp)) == 1, "cached"
    assert code(Person(table, OTHER).allocate()) == 0, "a cached user needs no lookup"


def test_an_unknown_user_is_refused_after_the_lookup_and_a_lookup_times_out() -> None:
    table = Table(config(), ExternalUsers())
    carol = Person(table, name="carol", password="sea")
    carol.learn(carol.say(carol.build(Method.ALLOCATE, ALLOCATE)))
    carol.say(carol.build(Method.ALLOCATE, ALLOCATE))
    [answer] = table.give(UserFound("carol", None))
    assert answer.data[:2] == b"\x01\x13"
    table.run_for(6)
    carol.say(carol.build(Method.ALLOCATE, ALLOCATE))
    assert len(table.events(LookUp)) == 2
    table.run_for(6)
    assert table.server.control.next_timer() is None, "the request is dropped after the timeout"
    assert table.now % SECOND == 0


def test_one_source_cannot_use_up_the_lookups() -> None:
    """A source that guesses names causes at most as many lookups as responses, and others are still served."""
    limits = Limits(unauthenticated_answers_per_second=10, unauthenticated_burst=20, pending_lookups=50)
    table = Table(config(limits=limits), ExternalUsers())
    mallory = Person(table, OTHER, "mallory", "?")
    assert mallory.learn(mallory.say(mallory.build(Method.ALLOCATE, ALLOCATE)))
    for number in range(1000):
        mallory.name = f"name {number}"
        assert mallory.say(mallory.build(Method.ALLOCATE, ALLOCATE)) is None
    assert len(table.events(LookUp)) == 19, "the first response took one unit of the budget"
    carol = Person(table, name="carol", password="sea")
    assert carol.learn(carol.say(carol.build(Method.ALLOCATE, ALLOCATE)))
    carol.say(carol.build(Method.ALLOCATE, ALLOCATE))
    assert table.events(LookUp)[-1] == LookUp("carol")
    table.give(UserFound("carol", User.with_password("carol", REALM, "sea")))
    assert len(table.flows) == 1


def test_the_number_of_pending_lookups_is_limited() -> None:
    table = Table(config(limits=Limits(pending_lookups=5)), ExternalUsers())
    for number in range(8):
        person = Person(table, Address(f"198.51.100.{number}", 1000), f"name {number}", "?")
        assert person.learn(person.say(person.build(Method.ALLOCATE, ALLOCATE)))
        person.say(person.build(Method.ALLOCATE, ALLOCATE))
    assert len(table.events(LookUp)) == 5
    assert table.server.control.counters["dropped: too many user lookups"] == 3


def test_a_userhash_is_searched_in_every_directory() -> None:
    both = [StaticUsers(REALM, [User.with_password(name, REALM, word)]) for name, word in PASSWORDS.items()]
    table = Table(config(), Directories(both))
    for number, name in enumerate(PASSWORDS):
        person = Person(table, Address("198.51.100.50", 1000 + number), name, by_hash=True)
        assert code(person.allocate()) == 0
    unknown = Person(table, OTHER, "unknown", "x", by_hash=True)
    assert code(unknown.allocate()) == 401
