"""What a torchrun with --max-restarts remembers; whole runs are in tests/scripts/test_long_runs.py."""
import pytest
import torch.distributed as dist

from opensora import restarts
from opensora.parallel import process_group


@pytest.fixture
def torchrun_s_store(monkeypatch):
    """Its server, as a process of one node and one rank sees it."""
    server = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", str(server.port))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    return server


def test_a_run_began_once_and_is_over_once(torchrun_s_store, monkeypatch):
    began = restarts.began()
    assert restarts.ended() is None
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert restarts.restarts() == 1 and restarts.began() == began
    restarts.end(1)
    assert restarts.ended() == 1


def test_without_torchrun_nothing_is_remembered(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    restarts.end(1)
    assert restarts.ended() is None and restarts.restarts() == 0 and restarts.began() < restarts.began()


def test_restarts_on_several_nodes_are_refused(monkeypatch):
    """Each node's torchrun counts those that it began itself."""
    for name, value in (("WORLD_SIZE", "4"), ("GROUP_WORLD_SIZE", "2"), ("TORCHELASTIC_MAX_RESTARTS", "3")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="--max-restarts 3 on 2 nodes; allowed: on one"), process_group():
        pass
