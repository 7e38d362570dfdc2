"""What every Keys promises. Each implementation runs this suite as a subclass."""

from datetime import timedelta

from msgspec.structs import replace

from chalicelib.core import api_keys
from chalicelib.core.api_keys import KEY_ENTROPY, ApiKey, Role
from chalicelib.core.timer import DEFAULT_TENANT
from chalicelib.service.ports import ApiKeys
from tests.support.fakes import START

TOKEN, KEY = api_keys.mint(DEFAULT_TENANT, Role.FULL, START, bytes(KEY_ENTROPY))


def another(number: int, tenant: str = "acme", role: Role = Role.READ) -> ApiKey:
    """Return a key made `number` seconds after START."""
    entropy = number.to_bytes(6, "big") + bytes([number]) * (KEY_ENTROPY - 6)
    return api_keys.mint(tenant, role, START + timedelta(seconds=number), entropy)[1]


class ApiKeysContract:
    """Subclasses give the fixture `kept`: an empty Keys."""

    def test_a_key_comes_back_as_it_was_added(self, kept: ApiKeys) -> None:
        """All that is kept of a key can be read again, by its id only."""
        for key in (KEY, another(1)):
            kept.add(key)
        assert kept.get(KEY.id) == KEY
        assert kept.get(another(1).id) == another(1)
        assert kept.get(another(2).id) is None
        assert kept.get(KEY.hash) is None

    def test_all_are_listed_oldest_first(self, kept: ApiKeys) -> None:
        """None is left out, however many there are."""
        assert kept.all() == []
        added = [another(number) for number in range(30)]
        for key in reversed(added):
            kept.add(key)
        assert kept.all() == added

    def test_a_key_written_again_is_as_last_written(self, kept: ApiKeys) -> None:
        """A call that is repeated makes no second one of it."""
        kept.add(KEY)
        changed = replace(KEY, role=Role.READ)
        kept.add(changed)
        assert kept.get(KEY.id) == changed
        assert kept.all() == [changed]

    def test_a_removed_key_is_gone(self, kept: ApiKeys) -> None:
        """It opens nothing any more and is not listed; the others stay; it may come back."""
        for number in range(3):
            kept.add(another(number))
        assert kept.remove(another(1).id) is True
        assert kept.get(another(1).id) is None
        assert kept.all() == [another(0), another(2)]
        kept.add(another(1))
        assert kept.all() == [another(number) for number in range(3)]

    def test_only_a_key_that_was_there_is_removed(self, kept: ApiKeys) -> None:
        """Whoever revokes the same key twice, or mistypes it, has to hear of it."""
        assert kept.remove(KEY.id) is False
        kept.add(KEY)
        kept.add(another(1))
        for unknown in (another(2).id, KEY.hash, KEY.tenant, KEY.id[:-1], ""):
            assert kept.remove(unknown) is False
        assert kept.remove(KEY.id) is True
        assert kept.remove(KEY.id) is False
        assert kept.all() == [another(1)]
