"""Write a Hugging Face folder with the exact shapes of a published model and random weights.

    python docs/write_pretrained_folder.py OUT [--kind=llama] [--layers=16] [--tokenizer=PATH]

Kinds are llama (Llama-3.2-1B), smollm (SmolLM2-135M), mistral (Mistral-7B-v0.3), qwen2
(Qwen2.5-0.5B) and qwen3 (Qwen3-0.6B). Weights are bfloat16, in two files with an index. A folder of
Llama-3.2-1B has 2.5 GB and takes half a minute.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from memjax.testing.huggingface import KINDS, write_folder


def main() -> None:
    """Write the folder that the command line describes."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("out", type=Path, help="the folder")
    parser.add_argument("--kind", choices=tuple(KINDS), default="llama", help="whose shapes")
    parser.add_argument("--layers", type=int, help="by default those of the model")
    parser.add_argument(
        "--tokenizer", default="small-en", help="vocabulary to put beside the weights"
    )
    given = parser.parse_args()
    settings = dict(KINDS[given.kind])
    if given.layers:
        settings["num_hidden_layers"] = given.layers
    write_folder(given.out, settings, tokenizer=given.tokenizer)
    size = sum(path.stat().st_size for path in given.out.glob("*.safetensors"))
    print(f"{given.out}: {given.kind}, {settings['num_hidden_layers']} layers, {size:,} bytes")


if __name__ == "__main__":
    main()
