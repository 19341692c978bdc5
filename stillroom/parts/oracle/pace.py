"""How fast a teacher may be asked."""

import time


class Pace:
    """So many requests and tokens a minute at most (0: any number), spread evenly: each request is waited for as long as the
    last one was worth, and no minute holds more than the limit and one request."""

    def __init__(self, requests: int = 0, tokens: int = 0):
        self.worth = 60 / requests if requests else 0.0, 60 / tokens if tokens else 0.0      # seconds of one
        self.free = [0.0, 0.0, 0.0]              # times from when requests and tokens are free again, and the server wants us

    def left(self) -> float:
        """Seconds until the next request may start."""
        return max(0.0, max(self.free) - time.monotonic())

    def charge(self, tokens: int) -> None:
        """A request of so many tokens starts."""
        now = time.monotonic()
        self.free[0] = max(self.free[0], now) + self.worth[0]
        self.free[1] = max(self.free[1], now) + self.worth[1] * tokens

    def give_back(self, tokens: int) -> None:
        """It needed so many tokens less."""
        self.free[1] -= self.worth[1] * tokens

    def hold(self, seconds: float) -> None:
        """The server wants nobody before that."""
        self.free[2] = max(self.free[2], time.monotonic() + seconds)
