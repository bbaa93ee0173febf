"""Install with `pip install -r requirements.txt -e .`; requirements.txt pins what was tested together."""
from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="adacache-opensora",
    version="0.1.0",
    description="Adaptive caching for faster video generation with diffusion transformers, on Open-Sora v1.2",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.10",
    packages=find_packages(include=["adacache", "adacache.*", "opensora", "opensora.*"]),
    package_data={"opensora": ["assets/**/*"]},
    install_requires=[
        "torch>=2.9",
        "torchvision>=0.24",
        "timm>=1.0.9,<2",
        "einops>=0.8,<1",
        "mmengine>=0.10.5,<1",
        "av>=14",
        "diffusers>=0.33",
        "transformers>=5,<6",
        "sentencepiece>=0.2",  # tokenizer of the released T5
        "protobuf>=4",
        "safetensors>=0.5",
        "rotary-embedding-torch>=0.8,<1",
        "numpy>=1.26",
        "rich>=13",
        "matplotlib>=3.8",
        "scikit-image>=0.24",
        "scipy>=1.11",
        "ftfy>=6.2",
        "beautifulsoup4>=4.12",
    ],
    extras_require={
        "test": ["pytest>=8", "ruff>=0.9"],
        "eval": ["torchmetrics>=1.4"],  # LPIPS in scripts/evaluate.py
        "flash-attn": ["flash-attn"],
        "xformers": ["xformers"],
        "colossalai": ["colossalai>=0.4,<0.6"],  # holds torch back: see constraints/colossalai.txt
    },
)
