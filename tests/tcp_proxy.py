"""A network that can be made to fail: what goes over it can be cut off, lost, held up, or led elsewhere."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Connect = Callable[[], socket.socket]


class Proxy:
    """Takes connections at an address of its own and leads each to where it is told; `proxy` makes one."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[tuple[socket.socket, socket.socket]] = []
        self._flowing = threading.Event()
        self._flowing.set()
        self._loses_answers = False
        self._refuses = False
        self.lost = threading.Event()
        """Set when an answer was lost."""
        threading.Thread(target=self._accept, daemon=True).start()

    def lead_to(self, connect: Connect) -> None:
        """Lead new connections elsewhere."""
        self._connect = connect

    def cut(self) -> None:
        """Break every connection."""
        pairs, self._open = self._open, []
        for pair in pairs:
            for end in pair:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def refuse(self, *, refuses: bool = True) -> None:
        """Break every connection, and every new one at once."""
        self._refuses = refuses
        self.cut()

    def hold(self) -> None:
        """Keep everything on its way, as a cable that was pulled out does: nobody is told."""
        self._flowing.clear()

    def let_go(self) -> None:
        """Let everything flow again."""
        self._flowing.set()

    def lose_the_next_answer(self) -> None:
        """Let the next question through, and break the connection when its answer comes."""
        self.lost.clear()
        self._loses_answers = True

    def close(self) -> None:
        """Take no more connections, and break all."""
        self._listener.close()
        self.let_go()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._refuses:
                client.close()
                continue
            try:
                server = self._connect()
            except OSError:
                client.close()
                continue
            self._open.append((client, server))
            threading.Thread(target=self._carry, args=[client, server]).start()

    def _carry(self, client: socket.socket, server: socket.socket) -> None:
        with client, server:
            answers = threading.Thread(target=self._flow, args=[server, client], kwargs={"is_answer": True})
            answers.start()
            self._flow(client, server)
            answers.join()

    def _flow(self, source: socket.socket, target: socket.socket, *, is_answer: bool = False) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                self._flowing.wait()
                if is_answer and self._loses_answers:
                    self._loses_answers = False
                    self.lost.set()
                    break
                target.sendall(piece)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxy(connect: Connect) -> Iterator[Proxy]:
    """A proxy for as long as the context lasts."""
    made = Proxy(connect)
    try:
        yield made
    finally:
        made.close()
