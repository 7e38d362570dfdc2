"""The fake store keeps the same contract as the real ones."""

import pytest

from tests.fakes import FakeStore
from tests.store_contract import StoreContract


class TestFakeStore(StoreContract):
    """The contract, on a dict."""

    @pytest.fixture
    def store(self) -> FakeStore:
        return FakeStore()
