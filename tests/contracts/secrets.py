"""The rules of every Secrets. Each implementation runs this suite as a subclass."""

import pytest

from chalicelib.core import signing
from chalicelib.core.errors import OperatorError
from chalicelib.core.signing import MAX_SECRETS
from chalicelib.service import credentials
from chalicelib.service.ports import Secrets


def secret(number: int) -> str:
    """Return a secret, a different one for each number."""
    return signing.new_secret(bytes([number]) * 32)


class SecretsContract:
    """Subclasses provide the fixture `secrets`: an empty Secrets."""

    def test_the_newest_comes_first(self, secrets: Secrets) -> None:
        """A tenant starts without secrets; the latest one added is first."""
        assert secrets.of("acme") == []
        for number in range(MAX_SECRETS):
            secrets.add("acme", secret(number))
        assert secrets.of("acme") == [secret(number) for number in reversed(range(MAX_SECRETS))]

    def test_retires_a_secret(self, secrets: Secrets) -> None:
        """The others keep their order, and a retired secret may be added again as the newest."""
        for number in range(3):
            secrets.add("acme", secret(number))
        secrets.retire("acme", secret(1))
        assert secrets.of("acme") == [secret(2), secret(0)]
        secrets.add("acme", secret(1))
        secrets.retire("acme", secret(2))
        assert secrets.of("acme") == [secret(1), secret(0)]

    def test_refuses_a_sixth_secret(self, secrets: Secrets) -> None:
        """A refused secret changes nothing."""
        for number in range(MAX_SECRETS):
            secrets.add("acme", secret(number))
        with pytest.raises(OperatorError, match="at most 5 secrets"):
            secrets.add("acme", secret(MAX_SECRETS))
        assert len(secrets.of("acme")) == MAX_SECRETS
        assert secret(MAX_SECRETS) not in secrets.of("acme")

    def test_adding_again_changes_nothing(self, secrets: Secrets) -> None:
        """Repeating a command neither duplicates nor moves a secret, even at the limit."""
        for number in range(MAX_SECRETS):
            secrets.add("acme", secret(number))
        before = secrets.of("acme")
        secrets.add("acme", secret(0))
        assert secrets.of("acme") == before

    def test_refuses_to_retire_an_unknown_secret(self, secrets: Secrets) -> None:
        """A typo must not hide that a leaked secret is still valid."""
        for tenant in ("acme", "other"):
            with pytest.raises(OperatorError, match="does not have this secret"):
                secrets.retire(tenant, secret(1))
            secrets.add("acme", secret(0))
        assert secrets.of("acme") == [secret(0)]
        assert secrets.of("other") == []

    def test_refuses_to_retire_the_last_secret(self, secrets: Secrets) -> None:
        """Signing can't be turned off by mistake."""
        secrets.add("acme", secret(0))
        with pytest.raises(OperatorError, match="only secret"):
            secrets.retire("acme", secret(0))
        assert secrets.of("acme") == [secret(0)]

    def test_tenants_share_nothing(self, secrets: Secrets) -> None:
        """A change affects one tenant, even if others have the same secrets."""
        for tenant in ("acme", "acme-2", "default"):
            for number in range(3):
                secrets.add(tenant, secret(number))
        secrets.retire("acme", secret(0))
        assert secrets.of("acme") == [secret(2), secret(1)]
        assert secrets.of("acme-2") == secrets.of("default") == [secret(2), secret(1), secret(0)]

    def test_ensures_a_first_secret(self, secrets: Secrets) -> None:
        """A tenant keeps its secret, however often the service starts or is deployed."""
        for number in range(3):
            credentials.ensure_secret(secrets, "acme", bytes([number]) * 32)
        assert secrets.of("acme") == [secret(0)]
