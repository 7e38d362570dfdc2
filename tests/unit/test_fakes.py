"""The fake store passes the contract tests of the real stores."""

import pytest

from tests.contracts.store import StoreContract
from tests.support.fakes import FakeStore


class TestFakeStore(StoreContract):
    """The store contract on a dict."""

    @pytest.fixture
    def store(self) -> FakeStore:
        return FakeStore()
