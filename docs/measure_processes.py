"""Time `memjax compress` of many documents by one process and by two, each on one core (Linux).

    python docs/measure_processes.py PATH SOURCE [DOCUMENTS]

PATH is a stage as `memjax compress` takes it, SOURCE a corpus. Its first DOCUMENTS documents
(default 10,000) are compressed, again from the beginning where it has fewer. Seconds are those of
the whole command: imports, compilation, and the list of the parts. Both runs follow each other, and
nothing else may run on the two cores. With small-en this takes minutes.
"""

import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from memjax.data import open_source  # noqa: E402

DOCUMENTS = 10_000
COUNTS = (1, 2)
"""Numbers of processes."""


def write_documents(source: str, count: int, path: Path) -> int:
    """Write the first documents of a corpus as JSON lines, and return the bytes of their text."""
    texts = [document.text for document in itertools.islice(open_source(source), count)]
    chosen = list(itertools.islice(itertools.cycle(texts), count))
    path.write_text("".join(f"{json.dumps({'text': text})}\n" for text in chosen))
    return sum(len(text.encode()) for text in chosen)


def seconds(model: str, text: Path, out: Path, processes: int) -> float:
    """Return the wall-clock seconds of a command in some processes, each on a core of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "memjax.cli.main", "compress", model, str(text)]
    command += [f"--out={out}/", "--eval_examples=0"]
    cores, started = sorted(os.sched_getaffinity(0)), []
    began = time.monotonic()
    for number in range(processes):
        joined = {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(processes),
            "JAX_PROCESS_ID": str(number),
        }
        os.sched_setaffinity(0, {cores[number]})  # The process inherits it.
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | joined
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
    os.sched_setaffinity(0, cores)
    statuses = [process.wait() for process in started]
    assert not any(statuses), f"statuses {statuses}"
    return time.monotonic() - began


def main() -> None:
    """Measure, and print the seconds and their ratio."""
    if len(sys.argv) not in (3, 4):
        sys.exit("expected PATH SOURCE [DOCUMENTS]")
    model, source, *count = sys.argv[1:]
    documents = int(count[0]) if count else DOCUMENTS
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.jsonl"
        size = write_documents(source, documents, text)
        print(f"{documents:,} documents, {size:,} bytes of text", flush=True)
        found = {}
        for processes in COUNTS:
            found[processes] = seconds(model, text, Path(folder) / f"{processes}", processes)
            print(f"{processes} processes: {found[processes]:.1f} s", flush=True)
        parts = [sorted(Path(folder, str(n)).glob("part-*")) for n in COUNTS]
        same = all(a.read_bytes() == b.read_bytes() for a, b in zip(*parts, strict=True))
        print(f"{found[1] / found[2]:.2f} times faster; {len(parts[0])} parts, equal: {same}")


if __name__ == "__main__":
    main()
