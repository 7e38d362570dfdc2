"""What every Secrets promises. Each implementation runs this suite as a subclass."""

import pytest

from chalicelib.core import signing
from chalicelib.core.errors import CommandError
from chalicelib.core.signing import MAX_SECRETS
from chalicelib.service.ports import Secrets


def secret(number: int) -> str:
    """Return one of many secrets."""
    return signing.new_secret(bytes([number]) * 32)


class SecretsContract:
    """Subclasses give the fixture `kept`: an empty Secrets."""

    def test_the_newest_comes_first(self, kept: Secrets) -> None:
        """All that were added come back, the latest first; a tenant begins with none."""
        assert kept.of("acme") == []
        for number in range(MAX_SECRETS):
            kept.add("acme", secret(number))
        assert kept.of("acme") == [secret(number) for number in reversed(range(MAX_SECRETS))]

    def test_a_retired_one_is_gone(self, kept: Secrets) -> None:
        """Whichever it is, the others stay in their order, and it may come back as the newest."""
        for number in range(3):
            kept.add("acme", secret(number))
        kept.retire("acme", secret(1))
        assert kept.of("acme") == [secret(2), secret(0)]
        kept.add("acme", secret(1))
        kept.retire("acme", secret(2))
        assert kept.of("acme") == [secret(1), secret(0)]

    def test_no_more_than_five(self, kept: Secrets) -> None:
        """The sixth is refused, and nothing changed."""
        for number in range(MAX_SECRETS):
            kept.add("acme", secret(number))
        with pytest.raises(CommandError, match="5 secrets at most: retire one first"):
            kept.add("acme", secret(MAX_SECRETS))
        assert len(kept.of("acme")) == MAX_SECRETS
        assert secret(MAX_SECRETS) not in kept.of("acme")

    def test_adding_again_changes_nothing(self, kept: Secrets) -> None:
        """A command that is repeated neither doubles a secret nor moves it, even at five."""
        for number in range(MAX_SECRETS):
            kept.add("acme", secret(number))
        before = kept.of("acme")
        kept.add("acme", secret(0))
        assert kept.of("acme") == before

    def test_an_unknown_one_is_not_retired(self, kept: Secrets) -> None:
        """Whoever retires a leaked secret and mistypes it has to hear of it."""
        for tenant in ("acme", "other"):
            with pytest.raises(CommandError, match="no such secret"):
                kept.retire(tenant, secret(1))
            kept.add("acme", secret(0))
        assert kept.of("acme") == [secret(0)]
        assert kept.of("other") == []

    def test_the_last_one_stays(self, kept: Secrets) -> None:
        """Signing does not end by mistake."""
        kept.add("acme", secret(0))
        with pytest.raises(CommandError, match="only secret: add another one first"):
            kept.retire("acme", secret(0))
        assert kept.of("acme") == [secret(0)]

    def test_tenants_share_nothing(self, kept: Secrets) -> None:
        """What one adds or retires is no other's, even if the secrets are the same."""
        for tenant in ("acme", "acme-2", "default"):
            for number in range(3):
                kept.add(tenant, secret(number))
        kept.retire("acme", secret(0))
        assert kept.of("acme") == [secret(2), secret(1)]
        assert kept.of("acme-2") == kept.of("default") == [secret(2), secret(1), secret(0)]

    def test_a_first_secret_is_given_once(self, kept: Secrets) -> None:
        """A tenant that has one keeps it, however often the service starts or is deployed."""
        for number in range(3):
            signing.ensure_secret(kept, "acme", bytes([number]) * 32)
        assert kept.of("acme") == [secret(0)]
