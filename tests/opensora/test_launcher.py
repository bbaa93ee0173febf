"""`launcher="colossalai"` starts through that package, which need not be installed to be tested."""
import importlib.machinery
import sys
from types import ModuleType

from opensora import parallel


def test_colossalai_joins_the_processes_where_it_is_installed(monkeypatch):
    started, left = [], []
    package = ModuleType("colossalai")
    package.__spec__ = importlib.machinery.ModuleSpec("colossalai", None)
    package.launch_from_torch = lambda **options: started.append(options)
    monkeypatch.setitem(sys.modules, "colossalai", package)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(parallel.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(parallel.dist, "destroy_process_group", lambda: left.append(True))
    parallel.check_launcher("colossalai")
    with parallel.process_group("colossalai"):
        assert started == [{"backend": "gloo", "verbose": False}] and not left
    assert left == [True]
