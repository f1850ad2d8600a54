"""Ports for the roles of a federation."""

import socket

from trellis_kit.federation import free_ports, port_is_free


def test_ports_given_one_after_the_other_differ() -> None:
    given = [free_ports(1)[0] for _ in range(50)] + free_ports(50)
    assert len(set(given)) == 100


def test_a_port_in_use_is_passed_over() -> None:
    (port,) = free_ports(1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port + 1))
        taken.listen()
        assert port + 1 not in free_ports(3)
        assert not port_is_free(port + 1)
