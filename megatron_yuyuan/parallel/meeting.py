"""The ranks of one attempt of a job meet at a store before they build a process group.

torchrun keeps one store for all attempts of a job. A rank that is started again could read there the
address of one that is dead (pytorch issues 135712 and 167288), and the number of the attempt does not
help, since every torchrun counts its own restarts. So the ranks agree on a name that no attempt had before:

    every rank   here/RANK = a random word of its own
    rank 0       invitation = {name, the words that it has read}, again whenever a word changes
    others       NAME/RANK, once the invitation holds the word of this process
    rank 0       NAME/go, once all have answered

A dead process answers no invitation, and a living one none that holds the word of a dead one.
"""

import json
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch.distributed as dist

from megatron_yuyuan.errors import LostError

LOOK = 0.02
"""Seconds between two looks at the store."""
SAY = 20.0
"""Seconds between two lines on who is awaited."""


@dataclass(frozen=True)
class Meeting:
    """Where this process meets the others, and how long it waits."""

    store: dist.Store
    rank: int
    ranks: int
    timeout: float
    """Seconds."""
    gives_up: Callable[[], str]
    """The name of a signal that asked this process to stop; empty without one."""

    def agree(self) -> str:
        """The name of this attempt, the same on every rank. Raises LostError: a rank does not come in
        time, or this process was asked to stop."""
        word = secrets.token_hex(8)
        self.store.set(f"here/{self.rank}", word)
        look = self._invite if self.rank == 0 else partial(self._follow, word)
        begun, said, found = time.monotonic(), 0.0, ""
        while not (found := look()):
            waited = time.monotonic() - begun
            if cause := self.gives_up():
                raise _asked_to_stop(cause)
            if waited > self.timeout:
                raise self._missing(waited)
            if waited - said > SAY:
                said = waited
                self._say(f"waiting for {self._awaited()} ... {waited:.0f} s")
            time.sleep(LOOK)
        return found

    def _invite(self) -> str:
        """On rank 0: invite those who are here; the name, once all have answered."""
        if not self.store.check([f"here/{rank}" for rank in range(self.ranks)]):
            return ""
        words = [self.store.get(f"here/{rank}").decode() for rank in range(self.ranks)]
        invitation = self._invitation()
        name = invitation.get("name", "")
        if invitation.get("words") != words:
            name = secrets.token_hex(8)
            self.store.set("invitation", json.dumps({"name": name, "words": words}))
        if not self.store.check([f"{name}/{rank}" for rank in range(1, self.ranks)]):
            return ""
        self.store.set(f"{name}/go", "")
        return name

    def _follow(self, word: str) -> str:
        """On another rank: answer an invitation; its name, once it holds."""
        invitation = self._invitation()
        if word not in invitation.get("words", ()):
            return ""
        name = invitation["name"]
        self.store.set(f"{name}/{self.rank}", "")
        return name if self.store.check([f"{name}/go"]) else ""

    def _invitation(self) -> dict:
        if not self.store.check(["invitation"]):
            return {}
        return json.loads(self.store.get("invitation"))

    def _awaited(self) -> str:
        """Who has not come, or not answered: `rank 1, 3 of 4`; or else rank 0, who has yet to invite."""
        name = self._invitation().get("name", "")
        others = [rank for rank in range(self.ranks) if rank != self.rank]
        absent = [rank for rank in others if not self.store.check([f"here/{rank}"])]
        absent = absent or [r for r in others if r and not self.store.check([f"{name}/{r}"])]
        return f"rank {', '.join(map(str, absent or [0]))} of {self.ranks}"

    def _say(self, line: str) -> None:
        if self.rank == 0:
            print(line, file=sys.stderr, flush=True)

    def _missing(self, waited: float) -> LostError:
        return LostError(
            f"waited {waited:.0f} s for {self._awaited()}",
            "it was not started, it died before it came, or it cannot reach the first host",
            "the output of that rank; the same command again; a longer --distributed-timeout-minutes",
        )


def _asked_to_stop(cause: str) -> LostError:
    return LostError(
        f"{cause} while the ranks were still meeting",
        "no step was taken, and nothing is lost",
        "the same command again",
    )
