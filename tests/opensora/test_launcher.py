"""Processes join and leave; `launcher="colossalai"` does it through that package, which need not be here."""
import importlib.machinery
import sys
import threading
from types import ModuleType

import pytest

from opensora import parallel


@pytest.fixture
def told(monkeypatch) -> list[object]:
    """What a stand-in of colossalai is told; and "left"."""
    told: list[object] = []
    package = ModuleType("colossalai")
    package.__spec__ = importlib.machinery.ModuleSpec("colossalai", None)
    package.launch_from_torch = lambda **options: told.append(options)
    monkeypatch.setitem(sys.modules, "colossalai", package)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(parallel.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(parallel.dist, "destroy_process_group", lambda: told.append("left"))
    return told


def test_colossalai_joins_the_processes_where_it_is_installed(told):
    parallel.check_launcher("colossalai")
    with parallel.process_group("colossalai"):
        assert told == [{"backend": "gloo", "verbose": False}]
    assert told[1:] == ["left"]


def test_other_threads_get_their_turn_in_python_before_a_process_ends(told):
    """One of gloo's that let go of a tensor when Python was gone aborted one of forty sharded trainings."""
    waiting = threading.Lock()
    waiting.acquire()

    def let_go() -> None:
        with waiting:
            told.append("let go")

    thread = threading.Thread(target=let_go)
    thread.start()
    interval = sys.getswitchinterval()
    try:
        with parallel.process_group("colossalai"):
            sys.setswitchinterval(1000)  # seconds in which no thread loses its turn unless it waits
            waiting.release()
        assert told[-2:] == ["left", "let go"]
    finally:
        sys.setswitchinterval(interval)
        thread.join()
