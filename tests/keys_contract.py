"""What every Keys promises. Each implementation runs this suite as a subclass."""

from datetime import timedelta

from chalicelib import keys
from chalicelib.keys import ENTROPY, Key, Keys, Role
from chalicelib.timers import DEFAULT_TENANT
from tests.fakes import START

TOKEN, KEY = keys.mint(DEFAULT_TENANT, Role.FULL, START, bytes(ENTROPY))


def another(number: int, tenant: str = "acme", role: Role = Role.READ) -> Key:
    """Return a key made `number` seconds after START."""
    entropy = number.to_bytes(6, "big") + bytes([number]) * (ENTROPY - 6)
    return keys.mint(tenant, role, START + timedelta(seconds=number), entropy)[1]


class KeysContract:
    """Subclasses give the fixture `kept`: an empty Keys."""

    def test_a_key_comes_back_as_it_was_added(self, kept: Keys) -> None:
        """All that is kept of a key can be read again, by its id only."""
        for key in (KEY, another(1)):
            kept.add(key)
        assert kept.get(KEY.id) == KEY
        assert kept.get(another(1).id) == another(1)
        assert kept.get(another(2).id) is None
        assert kept.get(KEY.hash) is None

    def test_all_are_listed_oldest_first(self, kept: Keys) -> None:
        """None is left out, however many there are."""
        assert kept.all() == []
        added = [another(number) for number in range(30)]
        for key in reversed(added):
            kept.add(key)
        assert kept.all() == added
