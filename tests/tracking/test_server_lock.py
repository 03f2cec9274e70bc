"""The lock on MLflow's server: one machine at a time writes, a killed one is no obstacle, and nothing of it stays."""

import threading
import time

import pytest
from mlflow.exceptions import MlflowException

from pipeline.tracking import connection
from pipeline.tracking.connection import SERVER_LOCK, connect, server_lock


@pytest.fixture
def client(project, monkeypatch):
    """A client whose database is as if behind a server, and times a hundred times as short."""
    client, _ = connect()
    monkeypatch.setattr(connection, "uses_server", lambda: True)
    for name, seconds in {"_STALE_SECONDS": 0.6, "_WAIT_SECONDS": 9.0, "_POLL_SECONDS": 0.01}.items():
        monkeypatch.setattr(connection, name, seconds)
    return client


def locks(client):
    return [model.name for model in client.search_registered_models()]


def test_the_second_waits_for_the_first_and_nothing_stays(client):
    order, held = [], threading.Event()

    def first():
        with server_lock(client):
            held.set()
            time.sleep(2)  # longer than a lock that is not renewed lasts
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    held.wait()
    with server_lock(client):
        order.append("second")
        assert locks(client) == [SERVER_LOCK]
    thread.join()
    assert (order, locks(client)) == (["first", "second"], [])


def test_the_lock_of_a_killed_machine_is_taken_after_a_while(client):
    client.create_registered_model(SERVER_LOCK, description="a dead machine")
    begun = time.monotonic()
    with server_lock(client):
        assert time.monotonic() - begun > 0.6
    assert locks(client) == []


def test_it_is_released_if_the_block_fails(client):
    with pytest.raises(ValueError, match="mine"), server_lock(client):
        raise ValueError("mine")
    assert locks(client) == []


def test_whoever_lost_it_does_not_release_that_of_another(client):
    with server_lock(client):
        client.delete_registered_model(SERVER_LOCK)
        client.create_registered_model(SERVER_LOCK, description="another machine")
    assert locks(client) == [SERVER_LOCK]


def test_a_wait_that_is_too_long_ends_in_words(client, monkeypatch):
    monkeypatch.setattr(connection, "_WAIT_SECONDS", 0.3)
    with server_lock(client), pytest.raises(TimeoutError, match="other machines have been writing"), server_lock(client):
        pass


def test_a_request_that_the_client_sends_twice_makes_no_obstacle(client, monkeypatch):
    create = client.create_registered_model

    def create_twice(name, description):
        create(name, description=description)
        create(name, description=description)

    monkeypatch.setattr(client, "create_registered_model", create_twice)
    with server_lock(client):
        assert locks(client) == [SERVER_LOCK]


def test_a_server_that_refuses_to_create_it_is_a_fault(client, monkeypatch):
    def refuse(*_, **__):
        raise MlflowException("not allowed", error_code=7)

    monkeypatch.setattr(client, "create_registered_model", refuse)
    with pytest.raises(MlflowException, match="not allowed"), server_lock(client):
        pass


def test_the_database_of_a_project_needs_none(project):
    client, _ = connect()
    with server_lock(client):
        assert locks(client) == []
