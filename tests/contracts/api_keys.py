"""The rules of every ApiKeys. Each implementation runs this suite as a subclass."""

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
    """Subclasses provide the fixture `keys`: an empty ApiKeys."""

    def test_get_returns_the_key_as_added(self, keys: ApiKeys) -> None:
        """A key is read back equal, by its id only."""
        for key in (KEY, another(1)):
            keys.add(key)
        assert keys.get(KEY.id) == KEY
        assert keys.get(another(1).id) == another(1)
        assert keys.get(another(2).id) is None
        assert keys.get(KEY.hash) is None

    def test_all_are_listed_oldest_first(self, keys: ApiKeys) -> None:
        """`all` returns all keys, oldest first."""
        assert keys.all() == []
        added = [another(number) for number in range(30)]
        for key in reversed(added):
            keys.add(key)
        assert keys.all() == added

    def test_add_overwrites_a_key(self, keys: ApiKeys) -> None:
        """A key added twice is stored once, as last added."""
        keys.add(KEY)
        changed = replace(KEY, role=Role.READ)
        keys.add(changed)
        assert keys.get(KEY.id) == changed
        assert keys.all() == [changed]

    def test_a_removed_key_is_gone(self, keys: ApiKeys) -> None:
        """A removed key is not found or listed; other keys stay; it can be added again."""
        for number in range(3):
            keys.add(another(number))
        assert keys.remove(another(1).id) is True
        assert keys.get(another(1).id) is None
        assert keys.all() == [another(0), another(2)]
        keys.add(another(1))
        assert keys.all() == [another(number) for number in range(3)]

    def test_remove_says_whether_the_key_existed(self, keys: ApiKeys) -> None:
        """`remove` returns False for an unknown key or one that is already removed."""
        assert keys.remove(KEY.id) is False
        keys.add(KEY)
        keys.add(another(1))
        for unknown in (another(2).id, KEY.hash, KEY.tenant, KEY.id[:-1], ""):
            assert keys.remove(unknown) is False
        assert keys.remove(KEY.id) is True
        assert keys.remove(KEY.id) is False
        assert keys.all() == [another(1)]
