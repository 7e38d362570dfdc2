"""The fake store keeps the same contract as the real ones."""

import pytest

from tests.contracts.store import StoreContract
from tests.support.fakes import FakeStore


class TestFakeStore(StoreContract):
    """The contract, on a dict."""

    @pytest.fixture
    def store(self) -> FakeStore:
        return FakeStore()
