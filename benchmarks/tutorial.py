"""Runs docs/tutorial.ipynb from top to bottom, and writes its outputs into it.

    python benchmarks/tutorial.py

It needs `pip install -e '.[dev]'`. The notebook runs in the same environment, in the folder docs/.
"""

import hashlib
import os
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOK = Path(__file__).parent.parent / "docs/tutorial.ipynb"


def run(path: Path) -> NotebookNode:
    """Run a notebook in its folder, and return it with its outputs. Nothing is written.

    Raises:
        CellExecutionError: A cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=600,  # seconds for one cell
        kernel_name="python3",  # that of this environment
        record_timing=False,  # times would differ in each run
        coalesce_streams=True,  # printed lines arrive in parts of any size
        resources={"metadata": {"path": str(path.parent)}},
    )
    # With one thread, sums have the same order on all machines, and other programs on busy cores cost less time.
    client.execute(env=os.environ | {"OMP_NUM_THREADS": "1"})
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/jpeg", None)  # Pillow gives each picture twice
    # A notebook also records the version of Python and the editor. Both would change without need.
    notebook.metadata = NotebookNode(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python"},
        code=code_hash(notebook),
    )
    return notebook


def code_hash(notebook: NotebookNode) -> str:
    """Return the SHA-256 of all code cells. The notebook stores that of the code that has made its outputs."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\n\n".join(code).encode()).hexdigest()


def main() -> None:
    start = time.perf_counter()
    notebook = run(NOTEBOOK)
    seconds = time.perf_counter() - start
    nbformat.write(notebook, NOTEBOOK)
    print(f"{NOTEBOOK.name}: {seconds:.0f} s, {NOTEBOOK.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
