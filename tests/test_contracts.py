"""What others rely on: import arrows, the import surface, the command line, the README's commands."""
import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NEVER = {"adacache": {"opensora", "mmengine", "scripts"}, "opensora": {"adacache", "scripts"}}
# Open-Sora v1.2's, then this project's
FLAGS = {
    "help", "prompt", "prompt-path", "start-index", "end-index", "num-sample", "prompt-as-path", "num-frames",
    "resolution", "aspect-ratio", "image-size", "fps", "save-fps", "seed", "batch-size", "num-sampling-steps",
    "cfg-scale", "reference-path", "mask-strategy", "loop", "aes", "flow", "camera-motion", "ckpt-path",
    "flash-attn", "layernorm-kernel", "dtype", "save-dir", "sample-name", "verbose",
    "adacache", "cfg-options", "overwrite", "offload", "compile", "device", "condition-frame-length",
    "condition-frame-edit", "sp-size", "cfg-size",
}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", NEVER)
def test_the_two_packages_do_not_import_each_other(package):
    assert sources(package)
    assert not {str(p): found for p in sources(package) if (found := imported(p) & NEVER[package])}


def test_the_method_needs_torch_and_einops_and_a_plot_matplotlib():
    known = set(sys.stdlib_module_names) | {"adacache", "torch", "einops", "matplotlib"}
    assert set().union(*(imported(p) for p in sources("adacache"))) <= known


@pytest.mark.parametrize("package", NEVER)
def test_libraries_do_not_print(package):
    calls = [(p.name, node.lineno) for p in sources(package) for node in ast.walk(ast.parse(p.read_text()))
             if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"]
    assert not calls


def test_the_model_never_mentions_caching_apart_from_the_slot():
    lines = [line for p in sources("opensora/models/stdit") + sources("opensora/schedulers")
             for line in p.read_text().lower().splitlines() if "adacache" in line or "codebook" in line]
    assert not lines


def test_the_import_surface():
    from adacache import AdaCacheConfig, Codebook, MoRegConfig, adaptive_cache  # noqa: F401
    from opensora.models.stdit.stdit3 import STDiT3, STDiT3Config  # noqa: F401
    from opensora.registry import MODELS, SCHEDULERS, build_module  # noqa: F401
    from opensora.schedulers.rf import RFLOW  # noqa: F401


def test_optional_packages_are_not_imported_unless_chosen():
    code = ("import sys, opensora.pipeline, adacache; "
            "print({'flash_attn', 'xformers', 'colossalai', 'matplotlib'} & set(sys.modules))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "set()"


def test_the_flags_are_those_that_users_know():
    done = subprocess.run([sys.executable, str(ROOT / "scripts/inference.py"), "--help"], capture_output=True,
                          text=True, check=True, env={**os.environ, "COLUMNS": "200"}, cwd=ROOT)
    assert set(re.findall(r"--([a-z][a-z-]+)", done.stdout)) == FLAGS


def readme_command(mark: str) -> str:
    text = (ROOT / "README.md").read_text()
    return re.search(rf"<!-- {mark} -->\n+```sh\n(.+?)\n```", text, re.S).group(1)


def test_each_of_the_readmes_two_commands_is_one_command():
    for mark, part in (("make-a-video", "scripts/inference.py configs/shapes/sample_calibrated.py"),
                       ("run-the-tests", "python -m pytest")):
        command = readme_command(mark)
        assert command.startswith("pip install -r requirements.txt -e .") and part in command
        assert command.count("\n") == command.count("\\\n")


def test_every_file_that_the_readme_names_is_there():
    text = (ROOT / "README.md").read_text()
    folders = "scripts|configs|adacache|opensora|tests|docs"
    named = set(re.findall(rf"\b(?:{folders})/[\w./-]+\.(?:py|sh|md|png)", text))
    assert named and not [name for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize("page", ["README.md", "docs/your_model.md"])
def test_the_example_runs(page, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (example,) = re.findall(r"```python\n(.+?)```", (ROOT / page).read_text(), re.S)
    exec(compile(example, page, "exec"), {})
    (computed,) = re.fullmatch(r"video 0  ##[#.]{28}  (\d+) of 30\n", capsys.readouterr().out).groups()
    assert int(computed) < 30


def test_no_number_is_left_to_be_filled_in():
    card = ROOT / "opensora/assets/shapes/README.md"
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), card]
    assert not [page for page in pages if "@@" in page.read_text()]
