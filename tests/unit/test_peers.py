"""The line between supervisors: a fault and a death are known at once, a lost line is neither."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from cluster.node.peers import Peers, Word

TOKEN = "token-of-the-attempt"


class Gang:
    """The supervisors' lines of an attempt on three nodes, over this machine's loopback."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()
        self.nodes = [Peers(TOKEN, rank, 3) for rank in range(3)]
        self.nodes[0].accept_on(self.listener)
        for node in self.nodes[1:]:
            node.connect(self.address)
        self.until(lambda: len(self.nodes[0]._lines) == 2, hears=0)

    def until(self, reached: Callable[[], bool], *, hears: int) -> None:
        deadline = time.monotonic() + 30
        while not reached():
            assert time.monotonic() < deadline
            assert self.nodes[hears].heard() is None
            time.sleep(0.005)

    def hear(self, rank: int) -> Word:
        deadline = time.monotonic() + 30
        while (word := self.nodes[rank].heard()) is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return word

    def silent(self, rank: int) -> bool:
        for _ in range(20):
            if self.nodes[rank].heard() is not None:
                return False
            time.sleep(0.005)
        return True

    def kill(self, rank: int) -> None:
        """What the kernel does with the sockets of a process that was killed."""
        for line in self.nodes[rank]._lines.values():
            line.sock.close()
        if rank == 0:
            self.listener.close()
        self.nodes[rank] = Peers(TOKEN, rank, 3)

    def close(self) -> None:
        for node in self.nodes:
            node.close(good=True)
        self.listener.close()


@pytest.fixture
def gang() -> Iterator[Gang]:
    made = Gang()
    yield made
    made.close()


@pytest.mark.parametrize("hang", [False, True])
def test_fault_of_one_is_heard_by_all_others(gang: Gang, hang: bool) -> None:
    gang.nodes[2].tell(hang=hang)
    assert gang.hear(0) == gang.hear(1) == Word(node=2, hang=hang)


def test_fault_of_the_first_node_is_heard_by_all_others(gang: Gang) -> None:
    gang.nodes[0].tell(hang=False)
    assert gang.hear(1) == gang.hear(2) == Word(node=0)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_end_without_a_word_is_a_death_that_all_hear_of(gang: Gang, rank: int) -> None:
    gang.kill(rank)
    if rank:
        assert gang.hear(0) == Word(node=rank, died=True)
    for other in {1, 2} - {rank}:
        word = gang.hear(other)
        assert word.node == rank


def test_end_that_was_not_good_is_told(gang: Gang) -> None:
    gang.nodes[1].close(good=False)
    gang.nodes[1] = Peers(TOKEN, 1, 3)
    assert gang.hear(0).node == 1 and gang.hear(2).node == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_good_end_disturbs_nobody(gang: Gang, rank: int) -> None:
    gang.nodes[rank].close(good=True)
    gang.nodes[rank] = Peers(TOKEN, rank, 3)
    assert all(gang.silent(other) for other in range(3))


def test_line_that_the_network_has_lost_is_no_death(gang: Gang) -> None:
    line = gang.nodes[0]._lines[1]
    line.error = OSError(errno.ETIMEDOUT, "Connection timed out")  # as keepalive and retransmission leave it
    gang.nodes[1]._lines[0].sock.close()
    assert gang.silent(0) and gang.silent(2)
    gang.nodes[2].tell(hang=False)
    assert gang.hear(0).node == 2  # the others' lines stand
    gang.nodes[1] = Peers(TOKEN, 1, 3)


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b'{"kind": "fault", "node": 1, "hang": false}\n',
        b'{"kind": "hello", "node": 1, "proof": "00"}\n{"kind": "fault", "node": 1, "hang": false}\n',
        b'{"kind": "hello", "node": "one"}\n',
        b"x" * 10_000,
        b"\xff\n",
        b"[]\n",
        b"",
    ],
)
def test_stranger_is_turned_away_and_ends_nothing(gang: Gang, said: bytes) -> None:
    with socket.create_connection(gang.address) as stranger:
        stranger.sendall(said)
        if not said:
            stranger.shutdown(socket.SHUT_WR)
        stranger.settimeout(0.01)
        deadline = time.monotonic() + 30
        while True:
            assert gang.nodes[0].heard() is None and time.monotonic() < deadline
            try:
                assert stranger.recv(1) == b""
                break
            except TimeoutError:
                continue
            except ConnectionResetError:
                break
    gang.nodes[1].tell(hang=False)
    assert gang.hear(0).node == 1 and gang.hear(2).node == 1


def test_many_that_say_nothing_keep_no_supervisor_out() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    hub, late = Peers(TOKEN, 0, 2), Peers(TOKEN, 1, 2)
    hub.accept_on(listener)
    idle = [socket.create_connection(listener.getsockname()) for _ in range(20)]
    late.connect(listener.getsockname())
    deadline = time.monotonic() + 30
    while not hub._lines:
        assert hub.heard() is None and time.monotonic() < deadline
    late.tell(hang=True)
    while (word := hub.heard()) is None:
        assert time.monotonic() < deadline
    assert word == Word(node=1, hang=True)
    for each in idle:
        each.close()
    hub.close(good=True)
    late.close(good=True)


def test_no_answer_leaves_the_way_by_ray(capsys: pytest.CaptureFixture[str]) -> None:
    peers = Peers(TOKEN, 1, 2)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))  # does not listen, and nobody else can
        peers.connect(mute.getsockname())
    assert peers.heard() is None and "no line to the supervisor of node 0" in capsys.readouterr().out
    peers.tell(hang=False)
    peers.close(good=False)
