"""Certificates that clients will refuse are reported, and the others are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from polynya.core.errors import ConfigurationError
from polynya.serve.certificates import Certificates, fault_of
from polynya.serve.config import TlsFiles
from tests.interop.coturn import make_certificate


def files(folder: Path, name: str = "", days: int = 1) -> TlsFiles:
    made = TlsFiles(certificate=folder / "cert.pem", key=folder / "key.pem", server_name=name)
    make_certificate(made.certificate, made.key, days=days)
    return made


@pytest.mark.parametrize("name", ["", "localhost"])
def test_a_valid_certificate_has_no_fault(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    made = files(tmp_path, name)
    assert fault_of(made) == ""
    Certificates(made)
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "days", "says"),
    [("", -1, "expired"), ("localhost", -1, "expired"), ("turn.example.org", 1, "not valid for 'turn.example.org'")],
)
def test_an_expired_certificate_and_one_for_another_name_are_reported_at_start_and_reload(
    tmp_path: Path, name: str, days: int, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = files(tmp_path, name, days)
    assert says in fault_of(made)
    certificates = Certificates(made)
    certificates.reload(made)
    assert [says in record.getMessage() for record in caplog.records] == [True, True]


def test_a_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    made = files(tmp_path)
    make_certificate(tmp_path / "other.pem", made.key)
    with pytest.raises(ConfigurationError, match="cannot be used"):
        Certificates(made)
