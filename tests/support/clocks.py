"""A clock for tests that counts nanoseconds."""

SECOND = 1_000_000_000


class Nanoseconds:
    """A stand-in for time.monotonic_ns that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 7 * SECOND  # an arbitrary start

    def __call__(self) -> int:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += round(seconds * SECOND)
